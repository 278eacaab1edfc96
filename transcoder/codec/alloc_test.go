//go:build !race

package codec

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	benchv1 "transom/proto/transom/bench/v1"
)

// TestAllocs: into a buffer that is large enough nothing is allocated, in either direction, whatever the order on the wire.
// The race detector makes pools forget, so this is not built with it.
func TestAllocs(t *testing.T) {
	types := newTypes()
	attrs, err := structpb.NewStruct(map[string]any{"a": []any{1.0, true, nil, "x"}, "b": map[string]any{"c": "é"}})
	if err != nil {
		t.Fatal(err)
	}
	detail, err := anypb.New(&benchv1.Money{Units: 5})
	if err != nil {
		t.Fatal(err)
	}
	order := &benchv1.Order{Labels: map[string]string{}, Payment: &benchv1.Order_Iban{Iban: "x"}, Note: "n", Total: &benchv1.Money{Units: 1}}
	for i := range 100 {
		order.Labels[fmt.Sprint("key", i*7919%100)] = "v"
	}
	for _, c := range []proto.Message{
		&benchv1.Small{Id: "a", Balance: 5, Tags: []string{"x"}, Rate: 0.1},
		order,
		&benchv1.Numbers{Doubles: []float64{1.5, 1e300, 1.0 / 3}, Floats: []float32{0.1}, Ints: []int32{-1}, Hashes: []uint64{1 << 63}},
		&benchv1.WellKnown{Events: []*benchv1.WellKnown_Event{{At: timestamppb.Now(), Attributes: attrs, Detail: detail}}},
		&benchv1.Blob{Content: make([]byte, 10_000)},
		&benchv1.Disorder{FirstName: "a", LastName: "b", Entries: []*benchv1.Disorder_Entry{{Id: "x", Kind: "k", Amount: 1}}},
	} {
		m := types.Message(descriptor(c))
		wire, err := proto.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		for _, in := range [][]byte{wire, backwards(t, wire)} {
			text, err := m.AppendJSON(nil, in, nil)
			if err != nil {
				t.Fatal(err)
			}
			dst := make([]byte, 0, 4*len(text)+1024)
			if n := testing.AllocsPerRun(100, func() { _, err = m.AppendJSON(dst, in, nil) }); n != 0 || err != nil {
				t.Errorf("%s to JSON: %v allocations, %v", descriptor(c).Name(), n, err)
			}
			if n := testing.AllocsPerRun(100, func() { _, err = m.AppendWire(dst, text, nil) }); n != 0 || err != nil {
				t.Errorf("%s to wire: %v allocations, %v", descriptor(c).Name(), n, err)
			}
		}
	}
}

// backwards turns the order of the records of a message round.
func backwards(t *testing.T, wire []byte) []byte {
	t.Helper()
	var out []byte
	for len(wire) > 0 {
		_, _, n := protowire.ConsumeField(wire)
		if n < 0 {
			t.Fatal(protowire.ParseError(n))
		}
		out = append(append([]byte{}, wire[:n]...), out...)
		wire = wire[n:]
	}
	return out
}
