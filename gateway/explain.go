package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	configv1 "transom/proto/transom/config/v1"
)

// Explain writes what is in force for one method, given by full name ("bank.v1.Accounts.Get") or gRPC path: its HTTP rules,
// each field of its policy with its value, the selector that set it and where that was written, or "default", and what its
// calls go through, in order. where gives the place of a field by its path in the configuration ("policies[2].auth"). Of a name
// that no descriptor has it writes what becomes of calls by unknown_methods, and without these it is an error with a suggestion.
// The name of a service or package, also with ".*" as selectors have it, is an error that says what is in it.
func Explain(ctx context.Context, cfg *configv1.Config, method string, where func(path string) string, w io.Writer, log *slog.Logger) error {
	return offline(ctx, cfg, log, func(s *Snapshot) error {
		name := strings.ReplaceAll(strings.TrimPrefix(method, "/"), "/", ".")
		var m *descriptors.Method
		for _, candidate := range s.schema.Methods() {
			if string(candidate.Name) == name {
				m = candidate
			}
		}
		if m == nil {
			if err := noSingleMethod(s.schema, name); err != nil {
				return err
			}
			hint := ""
			if s := s.schema.Suggest(name); s != "" {
				hint = "; did you mean " + s + "?"
			}
			if s.opaque == nil || !strings.Contains(name, ".") || !protoreflect.FullName(name).IsValid() {
				return fmt.Errorf("there is no method %s%s", name, hint)
			}
			fmt.Fprintf(w, "%s  of which no descriptor tells%s\n  POST %s\n", name, hint, grpcPath(name))
			r := s.opaque.route(name)
			return explainPolicy(&r.eff, r.chain, false, cfg, where, w)
		}
		fmt.Fprintf(w, "%s  %s\n", m.Name, kindOf(m))
		fmt.Fprintf(w, "  POST %s\n", m.FullPath)
		for _, b := range m.Bindings {
			fmt.Fprintf(w, "  %s %s\n", b.Verb, b.Template)
			for _, path := range s.versions.others(s.schema, b) {
				fmt.Fprintf(w, "  %s %s  by api_versions\n", b.Verb, path)
			}
		}
		if isHealth(m) {
			_, err := fmt.Fprintln(w, "answered by the gateway itself; no policy holds for it")
			return err
		}
		return explainPolicy(&s.effective[m.ID], s.chains[m.ID], m.Unary(), cfg, where, w)
	})
}

// noSingleMethod is the error of a name that is a service's or a package's, with what is in it; nil if it is neither.
func noSingleMethod(schema *descriptors.Schema, name string) error {
	name = strings.TrimSuffix(name, ".*")
	var methods, services []string
	for _, m := range schema.Methods() {
		service := string(m.Name.Parent())
		if service == name {
			methods = append(methods, string(m.Name.Name()))
		} else if strings.HasPrefix(service, name+".") && !slices.Contains(services, service) {
			services = append(services, service)
		}
	}
	switch {
	case len(methods) > 0:
		return fmt.Errorf("%s is a service; name one of its methods: %s", name, strings.Join(methods, ", "))
	case len(services) > 0:
		return fmt.Errorf("%s is a package; name a method of one of its services: %s", name, strings.Join(services, ", "))
	}
	return nil
}

// grpcPath is the path of a method by its full name.
func grpcPath(name string) string {
	at := strings.LastIndexByte(name, '.')
	return "/" + name[:at] + "/" + name[at+1:]
}

// explainPolicy writes the table of fields, and what a call goes through.
func explainPolicy(eff *Effective, chain []string, unary bool, cfg *configv1.Config, where func(string) string, w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "\nFIELD\tVALUE\tSELECTOR\tFROM")
	defaults := map[protoreflect.Name]string{
		"message_bytes": strconv.Itoa(maxMessageOf(cfg, eff.Policy)),
	}
	if unary {
		defaults["timeout"] = timeoutOf(eff.Policy, true).String()
	} else {
		defaults["stream_timeout"] = timeoutOf(eff.Policy, false).String()
		defaults["stream_idle_timeout"] = streamIdleOf(eff.Policy).String()
	}
	for name := range cfg.GetClusters() {
		if len(cfg.GetClusters()) == 1 {
			defaults["cluster"] = name
		}
	}
	fields := eff.Policy.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		from, set := eff.From[fd.Name()]
		switch value, there := defaults[fd.Name()]; {
		case set && from.Block == optionBlock:
			fmt.Fprintf(tw, "%s\t%s\t%s\tdescriptors\n", fd.Name(), fieldText(eff.Policy, fd), optionName)
		case set:
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\n", fd.Name(), fieldText(eff.Policy, fd), from.Selector, where(eff.path(fd.Name())))
		case there:
			fmt.Fprintf(tw, "%s\t%s\t\tdefault\n", fd.Name(), value)
		}
		if o := eff.option; o != nil && set && from.Block != optionBlock && (fd.Name() == "access" || fd.Name() == "allow") && o.policy.ProtoReflect().Has(fd) {
			fmt.Fprintf(tw, "and %s\t%s\t%s\tdescriptors\n", fd.Name(), fieldText(o.policy, fd), optionName)
		}
	}
	if eff.option != nil && eff.option.authenticated {
		fmt.Fprintf(tw, "authenticated\ttrue\t%s\tdescriptors\n", optionName)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\na call goes through %s\n", strings.Join(chain, ", "))
	return err
}

// fieldText is the value of one field as JSON on one line.
func fieldText(p *configv1.Policy, fd protoreflect.FieldDescriptor) string {
	only := &configv1.Policy{}
	only.ProtoReflect().Set(fd, p.ProtoReflect().Get(fd))
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(only)
	var fields map[string]json.RawMessage
	if err != nil || json.Unmarshal(b, &fields) != nil {
		return "?"
	}
	return strings.NewReplacer("\n", " ", "\t", " ").Replace(string(fields[string(fd.Name())]))
}
