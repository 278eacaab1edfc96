// Package cases is a table of requests to a REST gateway in front of a gRPC server, with the answer that each must get: the
// corners of google/api/http.proto, ProtoJSON, gRPC and HTTP in which gateways differ. It knows no gateway. A test runs the
// table against transom, and e2e/compare against others.
//
// # Cases
// A [Case] has the number of the rule it belongs to; docs/transcoding.md and the unit tests refer to the same numbers. What a
// gateway must refuse to load is in [Schemas].
// What is asked of a gateway is style-neutral where the rules leave a choice: what the backend received, the HTTP status, and
// the answer read back as a message.
//
// # Concurrency
// A [Client] and its [Backend] run one case at a time.
package cases

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/e2e/cases/casespb"
)

// MaxBody is the size of a request body, in bytes, that gateways are told to allow.
const MaxBody = 1 << 20

// Origin is the web page's origin that gateways are told to allow by CORS, if they can be.
const Origin = "https://app.example"

// patience is how long an answer may take. Some gateways never give one.
const patience = 10 * time.Second

// Case is one request and the answers that it may get.
type Case struct {
	// Number is that of the rule; several cases may show one.
	Number int
	// Rule says what must hold.
	Rule string
	// Extras asks for a gateway with options on that are beyond the rules: maps in the query.
	Extras bool

	Verb, Path string
	// Header has "Name: value" lines. A request with a body is application/json unless a line says otherwise; one that says
	// "Content-Type: " has none.
	Header []string
	Body   string
	// Chunked sends the body without a Content-Length.
	Chunked bool
	// Leave ends the request once the backend is called, which must then see the call end.
	Leave bool
	// Stall leaves the answer unread until the backend cannot send any more, then reads on for a while and leaves.
	Stall bool

	Reply Reply
	// Want is the answer; Or are others that the rule allows. Transom gives Want.
	Want Want
	Or   []Want
}

// Want is what must hold of an answer. What is zero is not looked at.
type Want struct {
	// Code is the HTTP status. From 400 on, and unless Called, the backend must not have got a message.
	Code   int
	Called bool
	// RPC is the google.rpc.Code in the body.
	RPC int
	// Method is what must have been called at the backend, with the messages Got in text format.
	Method string
	Got    []string
	// Metadata has "name: value" lines that the backend must have seen, and with no value names that it must not.
	Metadata []string
	// Item is the message that the body is, in text format; it is looked at unless empty.
	Item string
	// Body is the body exactly.
	Body *string
	// Has and Hasnt must and must not be in the body, from which white space between JSON tokens is dropped.
	Has, Hasnt []string
	// Header has "Name: value" lines of the answer, of which the value must be part, and with no value names that it must not
	// have.
	Header []string
	// Cut wants the connection to end within the body.
	Cut bool
	// Check is what else must hold.
	Check func(Answer) error
}

// Answer is what came back.
type Answer struct {
	Code   int
	Header http.Header
	Body   []byte
	// Err is why the body ended early.
	Err   error
	Calls []Call
}

// Client sends cases to one gateway.
type Client struct {
	// Backend is what the gateway forwards to.
	Backend *Backend
	// Gateway is its host:port.
	Gateway   string
	Transport *http.Transport
}

// NewClient returns a client that speaks HTTP/1.1.
func NewClient(b *Backend, gateway string) *Client {
	tr := &http.Transport{Protocols: new(http.Protocols), DisableCompression: true, DialContext: (&net.Dialer{Timeout: patience}).DialContext}
	tr.Protocols.SetHTTP1(true)
	return &Client{Backend: b, Gateway: gateway, Transport: tr}
}

// Close drops the connections.
func (c *Client) Close() { c.Transport.CloseIdleConnections() }

