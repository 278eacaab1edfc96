package descriptors

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"
)

// Schema is everything that can be called, compiled from descriptor sets. It is immutable and safe for concurrent use.
type Schema struct {
	files    *protoregistry.Files
	types    *dynamicpb.Types
	set      *descriptorpb.FileDescriptorSet
	methods  []*Method
	byPath   map[string]*Method
	bindings []*Binding
	router   router
	trailing bool
}

// Options are settings of Compile; the zero value is a good default.
type Options struct {
	// Rules are HTTP rules of a service config (see ParseServiceConfig). A rule takes the place of the google.api.http
	// annotation of every method that its selector covers; of several the last wins.
	Rules []*annotations.HttpRule
	// IgnoreTrailingSlash makes "/v1/items/7/" match what "/v1/items/7" matches. By default it matches nothing.
	IgnoreTrailingSlash bool
}

// Compile merges sets and compiles them to a Schema.
//
// Files that several sets have are merged if they are compatible. Files of google.protobuf, google.rpc and google.api that
// a set does not have are taken from those linked in; where a set's own copy disagrees with the linked-in one, the
// linked-in one counts. All faults are reported at once, joined, in an order that depends on the input only: files that
// conflict, imports that are missing, files that do not build, bad HTTP rules, equal routes. Each names its file and
// origin, message or method, and is an *OriginError if what it is of is known.
func Compile(sets []*Set, o Options) (*Schema, error) {
	c := compiler{files: map[string]*sourceFile{}, built: &protoregistry.Files{}}
	for i, s := range sets {
		for _, f := range s.Files {
			c.addFile(i, s.Origin, f)
		}
	}
	c.addBuiltins()
	c.sortFiles()
	c.checkSymbols()
	c.build()
	s := &Schema{files: c.built, set: &descriptorpb.FileDescriptorSet{}, byPath: map[string]*Method{}, trailing: o.IgnoreTrailingSlash}
	s.types = dynamicpb.NewTypes(s.files)
	c.compileMethods(s, o)
	if len(c.faults) > 0 {
		return nil, errors.Join(c.faults...)
	}
	for _, f := range c.order {
		if f.wanted {
			s.set.File = append(s.set.File, f.proto)
		}
	}
	// The lookup of extensions by number is built on first use; do it now.
	_, _ = s.types.FindExtensionByNumber("google.protobuf.MethodOptions", 1)
	return s, nil
}

// OriginError is a fault that Compile found in one of the sets or in the rules; of a conflict of two it is a fault of one.
type OriginError struct {
	// Set is the set's index; negative for Options.Rules.
	Set int
	Err error
}

// Error is the fault's text, without its origin.
func (e *OriginError) Error() string { return e.Err.Error() }

func (e *OriginError) Unwrap() error { return e.Err }

// Origins of faults that are no index of a set.
const (
	ofRules = -1
	ofNoSet = -2 // of linked-in files
)

// Method finds a method by its gRPC request path, "/pkg.Service/Method".
func (s *Schema) Method(fullPath string) (*Method, bool) {
	m, ok := s.byPath[fullPath]
	return m, ok
}

// Methods returns all methods by ID, which is the order of their full paths. It must not be changed.
func (s *Schema) Methods() []*Method { return s.methods }

// Bindings returns all bindings by ID. It must not be changed.
func (s *Schema) Bindings() []*Binding { return s.bindings }

// Files returns all files, the linked-in ones included.
func (s *Schema) Files() *protoregistry.Files { return s.files }

// Types resolves messages (also by the URL of an Any), enums and extensions to dynamic types. Those of google.rpc's error
// details and the well-known types are always there.
func (s *Schema) Types() *dynamicpb.Types { return s.types }

// FileDescriptorSet returns the files of the sets and all they import, imports first, for serving reflection. It must not
// be changed.
func (s *Schema) FileDescriptorSet() *descriptorpb.FileDescriptorSet { return s.set }

// MatchHTTP finds the binding for an HTTP method and a path as it stood in the request, percent-encoded and without its
// query. The path is split before it is decoded, so an escaped slash is data; a custom verb follows the last colon of the
// last segment. Errors are *NoRouteError and *BadPathError. It takes time linear in the path and independent of the number
// of routes, and does not allocate when it finds a binding of up to four variables (a path with escapes may be 256 bytes).
func (s *Schema) MatchHTTP(verb, escapedPath string) (Match, error) {
	if s.trailing && len(escapedPath) > 1 {
		escapedPath = strings.TrimSuffix(escapedPath, "/")
	}
	return s.router.match(verb, escapedPath)
}

