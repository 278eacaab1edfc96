package listeners

import (
	"bytes"
	"errors"
	"io"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/rpc"
)

// acceptedEncodings is what decompressorFor knows, for grpc-accept-encoding and Accept-Encoding.
const acceptedEncodings = "gzip, br, zstd"

// decompressor undoes the per-message compression of one stream. Its zero value takes uncompressed messages only.
type decompressor struct {
	coding *coding
	max    int
}

// decompressorFor returns the decompressor for an encoding name of gRPC or Connect; "" and "identity" are none. An unknown
// one is Unimplemented. max limits a decompressed message in bytes.
func decompressorFor(name string, max int) (decompressor, error) {
	if name == "" || name == "identity" {
		return decompressor{max: max}, nil
	}
	c := codingOf(name)
	if c == nil {
		return decompressor{}, status.Errorf(codes.Unimplemented, "message compression %q is not supported, use one of: identity, %s", name, acceptedEncodings)
	}
	return decompressor{coding: c, max: max}, nil
}

// message undoes the compression if flags say the message has it; it consumes m and returns a message.
func (d decompressor) message(flags byte, m rpc.Message) (rpc.Message, error) {
	switch {
	case flags == 0:
		return m, nil
	case flags != 1:
		m.Release()
		return rpc.Message{}, status.Errorf(codes.Internal, "message flags 0x%02x are not defined", flags)
	case d.coding == nil:
		m.Release()
		return rpc.Message{}, status.Error(codes.Internal, "a message is marked compressed, but the request names no encoding")
	case m.Len() == 0:
		return m, nil
	}
	defer m.Release()
	b, err := d.coding.decompress(m.Bytes(), d.max)
	if err != nil {
		return rpc.Message{}, err
	}
	return rpc.NewMessage(b), nil
}

// coding is one content coding with its pooled readers and writers.
type coding struct {
	name    string
	readers sync.Pool // io.Reader with reset
	writers sync.Pool // resettable writers
	reset   func(r io.Reader, src io.Reader) error
	newR    func() (io.Reader, error)
	newW    func() resetWriter
}

// resetWriter is what the compressors have in common.
type resetWriter interface {
	io.WriteCloser
	Reset(w io.Writer)
}

// The codings, by their registered names (RFC 9110, RFC 7932, RFC 8878).
var (
	gzipCoding = &coding{
		name:  "gzip",
		newR:  func() (io.Reader, error) { return new(gzip.Reader), nil },
		reset: func(r, src io.Reader) error { return r.(*gzip.Reader).Reset(src) }, //nolint:forcetypeassert // made by newR
		newW:  func() resetWriter { w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed); return w },
	}
	brCoding = &coding{
		name:  "br",
		newR:  func() (io.Reader, error) { return brotli.NewReader(nil), nil },
		reset: func(r, src io.Reader) error { return r.(*brotli.Reader).Reset(src) }, //nolint:forcetypeassert // made by newR
		newW:  func() resetWriter { return brotli.NewWriterLevel(nil, 3) },
	}
	zstdCoding = &coding{
		name: "zstd",
		newR: func() (io.Reader, error) {
			return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
		},
		reset: func(r, src io.Reader) error { return r.(*zstd.Decoder).Reset(src) }, //nolint:forcetypeassert // made by newR
		newW: func() resetWriter {
			w, _ := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20))
			return w
		},
	}
)

// codingOf returns the coding of that name, or nil.
func codingOf(name string) *coding {
	switch name {
	case "gzip", "x-gzip":
		return gzipCoding
	case "br":
		return brCoding
	case "zstd":
		return zstdCoding
	}
	return nil
}

var errTooLarge = errors.New("decompressed data is over the limit")

// decompress undoes the coding of b, giving at most max bytes: more is ResourceExhausted, malformed data, or data with
// something behind it, InvalidArgument.
func (c *coding) decompress(b []byte, max int) ([]byte, error) {
	r, err := c.reader(bytes.NewReader(b))
	if err != nil {
		return nil, c.malformed(err)
	}
	defer c.readers.Put(r)
	var out bytes.Buffer
	n, err := out.ReadFrom(io.LimitReader(r, int64(max)+1))
	if err != nil {
		return nil, c.malformed(err)
	}
	if n > int64(max) {
		return nil, status.Errorf(codes.ResourceExhausted, "decompressed message is larger than the limit of %d bytes", max)
	}
	return out.Bytes(), nil
}

func (c *coding) malformed(err error) error {
	return status.Errorf(codes.InvalidArgument, "message is not valid %s: %v", c.name, err)
}

// reader returns a pooled reader on src.
func (c *coding) reader(src io.Reader) (io.Reader, error) {
	r, _ := c.readers.Get().(io.Reader)
	if r == nil {
		var err error
		if r, err = c.newR(); err != nil {
			return nil, err
		}
	}
	if err := c.reset(r, src); err != nil {
		return nil, err
	}
	return r, nil
}

// compress appends the coded form of b to dst.
func (c *coding) compress(dst, b []byte) ([]byte, error) {
	w, _ := c.writers.Get().(resetWriter)
	if w == nil {
		w = c.newW()
	}
	out := bytes.NewBuffer(dst)
	w.Reset(out)
	if _, err := w.Write(b); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	c.writers.Put(w)
	return out.Bytes(), nil
}