// Run sends tc and returns why the answer is wrong: by Want, and by all that the rule allows.
func (c *Client) Run(ctx context.Context, tc Case) (strict, lenient error) {
	a, err := c.do(ctx, tc)
	if err != nil {
		return err, err
	}
	strict = tc.Want.check(a)
	if a.Err != nil && a.Code >= http.StatusBadRequest && json.Valid(a.Body) {
		a.Err = nil // the error is whole, though the connection was dropped after it
	}
	lenient = tc.Want.check(a)
	for _, w := range tc.Or {
		if lenient != nil && w.check(a) == nil {
			lenient = nil
		}
	}
	return strict, lenient
}

func (c *Client) do(ctx context.Context, tc Case) (Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	c.Backend.set(tc.Reply)
	var body io.Reader
	if tc.Body != "" || tc.Verb == http.MethodPost || tc.Verb == http.MethodPatch {
		body = strings.NewReader(tc.Body)
		if tc.Chunked {
			body = io.MultiReader(body)
		}
	}
	req, err := http.NewRequestWithContext(ctx, tc.Verb, "http://"+c.Gateway, body)
	if err != nil {
		return Answer{}, err
	}
	req.URL.Opaque = "//" + c.Gateway + tc.Path // as it is, valid or not
	if tc.Body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, line := range tc.Header {
		k, v, _ := strings.Cut(line, ": ")
		if k = http.CanonicalHeaderKey(k); k == "Content-Type" {
			req.Header.Del(k)
		}
		if v != "" {
			req.Header.Add(k, v)
		}
	}
	if tc.Leave {
		return c.leave(ctx, req)
	}
	if tc.Stall {
		return c.stall(ctx, req)
	}
	resp, err := c.Transport.RoundTrip(req)
	if err != nil {
		return Answer{}, fmt.Errorf("no answer: %w", err)
	}
	a := Answer{Code: resp.StatusCode, Header: resp.Header}
	a.Body, a.Err = io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	a.Calls = c.Backend.take()
	return a, nil
}

// leave sends req, ends it when the backend has begun, and waits for the backend to see it. The answer is empty.
func (c *Client) leave(ctx context.Context, req *http.Request) (Answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if resp, err := c.Transport.RoundTrip(req.WithContext(ctx)); err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
	}()
	limit := time.After(patience / 2)
	select {
	case <-c.Backend.begun:
	case <-limit:
		return Answer{}, errors.New("the backend was not called")
	}
	cancel()
	<-ended
	select {
	case <-c.Backend.ended:
		return Answer{}, nil
	case <-limit:
		return Answer{}, errors.New("the client left, and the backend was not told")
	}
}

// Of an endless answer that nobody reads, at most maxUnread bytes may be on their way; the backend stands still when it has
// sent nothing for stillness.
const (
	maxUnread = 64 << 20
	stillness = 300 * time.Millisecond
)

// stall asks for an endless answer and does not read it until the backend stands still, reads a part of it, and leaves.
func (c *Client) stall(ctx context.Context, req *http.Request) (Answer, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := c.Transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return Answer{}, fmt.Errorf("no answer: %w", err)
	}
	defer resp.Body.Close()
	select {
	case <-c.Backend.begun:
	default:
		return Answer{}, errors.New("the backend was not called")
	}
	tick := time.NewTicker(stillness)
	defer tick.Stop()
	for before := int64(-1); ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return Answer{}, fmt.Errorf("the backend still sends, after %d bytes that nobody read", before)
		}
		now := c.Backend.sent.Load()
		if now > maxUnread {
			return Answer{}, fmt.Errorf("the backend could send %d bytes that nobody read", now)
		}
		if now > 0 && now == before {
			break
		}
		before = now
	}
	if _, err := io.CopyN(io.Discard, resp.Body, maxUnread); err != nil {
		return Answer{}, fmt.Errorf("the stream does not go on: %w", err)
	}
	cancel()
	select {
	case <-c.Backend.ended:
		return Answer{Code: resp.StatusCode, Header: resp.Header}, nil
	case <-time.After(patience / 2):
		return Answer{}, errors.New("the client left, and the backend was not told")
	}
}