// Suggest returns the method, or the service or package, whose name is most like a misspelt one, or "". The name may be a
// protobuf name or a gRPC path.
func (s *Schema) Suggest(name string) string {
	return suggest(s.methods, string(nameOfPath(name)))
}

func suggest(methods []*Method, name string) string {
	name, wild := strings.CutSuffix(name, ".*")
	seen := map[string]bool{}
	for _, m := range methods {
		full := string(m.Name)
		if !wild {
			seen[full] = true
		}
		for i := strings.LastIndexByte(full, '.'); i > 0; i = strings.LastIndexByte(full[:i], '.') {
			seen[full[:i]] = true
		}
	}
	best := Closest(name, slices.Sorted(maps.Keys(seen)))
	if best == "" && !strings.Contains(name, ".") { // a bare method name
		for _, m := range methods {
			if strings.EqualFold(string(m.Name.Name()), name) {
				return string(m.Name)
			}
		}
	}
	if best != "" && wild {
		best += ".*"
	}
	return best
}

// compiler is the state of one Compile.
type compiler struct {
	files  map[string]*sourceFile
	order  []*sourceFile // imports first
	built  *protoregistry.Files
	faults []error
}

// sourceFile is a file on its way into a schema.
type sourceFile struct {
	proto   *descriptorpb.FileDescriptorProto
	origin  string
	set     int                         // the origin's index; of merged files the first's
	linked  protoreflect.FileDescriptor // the linked-in file, if proto is its
	wanted  bool                        // of a set, or imported by one
	failed  bool
	visited uint8 // by sortFiles: 1 on the way, 2 done
}

// later is which of two origins a conflict of what they have is told of: the rules, or the later set.
func later(a, b int) int {
	if a == ofRules || b == ofRules {
		return ofRules
	}
	return max(a, b)
}

// spare reports whether the file is linked in and no file of a set needs it.
func (f *sourceFile) spare() bool { return f.linked != nil && !f.wanted }

// fault records a fault of a set, or of what else the origin is.
func (c *compiler) fault(origin int, format string, args ...any) {
	c.faultOf(origin, fmt.Errorf(format, args...))
}

func (c *compiler) faultOf(origin int, err error) {
	if origin != ofNoSet {
		err = &OriginError{origin, err}
	}
	c.faults = append(c.faults, err)
}

// setOf is the set that has a file that was built.
func (c *compiler) setOf(fd protoreflect.FileDescriptor) int { return c.files[fd.Path()].set }

func (c *compiler) addFile(set int, origin string, f *descriptorpb.FileDescriptorProto) {
	have, ok := c.files[f.GetName()]
	if !ok {
		c.files[f.GetName()] = &sourceFile{proto: f, origin: origin, set: set, wanted: true}
		return
	}
	merged, err := mergeFiles(have.proto, f)
	if err != nil {
		c.fault(set, "file %s differs between %s and %s: %w", f.GetName(), have.origin, origin, err)
		return
	}
	if merged != have.proto && merged != f {
		have.origin += " and " + origin
	} else if merged == f {
		have.origin, have.set = origin, set
	}
	have.proto = merged
}

// addBuiltins adds the linked-in files that every schema has and those that some file imports but no set has. A set's copy
// of a linked-in file counts only for what it adds.
func (c *compiler) addBuiltins() {
	linked := builtins()
	var need []string
	for _, path := range slices.Sorted(maps.Keys(linked)) {
		b := linked[path]
		have, ok := c.files[path]
		if !ok {
			if b.always {
				need = append(need, path)
			}
			continue
		}
		ours := protodesc.ToFileDescriptorProto(b.file)
		merged, err := mergeFiles(ours, have.proto)
		if err != nil || merged == ours {
			have.proto, have.origin, have.set, have.linked = ours, builtinOrigin, ofNoSet, b.file
		} else {
			have.proto = merged
		}
	}
	for _, path := range slices.Sorted(maps.Keys(c.files)) {
		need = append(need, c.files[path].proto.GetDependency()...)
	}
	for len(need) > 0 {
		path := need[len(need)-1]
		need = need[:len(need)-1]
		b, ok := linked[path]
		if _, have := c.files[path]; have || !ok {
			continue
		}
		c.files[path] = &sourceFile{proto: protodesc.ToFileDescriptorProto(b.file), origin: builtinOrigin, set: ofNoSet, linked: b.file}
		need = append(need, c.files[path].proto.GetDependency()...)
	}
}

