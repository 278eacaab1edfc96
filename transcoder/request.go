package transcoder

import (
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"transom/descriptors"
	"transom/transcoder/codec"
)

// AppendRequest appends the request message of a call by HTTP rule: what the body holds, then the query, then the path
// variables. What the path sets cannot be set otherwise: a parameter that tries is refused, and in the wire form the path
// comes last, so that it wins over the body. rawQuery is without the question mark; contentType is the Content-Type
// field, "" if there is none; body is the whole body, decompressed.
//
// Errors are InvalidArgument and name the parameter or, for JSON, path, line and column, in the message and as the field
// of a google.rpc.BadRequest; a media type that the rule cannot take is an HTTPError 415. It does not allocate when dst
// has room and what path and query set is scalars.
func (p *Plan) AppendRequest(dst []byte, m *descriptors.Match, rawQuery, contentType string, body []byte) ([]byte, error) {
	b := p.plans.bindings[m.Binding.ID]
	form, err := p.formOf(b, contentType)
	if err != nil {
		return dst, err
	}
	if form.kind == notForm {
		if dst, err = p.appendBody(dst, b, contentType, body); err != nil {
			return dst, err
		}
	}
	fill := b.mask != nil && form.kind == notForm && len(body) > 0
	if rawQuery != "" || form.kind != notForm {
		masked := false
		if dst, masked, err = p.appendParams(dst, b, rawQuery, form, body); err != nil {
			return dst, err
		}
		fill = fill && !masked
	}
	if fill {
		if dst, err = p.appendMask(dst, b, body); err != nil {
			return dst, err
		}
	}
	return p.appendPath(dst, b, m)
}

// AppendQueryAndPath appends the part of the request message that query and path make. On a stream of requests it goes
// into the first message, behind the part that AppendBody makes.
func (p *Plan) AppendQueryAndPath(dst []byte, m *descriptors.Match, rawQuery string) ([]byte, error) {
	b := p.plans.bindings[m.Binding.ID]
	if rawQuery != "" {
		var err error
		if dst, _, err = p.appendParams(dst, b, rawQuery, form{}, nil); err != nil {
			return dst, err
		}
	}
	return p.appendPath(dst, b, m)
}

// AppendBody appends the part of a request message that a body, or one JSON value of a stream of them, makes. Errors are
// those of AppendRequest.
func (p *Plan) AppendBody(dst []byte, b *descriptors.Binding, contentType string, body []byte) ([]byte, error) {
	c := p.plans.bindings[b.ID]
	form, err := p.formOf(c, contentType)
	if err != nil {
		return dst, err
	}
	if form.kind != notForm {
		dst, _, err = p.appendParams(dst, c, "", form, body)
		return dst, err
	}
	return p.appendBody(dst, c, contentType, body)
}

// AppendMessage appends the request message given as JSON. An empty text is the empty message. A fault of the text is
// InvalidArgument with path, line and column.
func (p *Plan) AppendMessage(dst, text []byte) ([]byte, error) {
	if len(text) == 0 {
		return dst, nil
	}
	dst, err := p.in.AppendWire(dst, text, &p.plans.options.JSON)
	if err != nil {
		return dst, bodyFault("", err)
	}
	return dst, nil
}

// appendBody appends what a body that is not a form makes.
func (p *Plan) appendBody(dst []byte, b *binding, contentType string, body []byte) ([]byte, error) {
	switch {
	case b.Body == descriptors.BodyNone:
		return dst, nil // a body without a rule for it has no meaning and is never parsed
	case b.raw.Request:
		return b.appendHTTPBody(dst, contentType, body), nil
	case len(body) == 0:
		return dst, nil
	case b.body == nil:
		return p.AppendMessage(dst, body)
	}
	dst, err := b.bodyCodec.AppendWire(dst, body, &p.plans.options.JSON)
	if err != nil {
		return dst, bodyFault(string(b.BodyField.Name()), err)
	}
	return dst, nil
}

// appendParams appends what a query and a form make. body is the whole body, whatever its kind.
func (p *Plan) appendParams(dst []byte, b *binding, rawQuery string, f form, body []byte) (_ []byte, masked bool, err error) {
	r := paramReader{plan: p, binding: b}
	if t := b.body; t != nil && t.oneof > 0 && len(body) > 0 {
		r.claim(claim{oneofKey(rootKey, t.oneof), t.desc.Number()})
	}
	switch f.kind {
	case notForm:
	case urlForm:
		s := r.formScope()
		dst, err = r.read(dst, stringOf(body), &s)
	case multipartForm:
		dst, err = r.readMultipart(dst, f.boundary, body)
	}
	if err == nil && rawQuery != "" {
		s := r.queryScope()
		dst, err = r.read(dst, rawQuery, &s)
	}
	return dst, r.masked, err
}

// appendPath appends what the path variables say.
func (p *Plan) appendPath(dst []byte, b *binding, m *descriptors.Match) ([]byte, error) {
	for i := range b.vars {
		v := &b.vars[i]
		start := len(dst)
		var err error
		if dst, err = v.leaf.appendText(v.leaf.reset(dst), m.Value(i)); err != nil {
			return dst, paramFault("path variable", b.Vars[i].Name, err)
		}
		dst = nest(dst, start, v.parents)
	}
	return dst, nil
}

