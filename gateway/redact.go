package gateway

import (
	"regexp"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// redactedText stands for a secret.
const redactedText = "REDACTED"

// redacted is a copy of m without secrets: of fields marked debug_redact, of those whose name says that they hold one, of metadata,
// request fields, headers and claims that are given a value, or compared with one, under such a name, there of credentials with their scheme, and of URLs with
// a password. Where a value came from ("${NAME}") nobody knows any more.
func redacted[M proto.Message](m M) M {
	c, _ := proto.Clone(m).(M)
	redact(c.ProtoReflect())
	return c
}

func redact(m protoreflect.Message) {
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				switch {
				case fd.FullName() == "google.protobuf.Struct.fields" && credential.MatchString(k.String()):
					v.Map().Set(k, protoreflect.ValueOfMessage(structpb.NewStringValue(redactedText).ProtoReflect()))
				case fd.MapValue().Message() != nil:
					redact(e.Message())
				case fd.MapValue().Kind() == protoreflect.StringKind && valued(fd) && credential.MatchString(k.String()):
					v.Map().Set(k, protoreflect.ValueOfString(redactedText))
				case fd.MapValue().Kind() == protoreflect.StringKind:
					v.Map().Set(k, redactValue(fd, e))
				}
				return true
			})
		case fd.IsList():
			for i := range v.List().Len() {
				switch {
				case fd.Message() != nil:
					redact(v.List().Get(i).Message())
				case fd.Kind() == protoreflect.StringKind:
					v.List().Set(i, redactValue(fd, v.List().Get(i)))
				}
			}
		case fd.Message() != nil:
			redact(v.Message())
		case credential.MatchString(nameOf(m, fd)):
			m.Set(fd, protoreflect.ValueOfString(redactedText))
		case fd.Kind() == protoreflect.StringKind:
			m.Set(fd, redactValue(fd, v))
		case fd.Kind() == protoreflect.BytesKind && secret(fd):
			m.Set(fd, protoreflect.ValueOfBytes([]byte(redactedText)))
		}
		return true
	})
}

// nameOf is the name of the metadata or request field that the field of m is the value of; "" for other fields.
func nameOf(m protoreflect.Message, fd protoreflect.FieldDescriptor) string {
	var by protoreflect.Name
	switch fd.FullName() {
	case "transom.config.v1.RequestField.value":
		by = "field"
	case "transom.config.v1.Condition.exact", "transom.config.v1.Condition.prefix":
		by = "header"
	default:
		return ""
	}
	return m.Get(m.Descriptor().Fields().ByName(by)).String()
}

func redactValue(fd protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	if secret(fd) {
		return protoreflect.ValueOfString(redactedText)
	}
	s := v.String()
	if valued(fd) {
		s = schemed.ReplaceAllString(s, "${1}"+redactedText)
	}
	return protoreflect.ValueOfString(userInfo.ReplaceAllString(s, "://"+redactedText+"@"))
}

// userInfo is the name and password in a URL.
var userInfo = regexp.MustCompile(`://[^/@\s]+@`)

// schemed is a credential behind its scheme, as authorization has it (RFC 7617, RFC 6750).
var schemed = regexp.MustCompile(`(?i)^((?:basic|bearer) +)\S.*`)

// valued reports whether the field holds whole values of metadata or headers, of fields of requests or of claims.
func valued(fd protoreflect.FieldDescriptor) bool {
	switch fd.FullName() {
	case "transom.config.v1.MetadataEdits.set", "transom.config.v1.MetadataEdits.add", "transom.config.v1.Security.response_headers",
		"transom.config.v1.RequestField.value", "transom.config.v1.Condition.exact", "google.protobuf.Value.string_value":
		return true
	}
	return false
}

// credential is the name of metadata, of a header, claim or field of a request that says that its value is a secret, by its last word:
// "authorization", "x-api-key", "auth.accessToken". Words run together count too, "x-authtoken"; a key is secret if the word before says
// so, which that of "x-partition-key" and "monkey" does not.
var credential = regexp.MustCompile(`(?i)(?:auth|authorization|cookie|credentials?|jwt|passphrase|passwd|password|secret|signature|token|` +
	`(?:access|admin|api|auth|encryption|functions|master|private|secret|session|shared|signing|subscription)[-_. ]?key)$`)

// secret reports whether a field holds secrets. Names of files are none.
func secret(fd protoreflect.FieldDescriptor) bool {
	if o, ok := fd.Options().(*descriptorpb.FieldOptions); ok && o.GetDebugRedact() {
		return true
	}
	name := string(fd.Name())
	if strings.HasSuffix(name, "_file") {
		return false
	}
	for _, s := range []string{"secret", "password", "passwords", "token", "api_keys"} {
		if name == s || strings.HasSuffix(name, "_"+s) {
			return true
		}
	}
	return false
}
