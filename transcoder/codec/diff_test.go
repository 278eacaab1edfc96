package codec

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
)

// diffCases is how many cases per direction the differential tests run: CODEC_CASES, or enough for a few seconds.
func diffCases(t *testing.T) int {
	v := os.Getenv("CODEC_CASES")
	if v == "" {
		return 20_000
	}
	n, err := strconv.Atoi(v)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func diffSeed(t *testing.T) uint64 {
	v := os.Getenv("CODEC_SEED")
	if v == "" {
		return 42
	}
	n, err := strconv.ParseUint(v, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// guard turns a panic of the oracle into an error: dynamicpb panics on a map entry whose key comes again with a wrong
// wire type.
func guard(f func() ([]byte, error)) (out []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errPanicked, p)
		}
	}()
	return f()
}

var errPanicked = errors.New("the oracle panicked")

func compact(b []byte) []byte {
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func oracleJSON(s *schema, md protoreflect.MessageDescriptor, wire []byte, o *Options) ([]byte, error) {
	return guard(func() ([]byte, error) {
		m := dynamicpb.NewMessage(md)
		if err := (proto.UnmarshalOptions{Resolver: s.resolver}).Unmarshal(wire, m); err != nil {
			return nil, err
		}
		b, err := protojson.MarshalOptions{
			Resolver: s.resolver, EmitDefaultValues: o.EmitDefaults, UseProtoNames: o.ProtoNames, UseEnumNumbers: o.EnumNumbers,
		}.Marshal(m)
		if err != nil {
			return nil, err
		}
		return compact(b), nil
	})
}

func randomOptions(r *rand.Rand) *Options {
	o := &Options{MaxDepth: 10000}
	if r.IntN(3) == 0 {
		o.EmitDefaults, o.ProtoNames, o.EnumNumbers = r.IntN(2) == 0, r.IntN(2) == 0, r.IntN(2) == 0
	}
	o.DiscardUnknown = r.IntN(3) == 0
	return o
}

// progress prints how far a long run has come.
func progress(t *testing.T, name string, done, total, same, rejected int, last *time.Time) {
	if total > 100_000 && time.Since(*last) > 10*time.Second || done == total {
		*last = time.Now()
		t.Logf("%s: %d of %d, %d the same, %d refused by both", name, done, total, same, rejected)
		if done < total {
			fmt.Printf("%s: %d of %d, %d the same, %d refused by both\n", name, done, total, same, rejected)
		}
	}
}

// TestDiffJSON compares wire → JSON with protojson over dynamicpb, byte for byte, on random messages of random types,
// half of them with their records shuffled, split, repeated or of wrong types, a tenth with bytes changed.
func TestDiffJSON(t *testing.T) {
	seed := diffSeed(t)
	r := rand.New(rand.NewPCG(seed, 1))
	total := diffCases(t)
	same, rejected := 0, 0
	last := time.Now()
	var s *schema
	for n := 0; same+rejected < total; n++ {
		if n%200 == 0 {
			s = randomSchema(t, r)
		}
		md := s.messages[r.IntN(len(s.messages))]
		m := dynamicpb.NewMessage(md)
		budget := 40
		s.fill(r, m, 4, &budget)
		wire, err := proto.MarshalOptions{AllowPartial: true, Deterministic: r.IntN(2) == 0}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		switch k := r.IntN(10); {
		case k < 5:
			wire = shuffle(r, md, wire, 4)
		case k == 5 && len(wire) > 0:
			for range 1 + r.IntN(3) {
				wire[r.IntN(len(wire))] ^= 1 << r.IntN(8)
			}
		case k == 6:
			wire = wire[:r.IntN(len(wire)+1)]
		}
		o := randomOptions(r)
		want, wantErr := oracleJSON(s, md, wire, o)
		if errors.Is(wantErr, errPanicked) {
			continue
		}
		got, gotErr := s.types.Message(md).AppendJSON(nil, wire, o)
		switch {
		case (wantErr == nil) != (gotErr == nil):
			t.Fatalf("case %d: %s %+v\nwire %.1000x\ngot  %.3000s %v\nwant %.3000s %v", n, md.FullName(), o, wire, got, gotErr, want, wantErr)
		case wantErr != nil:
			rejected++
		case !bytes.Equal(got, want):
			t.Fatalf("case %d: %s %+v\nwire %.1000x\ngot  %.3000s\nwant %.3000s", n, md.FullName(), o, wire, got, want)
		default:
			same++
		}
		progress(t, "wire to JSON", same+rejected, total, same, rejected, &last)
	}
}

// TestDiffWire compares JSON → wire with protojson into dynamicpb on random messages, about half of them with the text
// damaged. Results are compared as JSON, since an Any holds its message as bytes.
func TestDiffWire(t *testing.T) {
	seed := diffSeed(t)
	r := rand.New(rand.NewPCG(seed, 2))
	total := diffCases(t)
	same, rejected, deviations := 0, 0, 0
	last := time.Now()
	var s *schema
	for n := 0; same+rejected < total; n++ {
		if n%200 == 0 {
			s = randomSchema(t, r)
		}
		md := s.messages[r.IntN(len(s.messages))]
		m := dynamicpb.NewMessage(md)
		budget := 40
		s.fill(r, m, 4, &budget)
		indent := ""
		if r.IntN(4) == 0 {
			indent = "  "
		}
		text, err := protojson.MarshalOptions{
			AllowPartial: true, Resolver: s.resolver, Indent: indent, EmitUnpopulated: r.IntN(6) == 0, UseProtoNames: r.IntN(4) == 0,
			UseEnumNumbers: r.IntN(4) == 0,
		}.Marshal(m)
		if err != nil {
			continue
		}
		switch r.IntN(6) {
		case 0, 1:
			text = mangle(r, text)
		case 2:
			text = reorder(r, text)
		}
		o := randomOptions(r)
		want, wantErr := oracleWire(s, md, text, o)
		if errors.Is(wantErr, errPanicked) {
			continue
		}
		got, gotErr := s.types.Message(md).AppendWire(nil, text, o)
		if (wantErr == nil) != (gotErr == nil) {
			if wantErr == nil && !json.Valid(text) {
				deviations++ // protojson takes 1e and 1e+ for numbers
				continue
			}
			t.Fatalf("case %d: %s %+v\ntext %.3000s\ngot  %.1000x %v\nwant %.1000x %v", n, md.FullName(), o, text, got, gotErr, want, wantErr)
		}
		if wantErr != nil {
			rejected++
			progress(t, "JSON to wire", same+rejected, total, same, rejected, &last)
			continue
		}
		a, errA := oracleJSON(s, md, got, &Options{})
		b, errB := oracleJSON(s, md, want, &Options{})
		if (errA == nil) != (errB == nil) || !bytes.Equal(a, b) {
			t.Fatalf("case %d: %s %+v\ntext %.3000s\ngot  %.1000x %.3000s %v\nwant %.1000x %.3000s %v", n, md.FullName(), o, text, got, a, errA, want, b, errB)
		}
		same++
		progress(t, "JSON to wire", same+rejected, total, same, rejected, &last)
	}
	t.Logf("%d the same, %d refused by both, %d not JSON and refused by us only", same, rejected, deviations)
}

func oracleWire(s *schema, md protoreflect.MessageDescriptor, text []byte, o *Options) ([]byte, error) {
	return guard(func() ([]byte, error) {
		m := dynamicpb.NewMessage(md)
		err := protojson.UnmarshalOptions{Resolver: s.resolver, DiscardUnknown: o.DiscardUnknown}.Unmarshal(text, m)
		if err != nil {
			return nil, err
		}
		return proto.MarshalOptions{AllowPartial: true, Deterministic: true}.Marshal(m)
	})
}

var snippets = []string{
	"null", "true", "{}", "[]", "\"\"", "0", "-0", "1.0", "1e2", "1.5", "\"1\"", "\"1e2\"", "\"NaN\"", "\"-Infinity\"", "1e400", "3.5e38",
	"9007199254740993", "18446744073709551616", "\"\\u0041\"", "\"\\ud83c\\udf89\"", "\"\\ud800\"", "\"\xff\"", "\"E_ONE\"",
	"\"E_NONE\"", "\"1.5s\"", "\"2020-02-30T00:00:00Z\"", "\"2020-02-29T23:59:59.123+01:00\"", "\"a,bC\"", "\"AA==\"", "\"AA\"", "\"-_\"",
	"[null]", "{\"a\":null}", "{\"@type\":\"type.googleapis.com/google.protobuf.Duration\",\"value\":\"1s\"}", " ", "\n", ",", ":", "\"",
	"{", "}", "[", "]", "\\", "e", "1", "00", "1234567890123456789012", "0.1e1", "\"f0\":", "\"@type\":\"x\",", "100e-2", "1E", "1e+",
}

// mangle damages text at a few places.
func mangle(r *rand.Rand, text []byte) []byte {
	out := bytes.Clone(text)
	for range 1 + r.IntN(3) {
		if len(out) == 0 {
			break
		}
		i := r.IntN(len(out))
		switch r.IntN(6) {
		case 0: // replace a value
			for i < len(out) && out[i] != ':' {
				i++
			}
			j := i + 1
			for j < len(out) && !strings.ContainsRune(",}]", rune(out[j])) {
				j++
			}
			if j < len(out) {
				out = append(out[:i+1:i+1], append([]byte(snippets[r.IntN(len(snippets))]), out[j:]...)...)
			}
		case 1:
			out = append(out[:i:i], append([]byte(snippets[r.IntN(len(snippets))]), out[i:]...)...)
		case 2:
			out = append(out[:i:i], out[min(len(out), i+1+r.IntN(4)):]...)
		case 3:
			out[i] ^= 1 << r.IntN(8)
		case 4:
			out = out[:i]
		case 5: // repeat a stretch
			j := min(len(out), i+r.IntN(30))
			out = append(out[:j:j], out[i:]...)
		}
	}
	return out
}

// reorder shuffles the members of objects, and repeats one now and then.
func reorder(r *rand.Rand, text []byte) []byte {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var out []byte
	var walk func(raw json.RawMessage)
	walk = func(raw json.RawMessage) {
		raw = bytes.TrimSpace(raw)
		switch raw[0] {
		case '{':
			d := json.NewDecoder(bytes.NewReader(raw))
			_, _ = d.Token()
			type member struct {
				key string
				val json.RawMessage
			}
			var ms []member
			for d.More() {
				k, err := d.Token()
				if err != nil {
					panic(err)
				}
				var v json.RawMessage
				if err := d.Decode(&v); err != nil {
					panic(err)
				}
				ms = append(ms, member{k.(string), v})
			}
			r.Shuffle(len(ms), func(i, j int) { ms[i], ms[j] = ms[j], ms[i] })
			if len(ms) > 0 && r.IntN(60) == 0 {
				ms = append(ms, ms[0])
			}
			if r.IntN(60) == 0 {
				ms = append(ms, member{"unknownField", json.RawMessage(`{"a":[1,"x",null,{}]}`)})
			}
			out = append(out, '{')
			for i, m := range ms {
				if i > 0 {
					out = append(out, ',')
				}
				k, _ := json.Marshal(m.key)
				if r.IntN(10) == 0 && len(m.key) > 0 && m.key[0] < 0x80 { // an escape where none is needed
					k = append(fmt.Appendf([]byte{'"'}, "\\u%04x", m.key[0]), k[2:]...)
					if m.key[0] == '"' || m.key[0] == '\\' {
						k, _ = json.Marshal(m.key)
					}
				}
				out = append(append(out, k...), ':')
				walk(m.val)
			}
			out = append(out, '}')
		case '[':
			var vs []json.RawMessage
			if err := json.Unmarshal(raw, &vs); err != nil {
				panic(err)
			}
			out = append(out, '[')
			for i, v := range vs {
				if i > 0 {
					out = append(out, ',')
				}
				walk(v)
			}
			out = append(out, ']')
		default:
			out = append(out, raw...)
		}
	}
	walk(text)
	return out
}
