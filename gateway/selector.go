package gateway

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	configv1 "transom/proto/transom/config/v1"
)

// selector is a parsed method selector: a full name ("bank.v1.Accounts.Get"), a name ending in ".*" (a package or
// service and all below it), or "*" (google.api.Service selectors).
type selector struct {
	name string // without the ".*"; "" for "*"
	all  bool   // ends in "*"
}

// parseSelector reads a selector.
func parseSelector(s string) (selector, error) {
	name, all := s, false
	if s == "*" {
		return selector{all: true}, nil
	}
	if rest, ok := strings.CutSuffix(s, ".*"); ok {
		name, all = rest, true
	}
	if !protoreflect.FullName(name).IsValid() {
		return selector{}, fmt.Errorf("selector %q: want *, package.*, package.Service.* or package.Service.Method", s)
	}
	return selector{name, all}, nil
}

// matches reports whether the selector takes in the method of that full name.
func (s selector) matches(method string) bool {
	if !s.all {
		return method == s.name
	}
	return s.name == "" || len(method) > len(s.name) && method[len(s.name)] == '.' && strings.HasPrefix(method, s.name)
}

// rank orders selectors that match one method by how specific they are: the number of name components, and a full name
// over all that end in "*".
func (s selector) rank() int {
	if s.name == "" {
		return 0
	}
	n := 2 * (1 + strings.Count(s.name, "."))
	if !s.all {
		n++
	}
	return n
}

// Effective is the policy in force for one method: field by field the most specific block's.
type Effective struct {
	Policy *configv1.Policy
	// From names, for each field that is set, the selector and the index of the policy block it came from.
	From map[protoreflect.Name]Origin
	// method is its full name, "" for methods without a schema; option is what it asks for itself, nil for nothing.
	method string
	option *methodOption
}

// path leads to where the field was written, for faults; "" if it was not.
func (e *Effective) path(field protoreflect.Name) string {
	from, ok := e.From[field]
	switch {
	case !ok:
		return ""
	case from.Block == optionBlock:
		return fmt.Sprintf("%s of %s.%s", optionName, e.method, field)
	case from.Block == unknownBlock:
		return fmt.Sprintf("unknown_methods.%s", field)
	}
	return fmt.Sprintf("policies[%d].%s", from.Block, field)
}

// Origin is where a field of an effective policy was written.
type Origin struct {
	Selector string
	// Block is the index in the configuration's policies, optionBlock or unknownBlock.
	Block int
}

// optionBlock is the Block of what a method's own option says, unknownBlock that of what unknown_methods says.
const (
	optionBlock  = -1
	unknownBlock = -2
)

// policySet is the compiled list of policy blocks.
type policySet struct {
	rules []policyRule
	// options are what methods ask for themselves, by full name.
	options map[string]*methodOption
}

type policyRule struct {
	selector
	text  string
	block int
	msg   *configv1.Policy
}

// compilePolicies parses the selectors; faults carry the path of the field.
func compilePolicies(blocks []*configv1.Policy) (*policySet, []Fault) {
	var set policySet
	var faults []Fault
	for i, b := range blocks {
		if len(b.GetSelector()) == 0 {
			faults = append(faults, Fault{Path: fmt.Sprintf("policies[%d]", i), Msg: "a policy needs a selector"})
		}
		for j, text := range b.GetSelector() {
			sel, err := parseSelector(text)
			if err != nil {
				faults = append(faults, Fault{Path: fmt.Sprintf("policies[%d].selector[%d]", i, j), Msg: err.Error()})
				continue
			}
			set.rules = append(set.rules, policyRule{sel, text, i, b})
		}
	}
	slices.SortStableFunc(set.rules, func(a, b policyRule) int { return b.rank() - a.rank() })
	return &set, faults
}