// sortFiles orders files so that imports come first and reports imports that are missing or circular.
func (c *compiler) sortFiles() {
	var visit func(f *sourceFile)
	visit = func(f *sourceFile) {
		f.visited = 1
		for _, dep := range f.proto.GetDependency() {
			d, ok := c.files[dep]
			switch {
			case !ok:
				c.fault(f.set, "file %s (from %s) imports %q, which no descriptor set has (build sets with their imports: protoc --include_imports)", f.proto.GetName(), f.origin, dep)
				f.failed = true
				continue
			case d.visited == 1:
				c.fault(f.set, "file %s (from %s) imports %q, which imports it in turn", f.proto.GetName(), f.origin, dep)
				f.failed = true
				continue
			case d.visited == 0:
				visit(d)
			}
			f.failed = f.failed || d.failed
		}
		f.visited = 2
		c.order = append(c.order, f)
	}
	for _, path := range slices.Sorted(maps.Keys(c.files)) {
		if f := c.files[path]; f.visited == 0 {
			visit(f)
		}
	}
	for _, f := range slices.Backward(c.order) {
		if f.wanted {
			for _, dep := range f.proto.GetDependency() {
				if d := c.files[dep]; d != nil {
					d.wanted = true
				}
			}
		}
	}
}

// checkSymbols reports names that two files define, once for each pair of files: the usual cause is one file under two
// paths.
func (c *compiler) checkSymbols() {
	owner := map[string]*sourceFile{}
	type pair struct{ a, b *sourceFile }
	told := map[pair]bool{}
	for _, f := range c.order {
		define := func(kind, name string) {
			if p := f.proto.GetPackage(); p != "" {
				name = p + "." + name
			}
			first, ok := owner[name]
			if !ok {
				owner[name] = f
				return
			}
			switch {
			case first == f || told[pair{first, f}]:
				return
			case first.spare(): // a set has the linked-in file under a path of its own
				first.failed, owner[name] = true, f
				return
			case f.spare():
				f.failed = true
				return
			}
			told[pair{first, f}] = true
			f.failed = true
			c.fault(max(first.set, f.set), "%s %s is defined by file %s (from %s) and by file %s (from %s)", kind, name, first.proto.GetName(), first.origin, f.proto.GetName(), f.origin)
		}
		for _, m := range f.proto.GetMessageType() {
			define("message", m.GetName())
		}
		for _, e := range f.proto.GetEnumType() {
			define("enum", e.GetName())
			for _, v := range e.GetValue() {
				define("enum value", v.GetName())
			}
		}
		for _, s := range f.proto.GetService() {
			define("service", s.GetName())
		}
		for _, x := range f.proto.GetExtension() {
			define("extension", x.GetName())
		}
	}
}

// build makes descriptors of the files that can be built.
func (c *compiler) build() {
	extensions := map[protoreflect.FullName]map[protoreflect.FieldNumber]protoreflect.FullName{}
	for _, f := range c.order {
		for _, dep := range f.proto.GetDependency() {
			if d := c.files[dep]; d != nil && d.failed {
				f.failed = true
			}
		}
		if f.failed {
			continue
		}
		fd := f.linked
		var err error
		if fd == nil {
			fd, err = newFile(f.proto, c.built)
		}
		if err == nil {
			err = c.built.RegisterFile(fd)
		}
		if err != nil {
			f.failed = true
			c.fault(f.set, "file %s (from %s): %s", f.proto.GetName(), f.origin, strings.TrimPrefix(strings.ReplaceAll(err.Error(), "\u00a0", " "), "proto: "))
			continue
		}
		rangeExtensions(fd, func(x protoreflect.ExtensionDescriptor) {
			of := extensions[x.ContainingMessage().FullName()]
			if of == nil {
				of = map[protoreflect.FieldNumber]protoreflect.FullName{}
				extensions[x.ContainingMessage().FullName()] = of
			}
			if first, ok := of[x.Number()]; ok {
				c.fault(f.set, "extensions %s and %s of %s both have number %d (file %s from %s)", first, x.FullName(), x.ContainingMessage().FullName(), x.Number(), f.proto.GetName(), f.origin)
				return
			}
			of[x.Number()] = x.FullName()
		})
	}
}

// newFile builds one file; a file so malformed that protodesc panics is an error.
func newFile(f *descriptorpb.FileDescriptorProto, r protodesc.Resolver) (fd protoreflect.FileDescriptor, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("is malformed: %v", p)
		}
	}()
	return protodesc.NewFile(f, r)
}

