package main

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	benchv1 "transom/proto/transom/bench/v1"
)

// entry is one message of the corpus.
type entry struct {
	name string
	msg  proto.Message
}

// corpus returns the same messages every time.
func corpus() []entry {
	r := rand.New(rand.NewPCG(1, 1))
	return []entry{
		{"small", small()},
		{"medium", order(r)},
		{"list256k", list(r, 885)},
		{"strings", texts(r)},
		{"numbers", numbers(r)},
		{"wkt", wellKnown(r)},
		{"bytes", blob(r)},
		{"disorder", disorder(r)},
	}
}

func small() *benchv1.Small {
	return &benchv1.Small{
		Id: "acc-2f9c1e", DisplayName: "Household account", Balance: 1234567, Revision: 17, Active: true,
		Currency: benchv1.Currency_CURRENCY_EUR, Rate: 1.25, Tags: []string{"home", "joint"}, AccountNumber: "DE02120300000000202051",
	}
}

func pick(r *rand.Rand, words ...string) string { return words[r.IntN(len(words))] }

func sentence(r *rand.Rand, n int) string {
	var b strings.Builder
	for b.Len() < n {
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(pick(r, "the", "parcel", "leaves", "tomorrow", "before", "noon", "and", "arrives", "within", "two", "days", "unless", "held"))
	}
	return b.String()
}

func money(r *rand.Rand) *benchv1.Money {
	return &benchv1.Money{Currency: benchv1.Currency(1 + r.IntN(3)), Units: r.Int64N(100000), Nanos: r.Int32N(100) * 10000000}
}

func order(r *rand.Rand) *benchv1.Order {
	address := func() *benchv1.Address {
		return &benchv1.Address{
			Lines: []string{"Example Works Ltd", fmt.Sprintf("%d Mill Lane", r.IntN(200))}, City: "Zürich",
			PostalCode: fmt.Sprint(1000 + r.IntN(9000)), CountryCode: "CH",
		}
	}
	o := &benchv1.Order{
		OrderId: "ord-000182736451", CustomerId: "cust-99182", BillingAddress: address(), ShippingAddress: address(),
		Labels: map[string]string{}, Adjustments: map[int32]*benchv1.Money{},
		Payment: &benchv1.Order_Card_{Card: &benchv1.Order_Card{Number: "4111 1111 1111 1111", Holder: "A. Customer", ExpiryYear: 2031, ExpiryMonth: 7}},
		Note:    "Leave at the \"back\" door,\nplease ring twice.\tThanks", Total: money(r),
	}
	for range 16 {
		o.Items = append(o.Items, &benchv1.Order_Item{
			Sku: fmt.Sprintf("SKU-%06d", r.IntN(1e6)), Title: sentence(r, 20), Quantity: 1 + r.Int32N(9), UnitPrice: money(r),
			Discount: float64(r.IntN(40)) / 100, Gift: r.IntN(2) == 0,
		})
	}
	for i := range 12 {
		o.Labels[fmt.Sprintf("%s-%d", pick(r, "team", "region", "channel", "campaign"), i)] = sentence(r, 12)
	}
	for range 8 {
		o.Adjustments[r.Int32N(1000)] = money(r)
	}
	return o
}

func list(r *rand.Rand, n int) *benchv1.List {
	l := &benchv1.List{NextPageToken: "CAoQAg==", TotalSize: int32(n)}
	for i := range n {
		row := &benchv1.List_Row{
			Name: fmt.Sprintf("shops/%d/products/%d", r.IntN(50), i), Sequence: r.Int64N(1 << 40), Title: sentence(r, 10+r.IntN(40)),
			Price: money(r), Available: r.IntN(3) > 0, Score: float64(r.IntN(1000)) / 100,
		}
		if r.IntN(2) == 0 {
			row.Currency = benchv1.Currency(r.IntN(4))
		}
		for range r.IntN(5) {
			row.Sizes = append(row.Sizes, r.Int32N(60))
		}
		if r.IntN(3) > 0 {
			row.Description = sentence(r, 30+r.IntN(120))
		}
		l.Rows = append(l.Rows, row)
	}
	return l
}

