package transcoder_test

import (
	"net/url"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"

	"transom/transcoder"
)

// FuzzQuery holds that no query and no body, accepted or not, changes what the path says, and that what is accepted can
// be parsed by every backend.
func FuzzQuery(f *testing.F) {
	for _, q := range []string{
		"id=evil", "owner.name=x&owner.age=3", "mask=a,bC&time=1970-01-01T00:00:00Z&duration=1.5s", "labels[a]=1&flags[-3]=true",
		"bytes=aGk&kind=BIG&closed=7&bool", "left=a&right=b&choice.name=c", "struct={}&value=[1]&wrapped=1&times=x", "%69d=+%20;",
		"box.parent.name=a&owner.parent.parent.parent.size=1",
	} {
		f.Add(q, `{"id":"evil","owner":{"name":"evil"},"left":"x","choice":{}}`)
	}
	f.Add("bool=true", "--b\r\nContent-Disposition: form-data; name=id\r\n\r\nevil\r\n--b\r\nContent-Disposition: form-data; name=bytes; filename=f\r\n\r\nx\r\n--b--")
	s, ps := plans(f, transcoder.Options{QueryMaps: true, IgnoreUnknownQuery: true, Forms: takesForms})
	f.Fuzz(func(t *testing.T, query, body string) {
		for _, c := range []struct{ verb, path, field string }{
			{"GET", "/v1/items/mine", "id"},
			{"PUT", "/v1/items/mine", "id"},
			{"GET", "/v1/owners/mine/items/x", "owner.name"},
			{"PUT", "/v1/owners/mine", "owner.name"},
			{"PATCH", "/v1/items/mine", "item.id"},
			{"GET", "/v1/choice/mine", "left"},
			{"GET", "/v1/group/mine", "box.name"},
			{"PUT", "/v1/choices/mine", "id"},
		} {
			m, err := s.MatchHTTP(c.verb, c.path)
			if err != nil {
				t.Fatal(err)
			}
			for _, ctype := range []string{"", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b"} {
				in := body
				if ctype == "application/x-www-form-urlencoded" {
					in = query
				}
				wire, err := ps.Method(m.Binding.Method).AppendRequest(nil, &m, query, ctype, []byte(in))
				if err != nil {
					continue
				}
				msg := dynamicpb.NewMessage(m.Binding.Method.Desc.Input())
				if err := proto.Unmarshal(wire, msg); err != nil {
					t.Fatalf("%s %s?%s: %x cannot be parsed: %v", c.verb, c.path, query, wire, err)
				}
				at := msg.ProtoReflect()
				names := strings.Split(c.field, ".")
				for _, name := range names[:len(names)-1] {
					at = at.Get(at.Descriptor().Fields().ByTextName(name)).Message()
				}
				if got := at.Get(at.Descriptor().Fields().ByTextName(names[len(names)-1])).String(); got != "mine" {
					t.Fatalf("%s %s?%s with %q: %s is %q, want what the path says", c.verb, c.path, query, body, c.field, got)
				}
			}
		}
	})
}

// FuzzPathValue holds that a segment reaches the request decoded exactly once.
func FuzzPathValue(f *testing.F) {
	for _, seg := range []string{"a", "a%2Fb", "a%252Fb", "a%25", "+", "x:y", "%C3%A9", ".."} {
		f.Add(seg)
	}
	s, ps := plans(f, transcoder.Options{})
	id := method(f, s, "Get").Desc.Input().Fields().ByName("id")
	f.Fuzz(func(t *testing.T, seg string) {
		if strings.Contains(seg, "/") {
			return
		}
		m, err := s.MatchHTTP("GET", "/v1/items/"+seg)
		if err != nil {
			return
		}
		wire, err := ps.Method(m.Binding.Method).AppendRequest(nil, &m, "", "", nil)
		if err != nil {
			t.Fatalf("%q: %v", seg, err)
		}
		want, err := url.PathUnescape(seg)
		if err != nil {
			t.Fatalf("%q was matched: %v", seg, err)
		}
		if got := read(t, m.Binding.Method.Desc.Input(), wire).ProtoReflect().Get(id).String(); got != want {
			t.Errorf("%q became %q, want %q", seg, got, want)
		}
	})
}
