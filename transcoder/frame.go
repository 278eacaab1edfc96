package transcoder

import (
	"encoding/base64"
	"encoding/binary"
	"io"
	"math"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// FrameHeaderLen is the length in bytes of the prefix of a gRPC, gRPC-Web or Connect message: one byte of flags and the
// payload's length as four bytes, big endian (gRPC over HTTP/2, "Length-Prefixed-Message").
const FrameHeaderLen = 5

// The flags of a frame. FlagTrailer is gRPC-Web's, FlagEndStream Connect's; both may go with FlagCompressed.
const (
	FlagCompressed byte = 0x01
	FlagEndStream  byte = 0x02
	FlagTrailer    byte = 0x80
)

// Framing says which flags a frame may carry.
type Framing uint8

// The framings. A client of gRPC-Web or Connect sends no trailer or end-stream frame, so that requests in these
// protocols are FramingGRPC.
const (
	FramingGRPC    Framing = iota // messages only: 0x00, 0x01
	FramingGRPCWeb                // and trailers: 0x80, 0x81
	FramingConnect                // and end of stream: 0x02, 0x03
)

// allowed are the flags of a framing, compression included.
func (f Framing) allowed() byte {
	switch f {
	case FramingGRPCWeb:
		return FlagCompressed | FlagTrailer
	case FramingConnect:
		return FlagCompressed | FlagEndStream
	default:
		return FlagCompressed
	}
}

// AppendFrameHeader appends the prefix of a payload of n bytes. n must not exceed 4 GiB - 1; what does is a fault of the
// caller, which checks its limits, and panics.
func AppendFrameHeader(dst []byte, flags byte, n int) []byte {
	if n < 0 || uint64(n) > math.MaxUint32 {
		panic("transcoder: frame of more than 4 GiB")
	}
	return binary.BigEndian.AppendUint32(append(dst, flags), uint32(n))
}

// PutFrameHeader writes the prefix of the payload that follows it in frame, for a caller that left FrameHeaderLen bytes
// in front before it wrote the payload. frame must be at least FrameHeaderLen long and less than 4 GiB.
func PutFrameHeader(frame []byte, flags byte) {
	AppendFrameHeader(frame[:0], flags, len(frame)-FrameHeaderLen)
}

// ParseFrameHeader reads the FrameHeaderLen bytes of h and returns flags and payload length. Flags the framing does not
// have are Internal; a length over limit is ResourceExhausted, before anything of that length is allocated (gRPC status
// codes; Connect and gRPC-Web agree). limit is in bytes.
func ParseFrameHeader(h []byte, f Framing, limit int) (flags byte, n int, err error) {
	_ = h[FrameHeaderLen-1]
	flags = h[0]
	if flags&^f.allowed() != 0 {
		return 0, 0, status.Errorf(codes.Internal, "frame has invalid flags 0x%02x", flags)
	}
	size := binary.BigEndian.Uint32(h[1:])
	if uint64(size) > uint64(max(limit, 0)) {
		return 0, 0, status.Errorf(codes.ResourceExhausted, "message of %d bytes exceeds the limit of %d bytes", size, limit)
	}
	return flags, int(size), nil
}

// CutFrame splits the first frame off b. payload and rest lie in b. An empty b is io.EOF, a frame that b holds only in
// part io.ErrUnexpectedEOF; other errors are those of ParseFrameHeader.
func CutFrame(b []byte, f Framing, limit int) (flags byte, payload, rest []byte, err error) {
	if len(b) == 0 {
		return 0, nil, nil, io.EOF
	}
	if len(b) < FrameHeaderLen {
		return 0, nil, nil, io.ErrUnexpectedEOF
	}
	flags, n, err := ParseFrameHeader(b, f, limit)
	if err != nil {
		return 0, nil, nil, err
	}
	b = b[FrameHeaderLen:]
	if n > len(b) {
		return 0, nil, nil, io.ErrUnexpectedEOF
	}
	return flags, b[:n:n], b[n:], nil
}

// TextDecoder decodes a grpc-web-text body: base64 in one part or several, each padded or not, cut at any byte
// (PROTOCOL-WEB.md, "text-encoded streams"). The zero value is ready. It belongs to one goroutine.
type TextDecoder struct {
	quad [4]byte
	n    int
}

// Append appends what text decodes to, keeping up to three characters of an unfinished group for the next call. text may
// be the memory behind dst's end only if dst is text[:0]: decoding in place is safe, as the result is never longer.
// A character that is not base64 is InvalidArgument.
func (d *TextDecoder) Append(dst, text []byte) ([]byte, error) {
	for _, c := range text {
		if c == '=' {
			// Padding ends a group; a part may follow.
			if d.n < 2 {
				return dst, errText
			}
			d.quad[d.n] = '='
			d.n++
			if d.n < 4 {
				continue
			}
		} else {
			if c == '\r' || c == '\n' {
				continue
			}
			if d.n > 0 && d.quad[d.n-1] == '=' {
				return dst, errText
			}
			d.quad[d.n] = c
			if d.n++; d.n < 4 {
				continue
			}
		}
		var out [3]byte
		n, err := base64.StdEncoding.Decode(out[:], d.quad[:])
		if err != nil {
			return dst, errText
		}
		dst, d.n = append(dst, out[:n]...), 0
	}
	return dst, nil
}

// Close appends what an unpadded last group holds. A single character left over is InvalidArgument.
func (d *TextDecoder) Close(dst []byte) ([]byte, error) {
	if d.n == 0 {
		return dst, nil
	}
	var out [3]byte
	n, err := base64.RawStdEncoding.Decode(out[:], d.quad[:d.n])
	if err != nil {
		return dst, errText
	}
	d.n = 0
	return append(dst, out[:n]...), nil
}

var errText = status.Error(codes.InvalidArgument, "body is not base64 text")
