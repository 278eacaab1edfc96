package listeners

import (
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"

	"transom/rpc"
	"transom/transcoder"
)

const (
	// readBufferLen is what one body read may bring; several small messages come in one read.
	readBufferLen = 16 << 10
	// writeBufferLen is how much is gathered before it goes to net/http.
	writeBufferLen = 32 << 10
	// firstPiece is how much memory there is for what a client says will come, in bytes, before it comes, and growth how many times
	// as much as has come there is then: or a few bytes for each of many streams would be enough to have transom out of memory.
	firstPiece = 32 << 10
	growth     = 16
	// directWriteLen is the payload size from which a message is written past the buffer.
	directWriteLen = 16 << 10
)

// buffers are the read and write buffers of streams; they are of one size each and carry no client data over, since only
// the filled part is ever looked at.
var (
	readBuffers  = sync.Pool{New: func() any { return new([readBufferLen]byte) }}
	writeBuffers = sync.Pool{New: func() any { b := make([]byte, 0, writeBufferLen); return &b }}
)

// frameReader cuts a body into length-prefixed messages: one flag byte, four bytes of length, the payload (gRPC over
// HTTP/2, "Length-Prefixed-Message"; gRPC-Web and Connect streams use the same). Its zero value must be given r and max.
type frameReader struct {
	r   io.Reader
	max int
	buf *[readBufferLen]byte
	// buf[start:end] is read but not yet consumed.
	start, end int
	err        error
}

// next returns the next frame's flags and payload, one reference of it. io.EOF comes only between frames; a body that ends
// inside a frame is an Internal status, a payload over the limit ResourceExhausted before it is read or allocated.
func (f *frameReader) next() (byte, rpc.Message, error) {
	if err := f.fill(transcoder.FrameHeaderLen); err != nil {
		if err == io.EOF && f.start < f.end {
			err = status.Error(codes.Internal, "the request body ends inside a frame header")
		}
		return 0, rpc.Message{}, err
	}
	flags, n, err := transcoder.ParseFrameHeader(f.buf[f.start:f.end], transcoder.FramingGRPC, f.max)
	if err != nil {
		return 0, rpc.Message{}, err
	}
	f.start += transcoder.FrameHeaderLen
	if n == 0 {
		return flags, rpc.Message{}, nil
	}
	b, pooled := newPayload(min(n, firstPiece))
	have := copy(b, f.buf[f.start:f.end])
	f.start += have
	for {
		if _, err := io.ReadFull(f.r, b[have:]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				err = status.Error(codes.Internal, "the request body ends inside a message")
			}
			return 0, rpc.Message{}, err
		}
		if len(b) == n {
			break
		}
		begin, from := b, pooled
		b, pooled = newPayload(min(n, growth*len(begin)))
		have = copy(b, begin)
		if from != nil {
			mem.DefaultBufferPool().Put(from)
		}
	}
	if pooled != nil {
		return flags, rpc.PooledMessage(pooled, mem.DefaultBufferPool()), nil
	}
	return flags, rpc.NewMessage(b), nil
}

// newPayload returns room for n bytes, from grpc's pool if that pays.
func newPayload(n int) ([]byte, *[]byte) {
	if mem.IsBelowBufferPoolingThreshold(n) {
		return make([]byte, n), nil
	}
	p := mem.DefaultBufferPool().Get(n)
	return (*p)[:n], p
}

// fill makes at least n unconsumed bytes available; n is at most transcoder.FrameHeaderLen.
func (f *frameReader) fill(n int) error {
	if f.buf == nil {
		f.buf, _ = readBuffers.Get().(*[readBufferLen]byte)
	}
	for f.end-f.start < n {
		if f.err != nil {
			return f.err
		}
		if f.start > 0 {
			f.end = copy(f.buf[:], f.buf[f.start:f.end])
			f.start = 0
		}
		var m int
		m, f.err = f.r.Read(f.buf[f.end:])
		f.end += m
	}
	return nil
}

// done gives back the buffer.
func (f *frameReader) done() {
	if f.buf != nil {
		readBuffers.Put(f.buf)
		f.buf = nil
		f.err = io.EOF
		f.start, f.end = 0, 0
	}
}

// frameWriter gathers length-prefixed messages and hands them on in large pieces.
type frameWriter struct {
	buf *[]byte
}

// add appends one frame, writing to w when the buffer is full. It consumes m's reference.
func (f *frameWriter) add(flags byte, m rpc.Message, w io.Writer) error {
	defer m.Release()
	if f.buf == nil {
		f.buf, _ = writeBuffers.Get().(*[]byte)
	}
	*f.buf = transcoder.AppendFrameHeader(*f.buf, flags, m.Len())
	for _, part := range m.Buffers() {
		data := part.ReadOnlyData()
		if len(data) >= directWriteLen {
			if err := f.flush(w); err != nil {
				return err
			}
			if _, err := w.Write(data); err != nil {
				return err
			}
			continue
		}
		*f.buf = append(*f.buf, data...)
	}
	if len(*f.buf) >= writeBufferLen-directWriteLen {
		return f.flush(w)
	}
	return nil
}

// end appends the last frame of a response, whose payload render appends, and writes what is gathered.
func (f *frameWriter) end(flags byte, w io.Writer, render func(dst []byte) []byte) error {
	if f.buf == nil {
		f.buf, _ = writeBuffers.Get().(*[]byte)
	}
	b := *f.buf
	start := len(b)
	b = render(append(b, 0, 0, 0, 0, 0))
	transcoder.PutFrameHeader(b[start:], flags)
	*f.buf = b
	return f.flush(w)
}

// flush writes what is gathered.
func (f *frameWriter) flush(w io.Writer) error {
	if f.buf == nil || len(*f.buf) == 0 {
		return nil
	}
	_, err := w.Write(*f.buf)
	*f.buf = (*f.buf)[:0]
	return err
}

// done gives back the buffer.
func (f *frameWriter) done() {
	if f.buf != nil && cap(*f.buf) <= 2*writeBufferLen {
		*f.buf = (*f.buf)[:0]
		writeBuffers.Put(f.buf)
	}
	f.buf = nil
}
