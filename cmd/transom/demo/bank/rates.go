package bank

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	bankv1 "transom/proto/bank/v1"
)

// rates implements bank.v1.Rates.
type rates struct {
	bankv1.UnimplementedRatesServer
}

// perEuro are the currencies of the bank and what a euro is worth in them.
var perEuro = map[string]float64{"EUR": 1, "USD": 1.08, "GBP": 0.85, "CHF": 0.95, "JPY": 162, "SEK": 11.25}

// rateOf is what a euro is worth in a currency; 0 if the bank does not know it.
func rateOf(currency string) float64 { return perEuro[currency] }

// Get implements bank.v1.Rates.
func (*rates) Get(_ context.Context, req *bankv1.GetRateRequest) (*bankv1.Rate, error) {
	base, quote := rateOf(req.GetBase()), rateOf(req.GetQuote())
	if base == 0 {
		return nil, notFound("Rate", req.GetBase())
	}
	if quote == 0 {
		return nil, notFound("Rate", req.GetQuote())
	}
	return &bankv1.Rate{
		Base: req.GetBase(), Quote: req.GetQuote(), Rate: quote / base,
		Time: timestamppb.New(time.Now().Truncate(24 * time.Hour)),
	}, nil
}

// List implements bank.v1.Rates.
func (*rates) List(_ context.Context, req *bankv1.ListRatesRequest) (*bankv1.ListRatesResponse, error) {
	base := rateOf(req.GetBase())
	if base == 0 {
		return nil, notFound("Rate", req.GetBase())
	}
	resp := &bankv1.ListRatesResponse{Base: req.GetBase(), Rates: map[string]float64{}}
	for currency, rate := range perEuro {
		if currency != req.GetBase() {
			resp.Rates[currency] = rate / base
		}
	}
	return resp, nil
}
