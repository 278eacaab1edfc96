package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // of answers
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"transom/upstream/h2client"
	"transom/upstream/lbhost"
)

// The client under test of the suite: package upstream/h2client, which carries transom's calls to its backends. Requests
// come one after the other as ClientCompatRequest, and are answered in any order by ClientCompatResponse
// (connectrpc/conformance/v1/client_compat.proto).

// The enum numbers of config.proto that the client uses.
const (
	compressionGzip      = 2
	streamClient         = 2
	streamFullDuplexBidi = 5
)

// testCase is what of a ClientCompatRequest matters.
type testCase struct {
	name             string
	compression      uint64
	host             string
	port             uint64
	serverCert       []byte
	cert, key        []byte
	receiveLimit     uint64
	service, method  string
	streamType       uint64
	header           metadata.MD
	messages         [][]byte
	timeout          time.Duration // -1 for none
	requestDelay     time.Duration
	cancelBeforeEnd  bool          // before the half-close
	cancelAfterEnd   time.Duration // after it; -1 for not
	cancelAfterCount uint64        // after so many responses; 0 for not
}

// result is what of a ClientResponseResult is told.
type result struct {
	header, trailer metadata.MD
	payloads        [][]byte
	err             error
	unsent          int
}

// runClient answers requests until in ends.
func runClient(ctx context.Context, in io.Reader, out io.Writer) error {
	var mu sync.Mutex // of out and failed
	var failed error
	var wg sync.WaitGroup
	defer wg.Wait()
	room := make(chan struct{}, 4*runtime.GOMAXPROCS(0))
	for {
		b, err := readDelimited(in)
		if err == io.EOF {
			wg.Wait()
			return failed
		}
		if err != nil {
			return err
		}
		tc, err := parseTestCase(b)
		if err != nil {
			return err
		}
		room <- struct{}{}
		wg.Go(func() {
			defer func() { <-room }()
			r, err := tc.run(ctx)
			mu.Lock()
			defer mu.Unlock()
			if err := writeDelimited(out, response(tc.name, r, err)); err != nil {
				failed = err
			}
		})
	}
}

