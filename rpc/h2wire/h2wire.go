// Package h2wire is HTTP/2 as bytes: frames, settings and error codes (RFC 9113), and how header fields are written
// (RFC 7541). It is what a client and a server have in common, and knows no connection.
package h2wire

import (
	"encoding/binary"
	"strconv"
)

// The frame types of RFC 9113 section 6.
const (
	FrameData         = 0x0
	FrameHeaders      = 0x1
	FramePriority     = 0x2
	FrameReset        = 0x3
	FrameSettings     = 0x4
	FramePushPromise  = 0x5
	FramePing         = 0x6
	FrameGoAway       = 0x7
	FrameWindowUpdate = 0x8
	FrameContinuation = 0x9
)

// The flags of frames.
const (
	FlagAck        = 0x1 // SETTINGS, PING
	FlagEndStream  = 0x1 // DATA, HEADERS
	FlagEndHeaders = 0x4
	FlagPadded     = 0x8
	FlagPriority   = 0x20
)

// The settings of RFC 9113 section 6.5.2.
const (
	SettingHeaderTableSize   = 0x1
	SettingEnablePush        = 0x2
	SettingMaxStreams        = 0x3
	SettingInitialWindow     = 0x4
	SettingMaxFrame          = 0x5
	SettingMaxHeaderListSize = 0x6
)

// ErrCode is an HTTP/2 error code (RFC 9113 section 7).
type ErrCode uint32

// The error codes that are sent, or looked for.
const (
	CodeNo                 ErrCode = 0x0
	CodeProtocol           ErrCode = 0x1
	CodeInternal           ErrCode = 0x2
	CodeFlowControl        ErrCode = 0x3
	CodeSettingsTimeout    ErrCode = 0x4
	CodeStreamClosed       ErrCode = 0x5
	CodeFrameSize          ErrCode = 0x6
	CodeRefused            ErrCode = 0x7
	CodeCancel             ErrCode = 0x8
	CodeCompression        ErrCode = 0x9
	CodeEnhanceCalm        ErrCode = 0xb
	CodeInadequateSecurity ErrCode = 0xc
)

func (c ErrCode) String() string {
	names := [...]string{
		"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
		"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
		"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
	}
	if int(c) < len(names) {
		return names[c]
	}
	return "0x" + strconv.FormatUint(uint64(c), 16)
}

const (
	// Preface is what a client's connection begins with.
	Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	// FrameHeaderLen is the length of a frame's header.
	FrameHeaderLen = 9
	// DefaultMaxFrame is the longest payload of a frame unless SETTINGS say otherwise, in bytes; we never do.
	DefaultMaxFrame = 16 << 10
	// MaxWindow is the most that a window of flow control may hold.
	MaxWindow = 1<<31 - 1
	// MaxStreamID is the highest stream number.
	MaxStreamID = 1<<31 - 1
	// DefaultWindow is the size of windows until SETTINGS say otherwise.
	DefaultWindow = 65535
	// DefaultTable is the size of the header table until SETTINGS say otherwise.
	DefaultTable = 4096
)

// AppendFrame appends the header of a frame.
func AppendFrame(dst []byte, length int, typ, flags byte, stream uint32) []byte {
	dst = append(dst, byte(length>>16), byte(length>>8), byte(length), typ, flags)
	return binary.BigEndian.AppendUint32(dst, stream)
}

// PutLength sets the length of a frame that has been begun.
func PutLength(frame []byte, n int) {
	frame[0], frame[1], frame[2] = byte(n>>16), byte(n>>8), byte(n)
}

// EndHeaders completes the HEADERS frame, with END_HEADERS among its flags, that begins at start of dst and whose block has
// been appended: a block longer than maxFrame goes on in CONTINUATION frames.
func EndHeaders(dst []byte, start int, stream uint32, maxFrame int) []byte {
	n := len(dst) - start - FrameHeaderLen
	if n <= maxFrame {
		PutLength(dst[start:], n)
		return dst
	}
	rest := append([]byte(nil), dst[start+FrameHeaderLen+maxFrame:]...)
	dst = dst[:start+FrameHeaderLen+maxFrame]
	PutLength(dst[start:], maxFrame)
	dst[start+4] &^= FlagEndHeaders
	for len(rest) > 0 {
		k, flags := min(len(rest), maxFrame), byte(0)
		if k == len(rest) {
			flags = FlagEndHeaders
		}
		dst = append(AppendFrame(dst, k, FrameContinuation, flags, stream), rest[:k]...)
		rest = rest[k:]
	}
	return dst
}

// AppendReset appends RST_STREAM.
func AppendReset(dst []byte, stream uint32, code ErrCode) []byte {
	return binary.BigEndian.AppendUint32(AppendFrame(dst, 4, FrameReset, 0, stream), uint32(code))
}

// AppendWindowUpdate appends WINDOW_UPDATE, of the connection if stream is 0.
func AppendWindowUpdate(dst []byte, stream uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(AppendFrame(dst, 4, FrameWindowUpdate, 0, stream), uint32(n))
}

// AppendPing appends PING; ack is FlagAck or 0.
func AppendPing(dst []byte, ack byte, data *[8]byte) []byte {
	return append(AppendFrame(dst, 8, FramePing, ack, 0), data[:]...)
}

// AppendGoAway appends GOAWAY. last is the last stream of the peer's that was or might be acted on.
func AppendGoAway(dst []byte, last uint32, code ErrCode) []byte {
	dst = binary.BigEndian.AppendUint32(AppendFrame(dst, 8, FrameGoAway, 0, 0), last)
	return binary.BigEndian.AppendUint32(dst, uint32(code))
}

// AppendSetting appends one setting to the payload of a SETTINGS frame.
func AppendSetting(dst []byte, id uint16, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(dst, id), v)
}