// container is a file or a message.
type container interface {
	Messages() protoreflect.MessageDescriptors
	Extensions() protoreflect.ExtensionDescriptors
}

func rangeExtensions(c container, f func(protoreflect.ExtensionDescriptor)) {
	for i := range c.Extensions().Len() {
		f(c.Extensions().Get(i))
	}
	for i := range c.Messages().Len() {
		rangeExtensions(c.Messages().Get(i), f)
	}
}

// compileMethods lists the methods of all files that were built, with their bindings and routes.
func (c *compiler) compileMethods(s *Schema, o Options) {
	options := map[*Method]*descriptorpb.MethodOptions{}
	s.files.RangeFiles(func(fd protoreflect.FileDescriptor) bool {
		for i := range fd.Services().Len() {
			sd := fd.Services().Get(i)
			for j := range sd.Methods().Len() {
				md := sd.Methods().Get(j)
				m := &Method{
					FullPath: "/" + string(sd.FullName()) + "/" + string(md.Name()), Name: md.FullName(), Desc: md,
					ClientStreams: md.IsStreamingClient(), ServerStreams: md.IsStreamingServer(),
				}
				s.methods = append(s.methods, m)
				options[m] = nil
			}
		}
		return true
	})
	slices.SortFunc(s.methods, func(a, b *Method) int { return strings.Compare(a.FullPath, b.FullPath) })
	for i, m := range s.methods {
		m.ID = i
		s.byPath[m.FullPath] = m
		opts, err := methodOptions(m.Desc)
		if err != nil {
			c.fault(c.setOf(m.Desc.ParentFile()), "method %s: %w", m.Name, err)
			continue
		}
		options[m], m.Effect = opts, effectOf(opts)
	}
	c.checkJSONNames(s.methods)
	over, err := overrides(o.Rules, s.methods, func(name string) string { return suggest(s.methods, name) })
	for _, e := range unjoin(err) {
		c.faultOf(ofRules, e)
	}
	origin := func(m *Method) int { // of its rule
		if over[m.Name] != nil {
			return ofRules
		}
		return c.setOf(m.Desc.ParentFile())
	}
	for _, m := range s.methods {
		rule := over[m.Name]
		if rule == nil {
			rule = httpRule(options[m])
		}
		if rule == nil {
			continue
		}
		bs, err := bindings(m, rule)
		for _, e := range unjoin(err) {
			c.faultOf(origin(m), e)
		}
		for _, b := range bs {
			b.ID = len(s.bindings)
			s.bindings = append(s.bindings, b)
			m.Bindings = append(m.Bindings, b)
			if taken := s.router.add(b.template, b); taken != nil {
				if taken.Method == m {
					c.fault(origin(m), "method %s: %s %s is bound twice (as %s)", m.Name, b.Verb, b.Template, taken.Template)
				} else {
					c.fault(later(origin(m), origin(taken.Method)), "methods %s and %s have the same route, %s %s (the other is written %s)", taken.Method.Name, m.Name, b.Verb, b.Template, taken.Template)
				}
			}
		}
	}
}

// checkJSONNames reports messages of the methods, and those in them, with two fields of one JSON name.
func (c *compiler) checkJSONNames(methods []*Method) {
	seen := map[protoreflect.FullName]bool{}
	var work []protoreflect.MessageDescriptor
	for _, m := range methods {
		work = append(work, m.Desc.Input(), m.Desc.Output())
	}
	var faults []*OriginError
	for len(work) > 0 {
		md := work[len(work)-1]
		work = work[:len(work)-1]
		if seen[md.FullName()] {
			continue
		}
		seen[md.FullName()] = true
		names := map[string]protoreflect.Name{}
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			if first, ok := names[fd.JSONName()]; ok {
				faults = append(faults, &OriginError{c.setOf(md.ParentFile()), fmt.Errorf("message %s (file %s): fields %q and %q have the same JSON name, %q", md.FullName(), md.ParentFile().Path(), first, fd.Name(), fd.JSONName())})
			}
			names[fd.JSONName()] = fd.Name()
			if fd.Message() != nil {
				work = append(work, fd.Message())
			}
		}
	}
	slices.SortFunc(faults, func(a, b *OriginError) int { return strings.Compare(a.Error(), b.Error()) })
	for _, f := range faults {
		c.faultOf(f.Set, f.Err)
	}
}
