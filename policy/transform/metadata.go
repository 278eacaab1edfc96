package transform

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/metadata"

	"transom/rpc"
)

// EditsConfig is what becomes of metadata. Names are in lower case. Set, Add and Rename are by name; their values are
// templates, and new names.
type EditsConfig struct {
	Set, Add map[string]string
	Remove   []string
	Rename   map[string]string
	// Reserved reports names that belong to the protocols, and Identity those in which the gateway says who calls and their
	// aliases. Neither can be set; reserved ones can't be touched at all.
	Reserved, Identity func(name string) bool
}

// Edits are compiled. They are applied in the order renames, removes, sets, adds; what templates take from metadata is how it
// was before.
//
// What is set, removed, or a new name, is taken out first under each of its aliases, in which "_" and "." stand for "-" or the
// other way round: many servers do not tell them apart, so that a client could send what the policy means to say.
type Edits struct {
	rename   [][2]string
	set, add []entry
	// gone are the plain forms (see plain) of the names to be taken out.
	gone []string
}

// entry is a name with its value.
type entry struct {
	name     string
	template *Template
	// fixed is the value if it is the same for all calls.
	fixed []string
	bin   bool
}

// NewEdits compiles cfg; nil if there is nothing to do. The error joins a *Fault for each thing wrong.
func NewEdits(cfg EditsConfig) (*Edits, error) {
	var errs []error
	fault := func(err error, path string, args ...any) {
		if err != nil {
			errs = append(errs, &Fault{fmt.Sprintf(path, args...), err})
		}
	}
	e := &Edits{}
	given := map[string]string{}
	target := func(name string) error {
		if err := cfg.check(name, true); err != nil {
			return err
		}
		e.gone = append(e.gone, plain(name))
		if other, ok := given[plain(name)]; ok {
			return fmt.Errorf("%s is given twice, the other time as %s", name, other)
		}
		given[plain(name)] = name
		return nil
	}
	for _, from := range slices.Sorted(maps.Keys(cfg.Rename)) {
		to := cfg.Rename[from]
		fault(errors.Join(cfg.check(from, false), target(to)), "rename[%s]", from)
		e.rename = append(e.rename, [2]string{from, to})
	}
	for i, name := range cfg.Remove {
		fault(cfg.check(name, false), "remove[%d]", i)
		e.gone = append(e.gone, plain(name))
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Set)) {
		fault(target(name), "set[%s]", name)
		v, err := newEntry(name, cfg.Set[name])
		fault(err, "set[%s]", name)
		e.set = append(e.set, v)
	}
	for _, name := range slices.Sorted(maps.Keys(cfg.Add)) {
		fault(cfg.check(name, true), "add[%s]", name)
		v, err := newEntry(name, cfg.Add[name])
		fault(err, "add[%s]", name)
		e.add = append(e.add, v)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if len(e.gone)+len(e.add) == 0 {
		return nil, nil
	}
	return e, nil
}

// check says why a name cannot be given; target is that a value would get it.
func (c *EditsConfig) check(name string, target bool) error {
	switch {
	case !isName(name):
		return fmt.Errorf("%q is no name of metadata, which has lower-case letters, digits, dots, - and _", name)
	case c.Reserved(name):
		return fmt.Errorf("%s belongs to HTTP or gRPC themselves and cannot be changed", name)
	case target && c.Identity(name):
		return fmt.Errorf("%s is one of the names in which only authentication says who calls", name)
	}
	return nil
}

func newEntry(name, text string) (entry, error) {
	t, err := NewTemplate(text)
	if err != nil {
		return entry{}, err
	}
	v := entry{name: name, template: t, bin: strings.HasSuffix(name, "-bin")}
	if s, ok := t.constant(); ok {
		v.fixed = []string{s}
	}
	for _, p := range t.parts {
		if i := strings.IndexFunc(p.text, func(r rune) bool { return r < 0x20 || r > 0x7E }); i >= 0 && p.variable == none && !v.bin {
			return entry{}, fmt.Errorf("%q: metadata cannot carry %q; a name that ends in -bin can", text, []rune(p.text[i:])[0])
		}
	}
	return v, nil
}

// values is what the name gets; nil for nothing.
func (e *entry) values(call *rpc.Call) []string {
	if e.fixed != nil {
		return e.fixed
	}
	if s, ok := e.template.text(call, !e.bin); ok {
		return []string{s}
	}
	return nil
}

// plain is a name with "-" for each "_" and ".".
func plain(name string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '.' {
			return '-'
		}
		return r
	}, name)
}

// isGone reports whether a name is to be taken out.
func (e *Edits) isGone(name string) bool {
	for _, g := range e.gone {
		if len(g) == len(name) && alike(g, name) {
			return true
		}
	}
	return false
}

// alike reports whether name, which is as long, is an alias of one in its plain form.
func alike(plain, name string) bool {
	for i := range len(plain) {
		if c := name[i]; c != plain[i] && (plain[i] != '-' || c != '_' && c != '.') {
			return false
		}
	}
	return true
}

// apply changes md, which may be nil, for a call, and returns it.
func (e *Edits) apply(md metadata.MD, call *rpc.Call) metadata.MD {
	var room [8][]string
	values := room[:0]
	for i := range e.set {
		values = append(values, e.set[i].values(call))
	}
	for i := range e.add {
		values = append(values, e.add[i].values(call))
	}
	md, values = e.clear(md, values)
	for i := range e.set {
		md = put(md, e.set[i].name, values[i])
	}
	for i := range e.add {
		name := e.add[i].name
		md = put(md, name, append(slices.Clip(md[name]), values[len(e.set)+i]...))
	}
	return md
}

// clear does the renames and takes out what is to go. room is for it to append to, and returned as it was.
func (e *Edits) clear(md metadata.MD, room [][]string) (metadata.MD, [][]string) {
	if len(md) == 0 {
		return md, room
	}
	n := len(room)
	for _, r := range e.rename {
		room = append(room, md[r[0]])
	}
	for _, r := range e.rename {
		delete(md, r[0])
	}
	if len(e.gone) > 0 {
		for name := range md {
			if e.isGone(name) {
				delete(md, name)
			}
		}
	}
	for i, r := range e.rename {
		md = put(md, r[1], room[n+i])
	}
	return md, room[:n]
}

// put sets a name that is to have values.
func put(md metadata.MD, name string, values []string) metadata.MD {
	if len(values) == 0 {
		return md
	}
	if md == nil {
		md = make(metadata.MD, 4)
	}
	md[name] = values
	return md
}
