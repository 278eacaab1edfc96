package upstream

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"transom/descriptors"
	bankv1 "transom/proto/bank/v1"
)

// transfer is a method whose request has fields of several kinds.
func transfer(t testing.TB, service, method protoreflect.Name) *descriptors.Method {
	t.Helper()
	s := bankv1.File_bank_v1_bank_proto.Services().ByName(service)
	if s == nil || s.Methods().ByName(method) == nil {
		t.Fatalf("no method %s.%s", service, method)
	}
	return &descriptors.Method{ID: 0, FullPath: "/bank.v1." + string(service) + "/" + string(method), Desc: s.Methods().ByName(method)}
}

func TestFieldPath(t *testing.T) {
	stream := transfer(t, "Accounts", "Deposit")
	stream.ClientStreams = true
	for _, tt := range []struct {
		hashOn string
		method *descriptors.Method
		want   bool
	}{
		{"field:name", transfer(t, "Accounts", "Transfer"), true},
		{"field:amount.currency", transfer(t, "Accounts", "Transfer"), true},
		{"field:amount", transfer(t, "Accounts", "Transfer"), false},            // a message
		{"field:amount.cash", transfer(t, "Accounts", "Transfer"), false},       // no such field
		{"field:name.first", transfer(t, "Accounts", "Transfer"), false},        // no message
		{"field:names", transfer(t, "Accounts", "BatchGet"), false},             // repeated
		{"field:name", stream, false},                                           // many requests
		{"field:name", descriptors.Opaque("/bank.v1.Accounts/Transfer"), false}, // no schema
		{"field:a..b", transfer(t, "Accounts", "Transfer"), false},
		{"header:user", stream, true},
		{"ip", stream, true},
	} {
		if got := HashesOn(tt.hashOn, tt.method); got != tt.want {
			t.Errorf("%s of %s: %v, want %v", tt.hashOn, tt.method.FullPath, got, tt.want)
		}
	}
}

// currency is the field amount.currency of a TransferRequest, which decoders of protobuf agree with.
func currency(t testing.TB) []protoreflect.FieldDescriptor {
	t.Helper()
	path := fieldPath(transfer(t, "Accounts", "Transfer"), []protoreflect.Name{"amount", "currency"})
	if path == nil {
		t.Fatal("no field amount.currency")
	}
	return path
}

func TestFieldValue(t *testing.T) {
	wire := func(m proto.Message) []byte {
		b, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	eur := wire(&bankv1.TransferRequest{Name: "a", Amount: &bankv1.Money{Currency: "EUR", Units: 7}})
	usd := wire(&bankv1.TransferRequest{Amount: &bankv1.Money{Currency: "USD"}})
	for name, tt := range map[string]struct {
		wire []byte
		want string
	}{
		"one":          {eur, "EUR"},
		"the last":     {append(slices.Clip(eur), usd...), "USD"},
		"merged":       {append(slices.Clip(eur), wire(&bankv1.TransferRequest{Amount: &bankv1.Money{Units: 1}})...), "EUR"},
		"none":         {wire(&bankv1.TransferRequest{Name: "a"}), ""},
		"empty":        {nil, ""},
		"cut off":      {eur[:len(eur)-1], ""},
		"not the kind": {protowire.AppendVarint(protowire.AppendTag(nil, 4, protowire.VarintType), 1), ""},
	} {
		if got := string(fieldValue(tt.wire, currency(t))); got != tt.want {
			t.Errorf("%s: %q, want %q", name, got, tt.want)
		}
	}
}

func FuzzFieldValue(f *testing.F) {
	for _, m := range []proto.Message{
		&bankv1.TransferRequest{Name: "a", Amount: &bankv1.Money{Currency: "EUR", Units: 7}, Reference: "r"},
		&bankv1.TransferRequest{Amount: &bankv1.Money{Currency: "USD"}},
		&bankv1.TransferRequest{},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(append(b, b...))
	}
	path := currency(f)
	f.Fuzz(func(t *testing.T, wire []byte) {
		got := fieldValue(wire, path)
		var m bankv1.TransferRequest
		if proto.Unmarshal(wire, &m) != nil {
			return // refused by the server; any value will do
		}
		if want := m.GetAmount().GetCurrency(); string(got) != want {
			t.Errorf("%q, a decoder says %q", got, want)
		}
	})
}
