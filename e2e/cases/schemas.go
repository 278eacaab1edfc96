package cases

import (
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

// Schema is a change to the rules of cases.v1.Cases with which a gateway must not start, or must.
type Schema struct {
	// Number and Rule are those of a [Case].
	Number int
	Rule   string
	// HTTP has google.api.http in text format by the method's name.
	HTTP map[string]string
	// Want must be in the refusal of transom. If it is empty, the schema must be taken.
	Want string
}

// Title says what must come of the schema.
func (s Schema) Title() string {
	if s.Want == "" {
		return "taken: " + s.Rule
	}
	return "refused at start: " + s.Rule
}

// Check returns what is wrong with the outcome of loading the schema: whether it was taken, and no more.
func (s Schema) Check(err error) error {
	if s.Want == "" {
		return err
	}
	if err == nil {
		return errors.New("it is taken")
	}
	return nil
}

// Schemas returns all, by number.
func Schemas() []Schema {
	get := func(n int, rule, http, want string) Schema {
		return Schema{n, rule, map[string]string{"GetItem": http}, want}
	}
	template := func(path, want string) Schema {
		return get(23, "template "+path, fmt.Sprintf("get: %q", path), want)
	}
	return []Schema{
		{22, "one template twice", map[string]string{"GetItem": `get: "/x/{id}"`, "Query": `get: "/x/{id}"`}, "cases.v1.Cases.Query"},
		{22, "one template twice, its variables named otherwise", map[string]string{"GetItem": `get: "/x/{id}"`, "Query": `get: "/x/{name}"`}, "cases.v1.Cases.GetItem"},
		template("/a/**/*", "column 7"),
		template("/{id}a", "column 6"),
		template("/a/{id=/b}", "column 8"),
		template("/:verb", "column 2"),
		template("/a//b", "column 4"),
		template("/a/", "column 3"),
		template("/*:", "column 4"),
		template("/{id={name}}", "column 6"),
		template("/{id}/{id}", `"id" appears twice`),
		get(24, "a variable that is no field", `get: "/{nope}"`, `no field "nope"`),
		get(24, "a variable that is a list", `get: "/{tags}"`, "repeated field"),
		get(24, "a variable that is a map", `get: "/{labels}"`, "map field"),
		get(24, "a variable that is a message", `get: "/{sub}"`, "message of type cases.v1.Item"),
		get(28, "a literal that is not ASCII and not escaped", `get: "/th\u00e9/{id}"`, ""),
		get(29, "a binding of an additional binding", `get: "/a" additional_bindings: {get: "/b" additional_bindings: {get: "/c"}}`, "additional_bindings of its own"),
		get(30, "a body within a field", `post: "/a" body: "sub.name"`, "not a nested one"),
		get(30, "a body that is no field", `post: "/a" body: "nope"`, `no field "nope"`),
		get(30, "an answer within a field", `get: "/a" response_body: "sub.name"`, "not a nested one"),
		get(30, "an answer that is no field", `get: "/a" response_body: "nope"`, `no field "nope"`),
	}
}

// DescriptorSet returns cases.v1 with these rules.
func (s Schema) DescriptorSet() *descriptorpb.FileDescriptorSet {
	set := DescriptorSet()
	for _, f := range set.GetFile() {
		for _, svc := range f.GetService() {
			for _, m := range svc.GetMethod() {
				text, ok := s.HTTP[m.GetName()]
				if !ok {
					continue
				}
				rule := &annotations.HttpRule{}
				if err := prototext.Unmarshal([]byte(text), rule); err != nil {
					panic(fmt.Sprintf("cases: %q: %v", text, err)) // the table is right by its test
				}
				m.Options = proto.CloneOf(m.GetOptions())
				proto.SetExtension(m.Options, annotations.E_Http, rule)
			}
		}
	}
	return set
}
