package bank

import (
	"fmt"
	"math"

	bankv1 "transom/proto/bank/v1"
)

// maxUnits bounds the amount of one movement, so that a balance can't overflow in practice.
const maxUnits = 1_000_000_000_000

// checkAmount says what is wrong with an amount to be moved.
func checkAmount(field string, m *bankv1.Money) error {
	switch {
	case m == nil:
		return invalid(field, "is required")
	case rateOf(m.GetCurrency()) == 0:
		return invalid(field+".currency", "%q is not a currency of this bank", m.GetCurrency())
	case m.GetNanos() < -999_999_999 || m.GetNanos() > 999_999_999:
		return invalid(field+".nanos", "%d is outside -999999999 … 999999999", m.GetNanos())
	case m.GetUnits() < 0 || m.GetNanos() < 0 || m.GetUnits() == 0 && m.GetNanos() == 0:
		return invalid(field, "must be more than zero")
	case m.GetUnits() > maxUnits:
		return invalid(field+".units", "%d is more than %d", m.GetUnits(), maxUnits)
	}
	return nil
}

// add returns a + sign·b in a's currency; sign is 1 or -1. Saturates at the ends of int64.
func add(a, b *bankv1.Money, sign int64) *bankv1.Money {
	const billion = 1_000_000_000
	units, nanos := a.GetUnits()+sign*b.GetUnits(), int64(a.GetNanos())+sign*int64(b.GetNanos())
	if sign*b.GetUnits() > 0 && units < a.GetUnits() {
		units = math.MaxInt64
	}
	units, nanos = units+nanos/billion, nanos%billion
	switch { // both of one sign
	case units > 0 && nanos < 0:
		units, nanos = units-1, nanos+billion
	case units < 0 && nanos > 0:
		units, nanos = units+1, nanos-billion
	}
	return &bankv1.Money{Currency: a.GetCurrency(), Units: units, Nanos: int32(nanos)}
}

// less reports whether a < b, of one currency.
func less(a, b *bankv1.Money) bool {
	if a.GetUnits() != b.GetUnits() {
		return a.GetUnits() < b.GetUnits()
	}
	return a.GetNanos() < b.GetNanos()
}

// text is the amount as people write it, "12.50 EUR".
func text(m *bankv1.Money) string {
	sign, units, nanos := "", m.GetUnits(), m.GetNanos()
	if units < 0 || nanos < 0 {
		sign, units, nanos = "-", -units, -nanos
	}
	return fmt.Sprintf("%s%d.%02d %s", sign, units, nanos/10_000_000, m.GetCurrency())
}