// run makes the call. An error is that it could not be made at all.
func (tc *testCase) run(ctx context.Context) (*result, error) {
	addr := net.JoinHostPort(tc.host, strconv.FormatUint(tc.port, 10))
	cfg := h2client.Config{Authority: addr, MaxMessageBytes: int(tc.receiveLimit), AcceptEncoding: "gzip"}
	if len(tc.serverCert) > 0 {
		t := &tls.Config{RootCAs: x509.NewCertPool(), MinVersion: tls.VersionTLS12}
		if !t.RootCAs.AppendCertsFromPEM(tc.serverCert) {
			return nil, errors.New("the server's certificate is not PEM")
		}
		if len(tc.cert) > 0 {
			pair, err := tls.X509KeyPair(tc.cert, tc.key)
			if err != nil {
				return nil, err
			}
			t.Certificates = []tls.Certificate{pair}
		}
		cfg.Handshake = h2client.ClientTLS(t, tc.host)
	}
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	conn, err := h2client.New(ctx, raw, cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if tc.timeout >= 0 {
		ctx, cancel = context.WithTimeout(ctx, tc.timeout)
		defer cancel()
	}
	md := tc.header
	if tc.compression == compressionGzip {
		md["grpc-encoding"] = []string{"gzip"}
	}
	path := "/" + tc.service + "/" + tc.method
	if tc.method == "Unary" || tc.method == "Unimplemented" {
		return tc.unary(ctx, cancel, conn, path, md)
	}
	return tc.stream(ctx, cancel, conn, path, md)
}

func (tc *testCase) unary(ctx context.Context, cancel context.CancelFunc, conn *h2client.Conn, path string, md metadata.MD) (*result, error) {
	if len(tc.messages) != 1 {
		return nil, fmt.Errorf("a unary call with %d messages", len(tc.messages))
	}
	m, err := tc.encode(tc.messages[0])
	if err != nil {
		return nil, err
	}
	if err := pause(ctx, tc.requestDelay); err != nil {
		return nil, err
	}
	if tc.cancelAfterEnd >= 0 {
		timer := time.AfterFunc(tc.cancelAfterEnd, cancel)
		defer timer.Stop()
	}
	var reply h2client.Reply
	r := &result{}
	r.err = conn.Unary(ctx, path, md, m, &reply)
	r.header, r.trailer = reply.Header, reply.Trailer
	if r.err == nil {
		r.err = r.take(reply.Message, reply.Encoding)
	}
	return r, nil
}

func (tc *testCase) stream(ctx context.Context, cancel context.CancelFunc, conn *h2client.Conn, path string, md metadata.MD) (*result, error) {
	s, err := conn.NewStream(ctx, path, md)
	if err != nil {
		return &result{err: err}, nil
	}
	defer s.Close()
	r := &result{}
	receive := func() (err error) {
		m, err := s.Recv()
		if err != nil {
			return err
		}
		if err := r.take(m, s.Encoding()); err != nil {
			return err
		}
		if n := tc.cancelAfterCount; n > 0 && len(r.payloads) == int(n) {
			cancel()
		}
		return nil
	}
	for i, b := range tc.messages {
		if err = pause(ctx, tc.requestDelay); err != nil {
			break
		}
		m, encodeErr := tc.encode(b)
		if encodeErr != nil {
			return nil, encodeErr
		}
		if s.Send(m, false) != nil { // the call has ended, as receiving tells
			r.unsent = len(tc.messages) - i
			break
		}
		if tc.streamType == streamFullDuplexBidi {
			if err = receive(); err != nil {
				r.unsent = len(tc.messages) - i - 1
				break
			}
		}
	}
	if tc.cancelBeforeEnd {
		cancel()
	}
	if err == nil {
		_ = s.CloseSend() // receiving tells
		if tc.cancelAfterEnd >= 0 {
			timer := time.AfterFunc(tc.cancelAfterEnd, cancel)
			defer timer.Stop()
		}
	}
	for err == nil {
		err = receive()
	}
	if err != io.EOF {
		r.err = err
	}
	if tc.streamType == streamClient {
		// A connection leaves it to who makes the call how many answers there must be.
		if r.err == nil && len(r.payloads) != 1 {
			r.err = status.Errorf(codes.Unimplemented, "%d answers to a call that wants one", len(r.payloads))
		}
		if r.err != nil {
			r.payloads = nil
		}
	}
	r.header, _ = s.Header()
	r.trailer = s.Trailer()
	return r, nil
}

// pause waits for d unless ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

// encode makes a message as the call's encoding wants it.
func (tc *testCase) encode(b []byte) (h2client.Message, error) {
	if tc.compression != compressionGzip {
		return h2client.Message{Data: mem.BufferSlice{mem.SliceBuffer(b)}}, nil
	}
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	if _, err := w.Write(b); err != nil {
		return h2client.Message{}, err
	}
	if err := w.Close(); err != nil {
		return h2client.Message{}, err
	}
	return h2client.Message{Data: mem.BufferSlice{mem.SliceBuffer(z.Bytes())}, Compressed: true}, nil
}

// take adds the payload of an answer, which is the first field of every message of the suite's service.
func (r *result) take(m h2client.Message, encoding string) error {
	defer m.Free()
	if m.Compressed {
		var err error
		if m.Data, err = lbhost.Decompress(m.Data, encoding, 64<<20); err != nil {
			return err
		}
	}
	payload := []byte{}
	err := eachField(m.Data.Materialize(), func(num protowire.Number, v []byte, _ uint64) error {
		if num == 1 {
			payload = v
		}
		return nil
	})
	r.payloads = append(r.payloads, payload)
	return err
}

// response is a ClientCompatResponse.
func response(name string, r *result, err error) []byte {
	b := appendBytes(nil, 1, []byte(name))
	if err != nil {
		return appendBytes(b, 3, appendBytes(nil, 1, []byte(err.Error())))
	}
	var in []byte
	in = appendHeaders(in, 1, r.header)
	for _, p := range r.payloads {
		in = appendBytes(in, 2, p)
	}
	if r.err != nil {
		st := status.Convert(r.err).Proto()
		e := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), uint64(st.GetCode()))
		e = appendBytes(e, 2, []byte(st.GetMessage()))
		for _, d := range st.GetDetails() {
			a := appendBytes(nil, 1, []byte(d.GetTypeUrl()))
			e = appendBytes(e, 3, appendBytes(a, 2, d.GetValue()))
		}
		in = appendBytes(in, 3, e)
	}
	in = appendHeaders(in, 4, r.trailer)
	if r.unsent > 0 {
		in = protowire.AppendVarint(protowire.AppendTag(in, 5, protowire.VarintType), uint64(r.unsent))
	}
	return appendBytes(b, 2, in)
}

