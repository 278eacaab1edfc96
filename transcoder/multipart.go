package transcoder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxParts limits the parts of a form, each of which costs a header to parse.
const maxParts = 1000

// readMultipart appends the records of all parts of a multipart/form-data body (RFC 7578), in order: text is a parameter,
// by the rules of the query, and a part with a file name is a bytes or google.api.HttpBody field. Where the body of the
// rule is itself an HttpBody the form has one part, the file.
func (r *paramReader) readMultipart(dst []byte, boundary string, body []byte) ([]byte, error) {
	const kind = "form part"
	if len(body) == 0 {
		return dst, nil
	}
	s := r.formScope()
	parts := multipart.NewReader(bytes.NewReader(body), boundary)
	for n := 0; ; n++ {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			return dst, nil
		}
		if err != nil {
			return dst, invalid("", "malformed multipart/form-data", fmt.Sprintf("body: malformed multipart/form-data in part %d", n+1))
		}
		name := part.FormName()
		switch {
		case n == maxParts:
			err = fmt.Errorf("more than %d parts", maxParts)
		case r.binding.raw.Request && n > 0:
			err = errOneFile
		case r.binding.raw.Request:
			dst, err = r.binding.appendFile(dst, part)
		case name == "":
			err = errNoName
		case part.FileName() != "":
			dst, err = r.file(dst, &s, name, part)
		default:
			var value []byte
			if value, err = appendAll(nil, part); err != nil {
				err = errPart
			} else {
				dst, err = r.param(dst, &s, name, stringOf(value))
			}
		}
		if err != nil {
			return dst, paramFault(kind, name, err)
		}
	}
}

// FormFile finds the file in an upload that is read piece by piece, where HTTPBody.Request and Forms hold: the only part of
// a multipart/form-data body, with its own content type; any other body is itself the file. What follows the part is
// found when the file has been read: another part is InvalidArgument then, and so is a body that is cut off.
func FormFile(contentType string, body io.Reader) (file io.Reader, fileType string, err error) {
	if !isType(contentType, typeMultipartForm) {
		return body, contentType, nil
	}
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil || params["boundary"] == "" {
		return nil, "", unsupported(contentType, "it has no boundary")
	}
	f := &formFile{parts: multipart.NewReader(body, params["boundary"])}
	if f.part, err = f.parts.NextPart(); err != nil {
		return nil, "", status.Error(codes.InvalidArgument, "body: malformed multipart/form-data, or no part in it")
	}
	return f, f.part.Header.Get("Content-Type"), nil
}

// formFile reads the only part of a form.
type formFile struct {
	parts *multipart.Reader
	part  *multipart.Part
}

// Read implements io.Reader.
func (f *formFile) Read(p []byte) (int, error) {
	n, err := f.part.Read(p)
	switch {
	case err == nil:
		return n, nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return n, paramFault("form part", f.part.FormName(), errPart)
	case err != io.EOF:
		return n, err
	}
	if _, err = f.parts.NextPart(); err == nil {
		return n, paramFault("form part", f.part.FormName(), errOneFile)
	}
	return n, io.EOF
}

var (
	errOneFile = errors.New("the body is one file, a form must have one part")
	errNoName  = errors.New("the part has no name")
	errNoFile  = errors.New("a file cannot be given for this field, only for bytes and google.api.HttpBody")
)

// file appends the record of a field that is given as a file.
func (r *paramReader) file(dst []byte, s *scope, name string, part *multipart.Part) ([]byte, error) {
	if r.leftOut(s, name) {
		return dst, nil
	}
	f, steps, key, err := r.find(s, name, nil)
	if err != nil || f == nil {
		return dst, err
	}
	if !f.raw && (f.form != formScalar || f.desc.Kind() != protoreflect.BytesKind) {
		return dst, errNoFile
	}
	if err = r.claimLeaf(f, key); err != nil {
		return dst, err
	}
	start := len(dst)
	if f.raw {
		dst, err = appendFile(dst, part)
	} else {
		dst, err = appendAll(dst, part)
	}
	if err != nil {
		return dst, errPart
	}
	return nest(f.shut(dst, start), start, steps), nil
}

var errPart = errors.New("the part is cut off or not encoded as its header says")

// appendFile appends the body of a rule that is an HttpBody.
func (b *binding) appendFile(dst []byte, part *multipart.Part) ([]byte, error) {
	start := len(dst)
	dst, err := appendFile(dst, part)
	if err != nil {
		return dst, errPart
	}
	if b.body != nil {
		dst = b.body.shut(dst, start)
	}
	return dst, nil
}

// appendFile appends the fields of a google.api.HttpBody.
func appendFile(dst []byte, part *multipart.Part) ([]byte, error) {
	if ct := part.Header.Get("Content-Type"); ct != "" {
		dst = protowire.AppendString(protowire.AppendTag(dst, httpBodyContentType, protowire.BytesType), strings.ToValidUTF8(ct, "�"))
	}
	start := len(dst)
	dst, err := appendAll(dst, part)
	return wrap(dst, start, httpBodyData), err
}

// appendAll appends what r has.
func appendAll(dst []byte, r io.Reader) ([]byte, error) {
	for {
		if len(dst) == cap(dst) {
			dst = append(dst, 0)[:len(dst)]
		}
		n, err := r.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		if err == io.EOF {
			return dst, nil
		}
		if err != nil {
			return dst, err
		}
	}
}