func texts(r *rand.Rand) *benchv1.Texts {
	t := &benchv1.Texts{}
	for i := range 430 {
		switch i % 8 {
		case 0:
			t.Lines = append(t.Lines, "Die Lieferung für Köln verzögert sich um zwei Tage; Grüße aus Zürich.")
		case 1:
			t.Lines = append(t.Lines, "Отправление прибудет завтра до полудня.")
		case 2:
			t.Lines = append(t.Lines, "荷物は明日の正午までに到着する予定です。")
		case 3:
			t.Lines = append(t.Lines, "path C:\\temp\\file and \"quotes\"\nand a second line")
		default:
			t.Lines = append(t.Lines, sentence(r, 20+r.IntN(70)))
		}
	}
	return t
}

func numbers(r *rand.Rand) *benchv1.Numbers {
	n := &benchv1.Numbers{}
	for range 500 {
		n.Doubles = append(n.Doubles, r.NormFloat64()*math.Pow(10, float64(r.IntN(30)-15)))
		n.Floats = append(n.Floats, float32(r.NormFloat64()))
		n.Ints = append(n.Ints, r.Int32()-1<<30)
		n.Longs = append(n.Longs, r.Int64N(1<<50))
		n.Hashes = append(n.Hashes, r.Uint64())
		n.Deltas = append(n.Deltas, r.Int32N(400)-200)
		n.Prices = append(n.Prices, float64(r.IntN(1000000))/100)
		n.Words = append(n.Words, r.Uint32())
		if len(n.Points) < 300 {
			n.Points = append(n.Points, &benchv1.Numbers_Point{X: r.Float64(), Y: r.Float64(), Weight: r.Uint32N(100)})
		}
	}
	return n
}

func wellKnown(r *rand.Rand) *benchv1.WellKnown {
	w := &benchv1.WellKnown{}
	for i := range 24 {
		attrs, err := structpb.NewStruct(map[string]any{
			"region": pick(r, "eu", "us", "ap"), "retries": float64(r.IntN(5)), "cached": r.IntN(2) == 0,
			"path": []any{"edge", "gateway", float64(i)}, "user": map[string]any{"id": "u-1982", "anonymous": false, "plan": nil},
		})
		if err != nil {
			panic(err)
		}
		detail, err := anypb.New(&benchv1.Money{Currency: benchv1.Currency_CURRENCY_CHF, Units: r.Int64N(1000)})
		if err != nil {
			panic(err)
		}
		w.Events = append(w.Events, &benchv1.WellKnown_Event{
			At:   &timestamppb.Timestamp{Seconds: 1700000000 + r.Int64N(1e8), Nanos: r.Int32N(1000) * 1000000},
			Took: &durationpb.Duration{Seconds: r.Int64N(100), Nanos: r.Int32N(1000000) * 1000}, Subject: wrapperspb.String("orders/" + fmt.Sprint(i)),
			Count: wrapperspb.Int64(r.Int64N(1 << 40)), Final: wrapperspb.Bool(r.IntN(2) == 0),
			Changed:    &fieldmaskpb.FieldMask{Paths: []string{"display_name", "billing_address.postal_code"}},
			Attributes: attrs, Detail: detail,
		})
	}
	return w
}

func blob(r *rand.Rand) *benchv1.Blob {
	b := make([]byte, 192<<10)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return &benchv1.Blob{Name: "photo.jpg", Content: b}
}

func disorder(r *rand.Rand) *benchv1.Disorder {
	d := &benchv1.Disorder{FirstName: "Ada", LastName: "Example"}
	for i := range 90 {
		e := &benchv1.Disorder_Entry{
			Kind: pick(r, "credit", "debit"), Amount: r.Int64N(1e6), Fee: money(r), Id: fmt.Sprintf("e-%d", i), Settled: r.IntN(2) == 0,
			Source: &benchv1.Disorder_Entry_Account{Account: "DE0212030000"},
		}
		if i%3 == 0 {
			e.Source = &benchv1.Disorder_Entry_Terminal{Terminal: r.Int32N(1000)}
		}
		for range r.IntN(4) {
			e.Codes = append(e.Codes, r.Int32N(300))
		}
		d.Entries = append(d.Entries, e)
	}
	return d
}
