package listeners

import (
	"bytes"
	"io"
	"strconv"
	"strings"
	"sync"

	"github.com/andybalholm/brotli"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/rpc"
	"transom/transcoder"
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
	b := getBuffer()
	if err := d.coding.decompress(b, m.Bytes(), d.max); err != nil {
		putBuffer(b)
		return rpc.Message{}, err
	}
	return rpc.PooledMessage(b, bufferPool{}), nil
}

// worthCompressing is the length in bytes from which a reply is compressed for a client that accepts it, but does not
// compress itself.
const worthCompressing = 1 << 10

// compressor compresses the replies of one stream. Its zero value does not.
type compressor struct {
	coding *coding
	min    int // the length in bytes from which a reply is compressed
}

// message compresses m if that is due, and returns what to send with its flags; it consumes m's reference. A reply without
// content stays as it is.
func (c compressor) message(m rpc.Message) (rpc.Message, byte, error) {
	if c.coding == nil || m.Len() == 0 || m.Len() < c.min {
		return m, 0, nil
	}
	defer m.Release()
	b := getBuffer()
	var err error
	if *b, err = c.coding.compress(*b, m.Bytes()); err != nil {
		putBuffer(b)
		return rpc.Message{}, 0, err
	}
	return rpc.PooledMessage(b, bufferPool{}), transcoder.FlagCompressed, nil
}

// replyCoding picks the coding of replies: the one that the client itself compresses with (sent, nil if it does not)
// unless it lists others only, else the accepted one it prefers, and of equals the cheapest. nil is none. accept are
// Accept-Encoding, Grpc-Accept-Encoding or Connect-Accept-Encoding values; without any the client is taken to read what it
// writes (RFC 9110 section 12.5.3; gRPC "compression.md").
func replyCoding(sent *coding, accept []string) *coding {
	if len(accept) == 0 {
		return sent
	}
	var best *coding
	var bestQ float64
	for _, v := range accept {
		for part := range strings.SplitSeq(v, ",") {
			name, params, weighted := strings.Cut(part, ";")
			c := codingOf(strings.ToLower(strings.TrimSpace(name)))
			if c == nil {
				continue
			}
			q := 1.0
			if weighted {
				q = quality(params)
			}
			switch {
			case q == 0:
			case c == sent:
				return c
			case q > bestQ, q == bestQ && c.rank < best.rank:
				best, bestQ = c, q
			}
		}
	}
	return best
}

// replyCoding is the coding of a method's replies, as the function of that name has it; none if the route has them as they are.
func (r *Route) replyCoding(sent *coding, accept []string) *coding {
	if r.Uncompressed {
		return nil
	}
	return replyCoding(sent, accept)
}

// quality is the weight among the parameters of an Accept field's member: 1 if there is none, 0 if it is malformed.
func quality(params string) float64 {
	for p := range strings.SplitSeq(params, ";") {
		name, v, _ := strings.Cut(p, "=")
		if !strings.EqualFold(strings.TrimSpace(name), "q") {
			continue
		}
		q, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
		if err != nil || !(q >= 0 && q <= 1) {
			return 0
		}
		return q
	}
	return 1
}

// coding is one content coding with its pooled readers and writers.
type coding struct {
	name string
	// value is the name as a header's value; rank says which of two is cheaper, the lower.
	value   []string
	rank    int
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
		name: "gzip", value: []string{"gzip"}, rank: 1,
		newR:  func() (io.Reader, error) { return new(gzip.Reader), nil },
		reset: func(r, src io.Reader) error { return r.(*gzip.Reader).Reset(src) }, //nolint:forcetypeassert // made by newR
		newW:  func() resetWriter { w, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed); return w },
	}
	brCoding = &coding{
		name: "br", value: []string{"br"}, rank: 2,
		newR:  func() (io.Reader, error) { return brotli.NewReader(nil), nil },
		reset: func(r, src io.Reader) error { return r.(*brotli.Reader).Reset(src) }, //nolint:forcetypeassert // made by newR
		newW:  func() resetWriter { return brotli.NewWriterLevel(nil, 3) },
	}
	zstdCoding = &coding{
		name: "zstd", value: []string{"zstd"}, rank: 0,
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

// decompress appends b with the coding undone to dst, at most max bytes: more is ResourceExhausted, malformed data, or
// data with something behind it, InvalidArgument.
func (c *coding) decompress(dst *[]byte, b []byte, max int) error {
	r, err := c.reader(bytes.NewReader(b))
	if err != nil {
		return c.malformed(err)
	}
	defer c.readers.Put(r)
	out := *dst
	start := len(out)
	for {
		if len(out) == cap(out) {
			out = append(out, 0)[:len(out)]
		}
		n, err := r.Read(out[len(out):min(cap(out), start+max+1)])
		out = out[:len(out)+n]
		*dst = out
		switch {
		case len(out)-start > max:
			return status.Errorf(codes.ResourceExhausted, "decompressed message is larger than the limit of %d bytes", max)
		case err == io.EOF:
			return nil
		case err != nil:
			return c.malformed(err)
		}
	}
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
