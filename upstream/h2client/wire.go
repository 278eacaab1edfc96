package h2client

import (
	"encoding/binary"
	"strconv"
)

// The frame types of RFC 9113 section 6.
const (
	frameData         = 0x0
	frameHeaders      = 0x1
	framePriority     = 0x2
	frameReset        = 0x3
	frameSettings     = 0x4
	framePushPromise  = 0x5
	framePing         = 0x6
	frameGoAway       = 0x7
	frameWindowUpdate = 0x8
	frameContinuation = 0x9
)

// The flags of frames.
const (
	flagAck        = 0x1 // SETTINGS, PING
	flagEndStream  = 0x1 // DATA, HEADERS
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// The settings of RFC 9113 section 6.5.2.
const (
	settingHeaderTableSize   = 0x1
	settingEnablePush        = 0x2
	settingMaxStreams        = 0x3
	settingInitialWindow     = 0x4
	settingMaxFrame          = 0x5
	settingMaxHeaderListSize = 0x6
)

// errCode is an HTTP/2 error code (RFC 9113 section 7).
type errCode uint32

const (
	codeNo             errCode = 0x0
	codeProtocol       errCode = 0x1
	codeInternal       errCode = 0x2
	codeFlowControl    errCode = 0x3
	codeStreamClosed   errCode = 0x5
	codeFrameSize      errCode = 0x6
	codeRefused        errCode = 0x7
	codeCancel         errCode = 0x8
	codeCompression    errCode = 0x9
	codeEnhanceCalm    errCode = 0xb
	codeHTTP11Required errCode = 0xd
)

func (c errCode) String() string {
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
	preface         = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	frameHeaderLen  = 9
	messagePrefix   = 5         // flag and length of a gRPC message
	ourMaxFrame     = 16 << 10  // what a server may send: the default, never raised
	maxWindow       = 1<<31 - 1 // of flow control
	maxStreamID     = 1<<31 - 1
	defaultWindow   = 65535 // until SETTINGS say otherwise
	defaultMaxTable = 4096
)

// appendFrame appends the header of a frame.
func appendFrame(dst []byte, length int, typ, flags byte, stream uint32) []byte {
	dst = append(dst, byte(length>>16), byte(length>>8), byte(length), typ, flags)
	return binary.BigEndian.AppendUint32(dst, stream)
}

func appendReset(dst []byte, stream uint32, code errCode) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(dst, 4, frameReset, 0, stream), uint32(code))
}

func appendWindowUpdate(dst []byte, stream uint32, n int) []byte {
	return binary.BigEndian.AppendUint32(appendFrame(dst, 4, frameWindowUpdate, 0, stream), uint32(n))
}

func appendPing(dst []byte, ack byte, data *[8]byte) []byte {
	return append(appendFrame(dst, 8, framePing, ack, 0), data[:]...)
}

func appendGoAway(dst []byte, code errCode) []byte {
	dst = binary.BigEndian.AppendUint32(appendFrame(dst, 8, frameGoAway, 0, 0), 0) // a server opens no streams
	return binary.BigEndian.AppendUint32(dst, uint32(code))
}

func appendSetting(dst []byte, id uint16, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(dst, id), v)
}