// check returns what is wrong with a, or nil.
func (w Want) check(a Answer) error {
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if w.Code != 0 && a.Code != w.Code {
		wrong("HTTP %d, not %d", a.Code, w.Code)
	}
	if (a.Err != nil) != w.Cut {
		wrong("the body ended with %v", a.Err)
	}
	w.checkCalls(a.Calls, wrong)
	text := string(a.Body)
	var compact bytes.Buffer
	if json.Compact(&compact, a.Body) == nil {
		text = compact.String()
	}
	if w.RPC != 0 {
		var st struct {
			Code int `json:"code"`
		}
		if err := json.Unmarshal(a.Body, &st); err != nil || st.Code != w.RPC {
			wrong("the body has not code %d", w.RPC)
		}
	}
	if w.Item != "" {
		want, got := item(w.Item), &casespb.Item{}
		if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(a.Body, got); err != nil {
			wrong("the answer is no item: %v", err)
		} else if !proto.Equal(got, want) {
			wrong("the answer is %v, not %v", got, want)
		}
	}
	if w.Body != nil && string(a.Body) != *w.Body {
		wrong("the body is not %q", *w.Body)
	}
	for _, s := range w.Has {
		if !strings.Contains(text, s) {
			wrong("no %q in the body", s)
		}
	}
	for _, s := range w.Hasnt {
		if strings.Contains(text, s) {
			wrong("%q in the body", s)
		}
	}
	for _, line := range w.Header {
		k, v, _ := strings.Cut(line, ": ")
		got, ok := a.Header[http.CanonicalHeaderKey(k)]
		if v == "" && ok || v != "" && !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, v) }) {
			wrong("header %s is %q, not %q", k, got, v)
		}
	}
	if w.Check != nil {
		if err := w.Check(a); err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("%w; answer %d %.300s", errors.Join(errs...), a.Code, text)
}

// checkCalls compares what the backend saw.
func (w Want) checkCalls(calls []Call, wrong func(string, ...any)) {
	if w.Code >= 400 && !w.Called && w.Method == "" && len(calls) > 0 && len(calls[0].Items) > 0 {
		wrong("the backend was called: %s %v", calls[0].Method, calls[0].Items)
	}
	if w.Method == "" && len(w.Metadata) == 0 {
		return
	}
	if len(calls) != 1 {
		wrong("the backend got %d calls, not one", len(calls))
		return
	}
	got := calls[0]
	if w.Method != "" {
		if got.Method != w.Method {
			wrong("%s was called, not %s", got.Method, w.Method)
		}
		if len(got.Items) != len(w.Got) {
			wrong("the backend got %d messages, not %d", len(got.Items), len(w.Got))
			return
		}
		for i, text := range w.Got {
			if want := item(text); !proto.Equal(got.Items[i], want) {
				wrong("the backend got %v, not %v", got.Items[i], want)
			}
		}
	}
	for _, line := range w.Metadata {
		k, v, _ := strings.Cut(line, ": ")
		have, ok := got.Header[http.CanonicalHeaderKey(k)]
		if v == "" && ok || v != "" && strings.Join(have, ",") != v {
			wrong("the backend saw %s %q, not %q", k, have, v)
		}
	}
}

// item parses text format; the table is right by its test.
func item(text string) *casespb.Item {
	m := &casespb.Item{}
	if err := prototext.Unmarshal([]byte(text), m); err != nil {
		panic(fmt.Sprintf("cases: %q: %v", text, err))
	}
	return m
}

// DescriptorSet returns cases.v1 with all that it imports, as protoc --include_imports writes it.
func DescriptorSet() *descriptorpb.FileDescriptorSet {
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
	add = func(f protoreflect.FileDescriptor) {
		if seen[f.Path()] {
			return
		}
		seen[f.Path()] = true
		for i := range f.Imports().Len() {
			add(f.Imports().Get(i).FileDescriptor)
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(f))
	}
	add(casespb.File_uploads_proto) // and cases.proto, which it imports
	return set
}
