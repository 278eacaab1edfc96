package gateway

import (
	"regexp"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// redactedText stands for a secret.
const redactedText = "REDACTED"

// userInfo is the name and password in a URL.
var userInfo = regexp.MustCompile(`://[^/@\s]+@`)

// redacted is a copy of m without secrets: of fields marked debug_redact, of those whose name says that they hold one, and
// of URLs with a password.
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
				case fd.MapValue().Message() != nil:
					redact(e.Message())
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
		case fd.Kind() == protoreflect.StringKind:
			m.Set(fd, redactValue(fd, v))
		case fd.Kind() == protoreflect.BytesKind && secret(fd):
			m.Set(fd, protoreflect.ValueOfBytes([]byte(redactedText)))
		}
		return true
	})
}

func redactValue(fd protoreflect.FieldDescriptor, v protoreflect.Value) protoreflect.Value {
	if secret(fd) {
		return protoreflect.ValueOfString(redactedText)
	}
	return protoreflect.ValueOfString(userInfo.ReplaceAllString(v.String(), "://"+redactedText+"@"))
}

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