func appendBytes(b []byte, num protowire.Number, v []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), v)
}

// appendHeaders writes metadata as the suite's headers, in which binary values are in base64.
func appendHeaders(b []byte, num protowire.Number, md metadata.MD) []byte {
	for key, values := range md {
		h := appendBytes(nil, 1, []byte(key))
		for _, v := range values {
			if strings.HasSuffix(key, "-bin") {
				v = base64.RawStdEncoding.EncodeToString([]byte(v))
			}
			h = appendBytes(h, 2, []byte(v))
		}
		b = appendBytes(b, num, h)
	}
	return b
}

func parseTestCase(b []byte) (*testCase, error) {
	tc := &testCase{timeout: -1, cancelAfterEnd: -1, header: metadata.MD{}}
	err := eachField(b, func(num protowire.Number, v []byte, n uint64) error {
		switch num {
		case 1:
			tc.name = string(v)
		case 5:
			tc.compression = n
		case 6:
			tc.host = string(v)
		case 7:
			tc.port = n
		case 8:
			tc.serverCert = v
		case 9:
			return eachField(v, func(num protowire.Number, v []byte, _ uint64) error {
				switch num {
				case 1:
					tc.cert = v
				case 2:
					tc.key = v
				}
				return nil
			})
		case 10:
			tc.receiveLimit = n
		case 11:
			tc.service = string(v)
		case 12:
			tc.method = string(v)
		case 13:
			tc.streamType = n
		case 15:
			return tc.parseHeader(v)
		case 16:
			message := []byte{}
			err := eachField(v, func(num protowire.Number, v []byte, _ uint64) error {
				if num == 2 {
					message = v
				}
				return nil
			})
			tc.messages = append(tc.messages, message)
			return err
		case 17:
			tc.timeout = time.Duration(n) * time.Millisecond
		case 18:
			tc.requestDelay = time.Duration(n) * time.Millisecond
		case 19:
			return eachField(v, func(num protowire.Number, _ []byte, n uint64) error {
				switch num {
				case 1:
					tc.cancelBeforeEnd = true
				case 2:
					tc.cancelAfterEnd = time.Duration(n) * time.Millisecond
				case 3:
					tc.cancelAfterCount = n
				}
				return nil
			})
		}
		return nil
	})
	return tc, err
}

func (tc *testCase) parseHeader(b []byte) error {
	var key string
	var values []string
	err := eachField(b, func(num protowire.Number, v []byte, _ uint64) error {
		switch num {
		case 1:
			key = strings.ToLower(string(v))
		case 2:
			values = append(values, string(v))
		}
		return nil
	})
	for _, v := range values {
		if strings.HasSuffix(key, "-bin") {
			raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(v, "="))
			if err != nil {
				return err
			}
			v = string(raw)
		}
		tc.header[key] = append(tc.header[key], v)
	}
	return err
}