// appendMask appends the field mask of a PATCH that gives none: the paths that its body sets, but for those that the
// template sets anyway.
func (p *Plan) appendMask(dst []byte, b *binding, body []byte) ([]byte, error) {
	paths, err := b.bodyMessage.AppendMaskPaths(nil, body, &p.plans.options.JSON)
	if err != nil {
		return dst, bodyFault(string(b.BodyField.Name()), err)
	}
	start := len(dst)
	for _, path := range paths {
		if slices.Contains(b.unmasked, path) {
			continue
		}
		dst = protowire.AppendTag(dst, 1, protowire.BytesType)
		dst = protowire.AppendString(dst, path)
	}
	return b.mask.shut(dst, start), nil
}

// form says whether a body is a form.
type form struct {
	kind     formKind
	boundary string // of a multipartForm
}

type formKind uint8

const (
	notForm       formKind = iota // JSON, or bytes as they are
	urlForm                       // application/x-www-form-urlencoded
	multipartForm                 // multipart/form-data (RFC 7578)
)

const (
	typeURLForm       = "application/x-www-form-urlencoded"
	typeMultipartForm = "multipart/form-data"
)

// formOf says how the rule takes a body of this type. A type that it takes in no way is an HTTPError 415: text/plain
// above all, which a page of any origin may send unasked (CSRF), and forms, of which the same holds, unless the options
// allow them. A body without a type is JSON.
func (p *Plan) formOf(b *binding, contentType string) (form, error) {
	if contentType == "" || contentType == "application/json" || b.Body == descriptors.BodyNone || b.raw.Request && !p.forms {
		return form{}, nil
	}
	t, params, err := mime.ParseMediaType(contentType)
	switch {
	case b.raw.Request && t != typeMultipartForm:
		return form{}, nil
	case err != nil:
		return form{}, unsupported(contentType, "it is malformed")
	}
	if c := params["charset"]; c != "" && !strings.EqualFold(c, "utf-8") && !strings.EqualFold(c, "us-ascii") {
		return form{}, unsupported(contentType, "text must be in UTF-8")
	}
	switch {
	case t == "application/json", strings.HasPrefix(t, "application/") && strings.HasSuffix(t, "+json"):
		return form{}, nil
	case b.Method.ClientStreams && (t == "application/x-ndjson" || t == "application/jsonl" || t == "application/json-lines"):
		return form{}, nil
	case t != typeURLForm && t != typeMultipartForm:
		return form{}, unsupported(contentType, "send application/json")
	case !p.forms:
		return form{}, unsupported(contentType, "this method takes no forms, send application/json")
	case b.body != nil && b.bodyMessage == nil && !b.raw.Request:
		return form{}, unsupported(contentType, "the body is one value, send it as application/json")
	case t == typeURLForm:
		return form{kind: urlForm}, nil
	case params["boundary"] == "":
		return form{}, unsupported(contentType, "it has no boundary")
	}
	return form{multipartForm, params["boundary"]}, nil
}

// IsForm reports whether contentType is that of an HTML form, which a page of any origin may send with the user's cookies.
func IsForm(contentType string) bool {
	return isType(contentType, typeURLForm) || isType(contentType, typeMultipartForm)
}

// isType reports whether contentType is the media type t, with any parameters.
func isType(contentType, t string) bool {
	got, _, _ := strings.Cut(contentType, ";")
	return strings.EqualFold(strings.TrimSpace(got), t)
}

// Forms reports whether the method takes HTML forms. A listener must then refuse forms sent from other origins.
func (p *Plan) Forms() bool { return p.forms }

func unsupported(contentType, why string) error {
	return HTTPError(http.StatusUnsupportedMediaType, codes.InvalidArgument,
		fmt.Sprintf("content type %q is not supported: %s", clip(contentType), why))
}

// invalid is an InvalidArgument status with the field as a google.rpc.BadRequest detail.
func invalid(field, description, message string) error {
	st := status.New(codes.InvalidArgument, message)
	with, err := st.WithDetails(&errdetails.BadRequest{FieldViolations: []*errdetails.BadRequest_FieldViolation{
		{Field: field, Description: description},
	}})
	if err != nil {
		return st.Err()
	}
	return with.Err()
}

// paramFault is the error for a path variable or parameter of this name.
func paramFault(kind, name string, err error) error {
	name = clip(strings.ToValidUTF8(name, "�"))
	return invalid(name, err.Error(), fmt.Sprintf("%s %q: %v", kind, name, err))
}

// bodyFault is the error for a fault in the body; prefix is the field that the body holds.
func bodyFault(prefix string, err error) error {
	e, ok := errors.AsType[*codec.Error](err)
	if !ok {
		return err
	}
	field := e.Path
	if prefix != "" && field != "" && field[0] != '[' {
		field = prefix + "." + field
	} else {
		field = prefix + field
	}
	return &bodyError{invalid(field, e.Msg, "body: "+e.Error()), field, e}
}

// bodyError is a fault of the text of a body.
type bodyError struct {
	error
	field string
	fault *codec.Error
}

func (e *bodyError) Unwrap() error { return e.error }

// GRPCStatus is what the client is told.
func (e *bodyError) GRPCStatus() *status.Status { return status.Convert(e.error) }

// InStream is err, a fault that AppendRequest or AppendBody found in message n, from 1, of a body of several, with that number and
// with the place in the body. lines and column are the lines, and the characters of the line, before the message.
func InStream(err error, n, lines, column int) error {
	e, ok := errors.AsType[*bodyError](err)
	if !ok {
		return err
	}
	at := *e.fault
	if at.Line == 1 {
		at.Column += column
	}
	if at.Line > 0 {
		at.Line += lines
	}
	return invalid(e.field, at.Msg, fmt.Sprintf("body, message %d: %v", n, &at))
}

// QueryFault is the error for a query parameter, of this name, that cannot be obeyed.
func QueryFault(name string, why error) error { return paramFault("query parameter", name, why) }
