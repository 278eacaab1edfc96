// Package transform changes calls on their way: metadata and message fields of requests towards backends, metadata, message
// fields and errors of answers towards clients. Messages are changed as they are on the wire, without decoding them.
//
// # Where in the chain
// [Response] is outermost, so that it sees every answer and refusal of the policies behind it and of the backend, cached ones
// too. [Request] comes right after authentication, whose findings it uses, and before everything that judges a request or
// remembers it: what access, limits, validation and cache see is what the backend gets. [Redact] is innermost, so that
// nothing that is redacted for everybody is ever cached.
//
// # Forced fields
// A forced field is appended to the message. Of several values of a singular field the last counts, and several values of
// a message field are merged (protobuf.dev/programming-guides/encoding, "Last One Wins"), so that no value that the client
// sent is left, be it of the field or of another member of its oneof. The message is checked first to end where a field
// ends, lest what is appended become part of an unfinished one.
//
// # Redaction
// A redacted field is left out by its number, whatever its type on the wire. A message that cannot be followed to the field
// ends its call with INTERNAL: nothing is passed on that could not be judged.
//
// # Concurrency
// Everything is immutable once made.
package transform

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/rpc"
)

// Fault is what is wrong with a part of a configuration.
type Fault struct {
	// Path leads to the part within its configuration, "set[x-user]".
	Path string
	Err  error
}

func (f *Fault) Error() string { return f.Path + ": " + f.Err.Error() }

func (f *Fault) Unwrap() error { return f.Err }

// follow finds the fields that a path, "account.owner.id", leads through from md. Lists and the values of maps are passed
// through if many is set, else all fields but the last are singular messages. With an error come the fields before it.
func follow(md protoreflect.MessageDescriptor, path string, many bool) ([]protoreflect.FieldDescriptor, error) {
	var fields []protoreflect.FieldDescriptor
	for name := range strings.SplitSeq(path, ".") {
		if md == nil {
			last := fields[len(fields)-1]
			return fields, rpc.NoField("%s: %s is no message, so there is no %s in it", path, last.FullName(), name)
		}
		fd := md.Fields().ByName(protoreflect.Name(name))
		if fd == nil {
			fd = md.Fields().ByJSONName(name)
		}
		if fd == nil {
			return fields, rpc.NoField("%s: %s has no field %q", path, md.FullName(), name)
		}
		if len(fields) > 0 && !many && fields[len(fields)-1].Cardinality() == protoreflect.Repeated {
			return fields, fmt.Errorf("%s: %s is a list or map", path, fields[len(fields)-1].FullName())
		}
		fields = append(fields, fd)
		if md = fd.Message(); fd.IsMap() {
			md = fd.MapValue().Message()
		}
	}
	return fields, nil
}
