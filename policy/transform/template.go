package transform

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"

	"transom/rpc"
)

// Template is a text with variables in braces, "user {consumer} of {claims.org.id}".
//
// # Variables
//   - method, service: full names, "bank.v1.Accounts.Get" and "bank.v1.Accounts"
//   - consumer, provider, plan: of authenticated calls
//   - subject: the claim sub, of callers without one the consumer
//   - scopes: split by spaces; groups: split by commas; "%", a scope's own spaces and a group's own commas are percent-encoded
//   - claims.PATH: a claim that is a text, number or bool
//   - metadata.NAME: request metadata, several values split by commas
//   - request_id
//   - peer.address: without port
//
// "{{" and "}}" stand for the braces themselves.
type Template struct {
	parts []part
}

// part is a variable, or, with variable none, a text.
type part struct {
	variable variable
	// text is the literal, the claim's path or the metadata name.
	text string
}

type variable uint8

const (
	none variable = iota
	method
	service
	consumer
	provider
	plan
	subject
	scopes
	groups
	claim
	header
	requestID
	peerAddress
)

var variables = map[string]variable{
	"method": method, "service": service, "consumer": consumer, "provider": provider, "plan": plan, "subject": subject,
	"scopes": scopes, "groups": groups, "request_id": requestID, "peer.address": peerAddress,
}

// NewTemplate parses text. What is wrong with it is told by column, counted in characters from 1.
func NewTemplate(text string) (*Template, error) {
	t := &Template{}
	var literal strings.Builder
	flush := func() {
		if literal.Len() > 0 {
			t.parts = append(t.parts, part{text: literal.String()})
			literal.Reset()
		}
	}
	column := func(i int) int { return len([]rune(text[:i])) + 1 }
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c != '{' && c != '}':
			literal.WriteByte(c)
		case i+1 < len(text) && text[i+1] == c:
			literal.WriteByte(c)
			i++
		case c == '}':
			return nil, fmt.Errorf(`column %d: "}" without "{"; write "}}" for the character itself`, column(i))
		default:
			end := strings.IndexByte(text[i:], '}')
			if end < 0 {
				return nil, fmt.Errorf(`column %d: "{" without "}"; write "{{" for the character itself`, column(i))
			}
			p, err := parseVariable(text[i+1 : i+end])
			if err != nil {
				return nil, fmt.Errorf("column %d: %w", column(i+1), err)
			}
			flush()
			t.parts = append(t.parts, p)
			i += end
		}
	}
	flush()
	return t, nil
}

// parseVariable reads what stands between braces.
func parseVariable(s string) (part, error) {
	if v, ok := variables[s]; ok {
		return part{variable: v}, nil
	}
	if path, ok := strings.CutPrefix(s, "claims."); ok && path != "" {
		return part{claim, path}, nil
	}
	if name, ok := strings.CutPrefix(s, "metadata."); ok {
		if !isName(name) || strings.HasSuffix(name, "-bin") {
			return part{}, fmt.Errorf("%q is no name of metadata in text, in lower case", name)
		}
		return part{header, name}, nil
	}
	return part{}, fmt.Errorf("there is no {%s}; there are consumer, subject, provider, plan, scopes, groups, claims.PATH, method, service, request_id, peer.address and metadata.NAME", s)
}

// isName reports whether s is a metadata name: [0-9a-z_.-]+ (gRPC over HTTP/2, "Custom-Metadata").
func isName(s string) bool {
	for i := range len(s) {
		c := s[i]
		if ('a' > c || c > 'z') && ('0' > c || c > '9') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return s != ""
}

// constant returns the text if it is the same for all calls.
func (t *Template) constant() (string, bool) {
	switch len(t.parts) {
	case 0:
		return "", true
	case 1:
		return t.parts[0].text, t.parts[0].variable == none
	}
	return "", false
}

// text is the template's value for a call. It is not ok if a variable has no value. encode makes the values of variables
// such as metadata can carry.
func (t *Template) text(call *rpc.Call, encode bool) (string, bool) {
	if s, ok := t.constant(); ok {
		return s, true
	}
	if len(t.parts) == 1 {
		return t.parts[0].value(call, encode)
	}
	var b strings.Builder
	for i := range t.parts {
		s, ok := t.parts[i].value(call, encode)
		if !ok {
			return "", false
		}
		b.WriteString(s)
	}
	return b.String(), true
}

func (p *part) value(call *rpc.Call, encode bool) (string, bool) {
	if p.variable == none {
		return p.text, true
	}
	switch p.variable {
	case scopes, groups:
		s := p.variable.listOf(call.Principal, encode)
		return s, s != ""
	default:
	}
	s, ok := p.variable.of(call, p.text)
	if encode && p.variable != header { // which came as metadata
		s = rpc.MetadataText(s)
	}
	return s, ok
}

// listOf is the text of a variable that is a list; encode makes it such as metadata can carry.
func (v variable) listOf(p *rpc.Principal, encode bool) string {
	switch {
	case p == nil:
		return ""
	case v == scopes:
		return rpc.ListText(p.Scopes, ' ', encode)
	}
	return rpc.ListText(p.Groups, ',', encode)
}

// of is a variable's value for a call, but of scopes and groups.
func (v variable) of(call *rpc.Call, arg string) (string, bool) {
	switch v {
	case method:
		return string(call.Method.Name), true
	case service:
		return string(call.Method.Name.Parent()), true
	case requestID:
		return call.Info.RequestID, call.Info.RequestID != ""
	case peerAddress:
		a := call.Peer.Addr.Addr()
		return a.Unmap().WithZone("").String(), a.IsValid()
	case header:
		values := call.Header[arg]
		if len(values) == 1 {
			return values[0], true
		}
		return strings.Join(values, ","), len(values) > 0
	default:
	}
	p := call.Principal
	if p == nil {
		return "", false
	}
	var s string
	switch v {
	case consumer:
		s = p.Consumer
	case provider:
		s = p.Provider
	case plan:
		s = p.Plan
	case claim:
		return claimText(p.Claim(arg))
	case subject:
		if sub, ok := p.Claim("sub").(string); ok && sub != "" {
			return sub, true
		}
		s = p.Consumer
	default:
	}
	return s, s != ""
}

// claimText is the text of a claim that is a number, a bool or a text, but for the empty one, which says nothing of anybody.
func claimText(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, v != ""
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		return v.String(), true
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return "", false
		}
		return strconv.FormatFloat(v, 'f', -1, 64), true
	}
	return "", false
}
