package policies_test

import (
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"

	"transom/gateway"
)

// TestSelectors: of each field on its own the most specific selector counts, whatever the order of the blocks.
func TestSelectors(t *testing.T) {
	blocks := []string{
		`{selector: "*", timeout: 1s, message_bytes: 1000, cost: 2, compress: false}`,
		`{selector: bank.*, message_bytes: 2000}`,
		`{selector: [bank.v1.*, bank.v1.Accounts.Get], timeout: 3s}`,
		`{selector: bank.v1.Accounts.*, timeout: 4s, cost: 4}`,
		`{selector: bank.v1.Account.*, optional: true, timeout: 6s}`,
		`{selector: bank.v1.Accounts.Balance, message_bytes: 5000}`,
	}
	p := &proxy{bank: "127.0.0.1:1", set: descriptorSet(t)}
	row := regexp.MustCompile(`(?m)^(timeout|message_bytes|cost|compress) +(\S+) +(\S*) `)
	for range 2 {
		file := p.parse(t, "policies:\n- "+strings.Join(blocks, "\n- ")+"\n")
		for method, want := range map[string][]string{
			"grpc.reflection.v1.ServerReflection.ServerReflectionInfo": {"timeout=1s by *", "message_bytes=1000 by *", "cost=2 by *", "compress=false by *"},
			"bank.v1.Rates.Get":        {"timeout=3s by bank.v1.*", "message_bytes=2000 by bank.*", "cost=2 by *", "compress=false by *"},
			"bank.v1.Accounts.List":    {"timeout=4s by bank.v1.Accounts.*", "message_bytes=2000 by bank.*", "cost=4 by bank.v1.Accounts.*", "compress=false by *"},
			"bank.v1.Accounts.Get":     {"timeout=3s by bank.v1.Accounts.Get", "message_bytes=2000 by bank.*", "cost=4 by bank.v1.Accounts.*", "compress=false by *"},
			"bank.v1.Accounts.Balance": {"timeout=4s by bank.v1.Accounts.*", "message_bytes=5000 by bank.v1.Accounts.Balance", "cost=4 by bank.v1.Accounts.*", "compress=false by *"},
		} {
			var out strings.Builder
			if err := gateway.Explain(t.Context(), file.Config, method, func(path string) string { return path }, &out, slog.New(slog.DiscardHandler)); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range row.FindAllStringSubmatch(out.String(), -1) {
				got = append(got, fmt.Sprintf("%s=%s by %s", m[1], strings.Trim(m[2], `"`), m[3]))
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", method, got, want)
			}
		}
		slices.Reverse(blocks)
	}
}

// TestSelectorFaults: a selector that takes in no method is a mistake, unless it is said to be none; and so are two that want
// different things with the same right.
func TestSelectorFaults(t *testing.T) {
	for _, tc := range []struct{ text, want string }{
		{"policies:\n- {selector: \"*\", timeout: 1s}\n- selector: bank.v1.Acounts.*\n  timeout: 2s\n", `3:13: selector "bank.v1.Acounts.*" matches no method of the loaded descriptors; did you mean "bank.v1.Accounts`},
		{"policies:\n- selector: bank.v1.Accounts.Gett\n  timeout: 2s\n", `2:13: selector "bank.v1.Accounts.Gett" matches no method of the loaded descriptors; did you mean "bank.v1.Accounts.Get"? (optional: true allows it)`},
		{"policies:\n- selector: bank.v1.Account.*\n  timeout: 2s\n", `2:13: selector "bank.v1.Account.*" matches no method`},   // part of a name is none
		{"policies:\n- selector: bank.v1.Accounts\n  timeout: 2s\n", `2:13: selector "bank.v1.Accounts" matches no method`},     // a service is no method
		{"policies:\n- selector: bank.v1.accounts.*\n  timeout: 2s\n", `2:13: selector "bank.v1.accounts.*" matches no method`}, // case counts
		{"policies:\n- selector: bank.v1.Accounts.Get*\n  timeout: 2s\n", `2:13: selector "bank.v1.Accounts.Get*": want *, package.*, package.Service.* or package.Service.Method`},
		{"policies:\n- selector: \"*.Get\"\n  timeout: 2s\n", `2:13: selector "*.Get": want *, package.*`},
		{"policies:\n- selector: /bank.v1.Accounts/Get\n  timeout: 2s\n", `2:13: selector "/bank.v1.Accounts/Get": want *, package.*`},
		{"policies:\n- timeout: 2s\n", `2:3: selector: must contain at least 1 item`},
		{"policies:\n- {selector: bank.v1.*, timeout: 1s}\n- {selector: bank.v1.*, timeout: 2s}\n", `3:34: for bank.v1.Accounts.Balance and 27 more methods: selector "bank.v1.*" sets timeout with the same precedence as this one (see line 2)`},
		{"policies:\n- {selector: bank.v1.Rates.*, cost: 1}\n- {selector: [bank.v1.Accounts.*, bank.v1.Rates.*], cost: 1}\n", `3:59: for bank.v1.Rates.Get and another method: selector "bank.v1.Rates.*" sets cost with the same precedence as this one (see line 2)`},
		{"policies:\n- selector: bank.v1.Acounts.*\n  optional: true\n  timeout: 2s\n", ""},
		{"policies:\n- {selector: bank.v1.*, timeout: 1s}\n- {selector: bank.v1.*, cost: 2}\n", ""}, // no field twice
	} {
		found := faults(t, tc.text)
		if tc.want == "" && len(found) > 0 || tc.want != "" && !slices.ContainsFunc(found, func(f string) bool { return strings.HasPrefix(f, tc.want) }) {
			t.Errorf("%s\nfaults:\n%s\nwant one that begins with\n%s", tc.text, strings.Join(found, "\n"), tc.want)
		}
	}
}