// unmatched returns faults for selectors that match none of the methods.
func (p *policySet) unmatched(schema *descriptors.Schema) []Fault {
	var faults []Fault
	for _, r := range p.rules {
		if r.msg.GetOptional() || r.name == "" || slices.ContainsFunc(schema.Methods(), func(m *descriptors.Method) bool { return r.matches(string(m.Name)) }) {
			continue
		}
		msg := fmt.Sprintf("selector %q matches no method of the loaded descriptors", r.text)
		if s := schema.Suggest(r.name); s != "" {
			msg += fmt.Sprintf("; did you mean %q?", s)
		}
		faults = append(faults, Fault{Path: fmt.Sprintf("policies[%d].selector", r.block), Msg: msg + " (optional: true allows it)"})
	}
	return faults
}

// effective merges the blocks that match a method. Two blocks of equal rank that set one field are a fault.
func (p *policySet) effective(method string) (Effective, []Fault) {
	eff := Effective{Policy: &configv1.Policy{}, From: map[protoreflect.Name]Origin{}, method: method}
	ranks := map[protoreflect.Name]int{}
	var faults []Fault
	dst := eff.Policy.ProtoReflect()
	for _, r := range p.rules {
		if !r.matches(method) {
			continue
		}
		r.msg.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
			name := fd.Name()
			if name == "selector" || name == "optional" {
				return true
			}
			if from, ok := eff.From[name]; ok {
				if ranks[name] == r.rank() && from.Block != r.block {
					faults = append(faults, Fault{
						Path:   fmt.Sprintf("policies[%d].%s", r.block, name),
						Msg:    fmt.Sprintf("selector %q sets %s with the same precedence as this one", from.Selector, name),
						Other:  fmt.Sprintf("policies[%d].%s", from.Block, name),
						Method: method,
					})
				}
				return true
			}
			eff.From[name] = Origin{r.text, r.block}
			ranks[name] = r.rank()
			dst.Set(fd, v)
			return true
		})
	}
	faults = append(faults, settle(&eff, ranks, method)...)
	faults = append(faults, p.options[method].add(&eff)...)
	eff.Policy, _ = proto.Clone(eff.Policy).(*configv1.Policy)
	return eff, faults
}

// settle leaves one answer to where calls go: of cluster and split the more specific counts, and routes that are less specific
// than it do not. ranks are those of the fields. Cluster and split of equal rank are a fault.
func settle(e *Effective, ranks map[protoreflect.Name]int, method string) []Fault {
	drop := func(name protoreflect.Name) {
		m := e.Policy.ProtoReflect()
		m.Clear(m.Descriptor().Fields().ByName(name))
		delete(e.From, name)
	}
	cluster, named := ranks["cluster"]
	split, shared := ranks["split"]
	if named && shared {
		switch {
		case cluster == split:
			return []Fault{{Path: e.path("split"), Msg: "cluster and split exclude each other, and both are set with the same precedence", Other: e.path("cluster"), Method: method}}
		case cluster > split:
			drop("split")
		default:
			drop("cluster")
		}
	}
	if routes, ok := ranks["routes"]; ok && routes < max(cluster, split) {
		drop("routes")
	}
	return nil
}

// Fault is one thing wrong with a configuration.
type Fault struct {
	// Path leads to the field in the configuration message, "policies[2].cluster"; "" if it is about no one field.
	Path string
	Msg  string
	// Other leads to the field that the one at Path is at odds with; "" if there is none.
	Other string
	// Method is the full name of the one that the field is wrong for, "" for no one in particular; More is how many others it is wrong
	// for in the same way.
	Method string
	More   int
}

func (f Fault) Error() string {
	text := f.text(func(path string) string { return path })
	if f.Path == "" {
		return text
	}
	return f.Path + ": " + text
}

// text is Msg, with the methods that it is about and the place that where gives for Other.
func (f Fault) text(where func(path string) string) string {
	text := f.Msg
	switch {
	case f.More > 1:
		text = fmt.Sprintf("for %s and %d more methods: %s", f.Method, f.More, text)
	case f.More == 1:
		text = fmt.Sprintf("for %s and another method: %s", f.Method, text)
	case f.Method != "":
		text = fmt.Sprintf("for %s: %s", f.Method, text)
	}
	if f.Other != "" {
		text += " (see " + where(f.Other) + ")"
	}
	return text
}
