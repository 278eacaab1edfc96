package descriptors

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/genproto/googleapis/api/annotations"
)

// RulesFromFile reads the HTTP rules of a service config file; see ParseServiceConfig.
func RulesFromFile(path string) ([]*annotations.HttpRule, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("service config: %w", err)
	}
	return ParseServiceConfig(path, b)
}

// ParseServiceConfig reads the "http: rules:" part of a google.api.Service in YAML (or JSON), for Options.Rules:
//
//	type: google.api.Service
//	config_version: 3
//	http:
//	  rules:
//	  - selector: bank.v1.Accounts.Get
//	    get: /v1/{name=customers/*/accounts/*}
//	    additional_bindings:
//	    - {post: "/v1/accounts:get", body: "*"}
//
// The other parts of a service config are ignored; within http an unknown or misplaced field is a fault. Names may be
// written as in the proto or in lowerCamelCase. fully_decode_reserved_expansion changes nothing: all but an escaped slash is
// always decoded. All faults are reported, joined, each as name:line:column. Templates are
// checked by Compile.
func ParseServiceConfig(name string, b []byte) ([]*annotations.HttpRule, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return nil, fmt.Errorf("service config %s: %w", name, err)
	}
	p := ruleParser{name: name}
	if len(doc.Content) == 0 {
		return nil, fmt.Errorf("service config %s: is empty", name)
	}
	var rules []*annotations.HttpRule
	p.fields(doc.Content[0], "a service config", func(key string, _, v *yaml.Node) {
		if key != "http" {
			return
		}
		p.fields(v, "http", func(key string, k, v *yaml.Node) {
			switch key {
			case "rules":
				p.each(v, "rules", func(n *yaml.Node) { rules = append(rules, p.rule(n, true)) })
			case "fully_decode_reserved_expansion":
				// Match.Value does what true asks for; false, where documents disagree on the characters to keep, is the same.
				if v.Tag != "!!bool" {
					p.fault(v, "%s must be true or false", k.Value)
				}
			default:
				p.fault(k, "unknown field %q in http", k.Value)
			}
		})
	})
	if len(p.faults) > 0 {
		return nil, errors.Join(p.faults...)
	}
	return rules, nil
}

type ruleParser struct {
	name   string
	faults []error
}

func (p *ruleParser) fault(n *yaml.Node, format string, args ...any) {
	p.faults = append(p.faults, fmt.Errorf("service config %s:%d:%d: %s", p.name, n.Line, n.Column, fmt.Sprintf(format, args...)))
}

// fields calls f for each field of a mapping, its key in snake_case.
func (p *ruleParser) fields(n *yaml.Node, what string, f func(key string, k, v *yaml.Node)) {
	n = target(n)
	if n.Kind != yaml.MappingNode {
		p.fault(n, "%s must be a mapping", what)
		return
	}
	var seen []string
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		var key strings.Builder
		for _, c := range k.Value {
			if 'A' <= c && c <= 'Z' {
				key.WriteByte('_')
				c += 'a' - 'A'
			}
			key.WriteRune(c)
		}
		if slices.Contains(seen, key.String()) {
			p.fault(k, "field %q appears twice", k.Value)
			continue
		}
		seen = append(seen, key.String())
		f(key.String(), k, target(n.Content[i+1]))
	}
}

func (p *ruleParser) each(n *yaml.Node, what string, f func(*yaml.Node)) {
	if n.Kind != yaml.SequenceNode {
		p.fault(n, "%s must be a list", what)
		return
	}
	for _, e := range n.Content {
		f(target(e))
	}
}

func (p *ruleParser) text(n *yaml.Node, what string) string {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" {
		p.fault(n, "%s must be a string", what)
		return ""
	}
	return n.Value
}

// rule reads one HttpRule. Additional bindings are read below a rule of the list only, so the depth is bounded.
func (p *ruleParser) rule(n *yaml.Node, top bool) *annotations.HttpRule {
	r := &annotations.HttpRule{}
	pattern := ""
	p.fields(n, "a rule", func(key string, k, v *yaml.Node) {
		switch key {
		case "get", "put", "post", "delete", "patch", "custom":
			if pattern != "" {
				p.fault(k, "a rule has one pattern, not both %q and %q", pattern, key)
				return
			}
			pattern = key
		}
		switch key {
		case "selector":
			r.Selector = p.text(v, key)
		case "get":
			r.Pattern = &annotations.HttpRule_Get{Get: p.text(v, key)}
		case "put":
			r.Pattern = &annotations.HttpRule_Put{Put: p.text(v, key)}
		case "post":
			r.Pattern = &annotations.HttpRule_Post{Post: p.text(v, key)}
		case "delete":
			r.Pattern = &annotations.HttpRule_Delete{Delete: p.text(v, key)}
		case "patch":
			r.Pattern = &annotations.HttpRule_Patch{Patch: p.text(v, key)}
		case "custom":
			c := &annotations.CustomHttpPattern{}
			p.fields(v, key, func(key string, k, v *yaml.Node) {
				switch key {
				case "kind":
					c.Kind = p.text(v, key)
				case "path":
					c.Path = p.text(v, key)
				default:
					p.fault(k, "unknown field %q in custom", k.Value)
				}
			})
			r.Pattern = &annotations.HttpRule_Custom{Custom: c}
		case "body":
			r.Body = p.text(v, key)
		case "response_body":
			r.ResponseBody = p.text(v, key)
		case "additional_bindings":
			if !top {
				p.fault(k, "an additional binding must not have additional_bindings of its own")
				return
			}
			p.each(v, key, func(n *yaml.Node) { r.AdditionalBindings = append(r.AdditionalBindings, p.rule(n, false)) })
		default:
			p.fault(k, "unknown field %q in a rule", k.Value)
		}
	})
	if top && r.GetSelector() == "" {
		p.fault(n, "a rule needs a selector")
	}
	if pattern == "" {
		p.fault(n, "a rule needs a pattern: get, put, post, delete, patch or custom")
	}
	return r
}

// target follows an alias.
func target(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}
