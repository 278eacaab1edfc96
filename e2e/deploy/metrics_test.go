package deploy

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/model/textparse"
	"github.com/prometheus/prometheus/promql/parser"
)

// exported are the labels of each series that a gateway with some traffic behind it exports, by name: of a histogram
// those ending in _bucket, _sum and _count.
func exported(t *testing.T, families map[string]*dto.MetricFamily) map[string]map[string]bool {
	t.Helper()
	all := map[string]map[string]bool{"up": {}} // Prometheus's own
	for name, f := range families {
		names := []string{name}
		switch f.GetType() {
		case dto.MetricType_HISTOGRAM:
			names = []string{name + "_bucket", name + "_sum", name + "_count"}
		case dto.MetricType_SUMMARY:
			names = []string{name, name + "_sum", name + "_count"}
		}
		for _, n := range names {
			have := map[string]bool{}
			for _, m := range f.GetMetric() {
				for _, l := range m.GetLabel() {
					have[l.GetName()] = true
				}
			}
			if strings.HasSuffix(n, "_bucket") {
				have["le"] = true
			}
			all[n] = have
		}
	}
	for _, have := range all {
		have["job"], have["instance"] = true, true // Prometheus's own
	}
	return all
}

// scrape gets the metrics in the format that accept asks for.
func scrape(t *testing.T, url, accept string) (body []byte, contentType string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", accept)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err = io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d, %v", url, resp.StatusCode, err)
	}
	return body, resp.Header.Get("Content-Type")
}

func families(t *testing.T, text []byte) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.UTF8Validation)
	all, err := p.TextToMetricFamilies(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestExposition reads the metrics as Prometheus does, in each of its formats, and asks its linter about the names.
func TestExposition(t *testing.T) {
	url := startGateway(t).metrics
	for _, accept := range []string{
		"text/plain;version=0.0.4",
		"application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited",
	} {
		body, contentType := scrape(t, url, accept)
		if want, _, _ := strings.Cut(accept, ";"); !strings.HasPrefix(contentType, want) {
			t.Errorf("asked for %s, got %s", accept, contentType)
		}
		p, err := textparse.New(body, contentType, labels.NewSymbolTable(), textparse.ParserOptions{})
		if err != nil {
			t.Fatal(err)
		}
		series := 0
		for {
			entry, err := p.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", contentType, err)
			}
			if entry == textparse.EntrySeries {
				series++
			}
		}
		t.Logf("%s: %d series", contentType, series)
		if series < 250 {
			t.Errorf("%s: %d series, want hundreds", contentType, series)
		}
	}
	text, _ := scrape(t, url, "text/plain")
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !strings.HasPrefix(p.Metric, "go_") { // the runtime's collector has its own names
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// expression is a query of the dashboard or of an alert.
type expression struct{ where, query string }

// dashboard are the queries of deploy/grafana/transom.json, with its variables filled in.
func dashboard(t *testing.T) []expression {
	t.Helper()
	raw, err := os.ReadFile("../../deploy/grafana/transom.json")
	if err != nil {
		t.Fatal(err)
	}
	type grid struct{ H, W, X, Y int }
	var d struct {
		UID        string
		Templating struct {
			List []struct{ Name, Definition string }
		}
		Annotations struct {
			List []struct{ Name, Expr string }
		}
		Panels []struct {
			ID          int
			Title, Type string
			GridPos     grid
			Targets     []struct{ RefID, Expr string }
		}
	}
	if err := json.Unmarshal(raw, &d); err != nil {
		t.Fatal(err)
	}
	variables := []string{"$__rate_interval", "5m"}
	var all []expression
	for _, v := range d.Templating.List {
		variables = append(variables, "$"+v.Name, ".*")
		if arg, ok := strings.CutPrefix(v.Definition, "label_values("); ok {
			i := strings.LastIndex(arg, ",")
			label := strings.TrimSpace(strings.TrimSuffix(arg[i+1:], ")"))
			all = append(all, expression{"variable " + v.Name, "count by (" + label + ") (" + arg[:i] + ")"})
		}
	}
	for _, a := range d.Annotations.List {
		all = append(all, expression{"annotation " + a.Name, a.Expr})
	}
	var taken []grid
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("panel %q: id %d is taken", p.Title, p.ID)
		}
		ids[p.ID] = true
		g := p.GridPos
		for _, o := range taken {
			if g.X < o.X+o.W && o.X < g.X+g.W && g.Y < o.Y+o.H && o.Y < g.Y+g.H {
				t.Errorf("panel %q lies over another", p.Title)
			}
		}
		if taken = append(taken, g); g.X+g.W > 24 {
			t.Errorf("panel %q is outside of the grid", p.Title)
		}
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
		for _, q := range p.Targets {
			all = append(all, expression{"panel " + p.Title, q.Expr})
		}
	}
	filled := strings.NewReplacer(variables...)
	for i := range all {
		all[i].query = filled.Replace(all[i].query)
		if strings.Contains(all[i].query, "$") {
			t.Errorf("%s: unknown variable in %s", all[i].where, all[i].query)
		}
	}
	return all
}

var templated = regexp.MustCompile(`\$labels\.(\w+)`)

// alerts are the queries of deploy/prometheus/transom.rules.yaml, which Prometheus's own loader reads. A label that an
// annotation names must be one of the alert's.
func alerts(t *testing.T) []expression {
	t.Helper()
	raw, err := os.ReadFile("../../deploy/prometheus/transom.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	groups, errs := rulefmt.Parse(raw, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	for _, err := range errs {
		t.Error(err)
	}
	if groups == nil {
		t.FailNow()
	}
	var all []expression
	for _, g := range groups.Groups {
		for _, r := range g.Rules {
			all = append(all, expression{"alert " + r.Alert, r.Expr})
			for _, key := range []string{"summary", "description"} {
				if r.Annotations[key] == "" {
					t.Errorf("alert %s has no %s", r.Alert, key)
				}
			}
			if s := r.Labels["severity"]; s != "critical" && s != "warning" {
				t.Errorf("alert %s: severity %q", r.Alert, s)
			}
		}
	}
	return all
}

// TestDashboardAndAlerts holds each query against what a gateway exports: the metrics, their labels, and the values of
// labels that are named one by one. Each metric of transom must be on the dashboard.
func TestDashboardAndAlerts(t *testing.T) {
	text, _ := scrape(t, startGateway(t).metrics, "text/plain")
	all := families(t, text)
	have := exported(t, all)
	used := map[string]bool{}
	check := func(e expression) {
		expr, err := parser.NewParser(parser.Options{}).ParseExpr(e.query)
		if err != nil {
			t.Errorf("%s: %v\n%s", e.where, err, e.query)
			return
		}
		within := map[string]bool{}
		parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
			switch n := n.(type) {
			case *parser.VectorSelector:
				used[n.Name] = true
				if have[n.Name] == nil {
					t.Errorf("%s: nothing exports %s", e.where, n.Name)
					return nil
				}
				for l := range have[n.Name] {
					within[l] = true
				}
				for _, m := range n.LabelMatchers {
					if m.Name != model.MetricNameLabel && !have[n.Name][m.Name] {
						t.Errorf("%s: %s has no label %s", e.where, n.Name, m.Name)
					}
				}
			case *parser.SubqueryExpr:
				t.Errorf("%s: a subquery is costly", e.where)
			}
			return nil
		})
		parser.Inspect(expr, func(n parser.Node, _ []parser.Node) error {
			var by []string
			switch n := n.(type) {
			case *parser.AggregateExpr:
				by = n.Grouping
			case *parser.BinaryExpr:
				if n.VectorMatching != nil {
					by = append(slices.Clone(n.VectorMatching.MatchingLabels), n.VectorMatching.Include...)
				}
			}
			for _, l := range by {
				if !within[l] {
					t.Errorf("%s: no label %s\n%s", e.where, l, e.query)
				}
			}
			return nil
		})
	}
	panels := dashboard(t)
	for _, e := range panels {
		check(e)
	}
	for name := range all {
		if strings.HasPrefix(name, "transom_") && !used[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
	for _, name := range []string{"rpc_server_call_duration_seconds_bucket", "rpc_client_call_duration_seconds_bucket", "http_server_request_duration_seconds_count", "http_server_active_requests"} {
		if !used[name] {
			t.Errorf("the dashboard does not show %s", name)
		}
	}
	rules := alerts(t)
	for _, e := range rules {
		check(e)
	}
	raw, err := os.ReadFile("../../deploy/prometheus/transom.rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range templated.FindAllStringSubmatch(string(raw), -1) {
		if known := slices.ContainsFunc(rules, func(e expression) bool { return strings.Contains(e.query, m[1]) }); !known && !anyHas(have, m[1]) {
			t.Errorf("an annotation names the label %s, which no metric has", m[1])
		}
	}
	t.Logf("%d queries of the dashboard, %d alerts", len(panels), len(rules))
}

func anyHas(have map[string]map[string]bool, label string) bool {
	for _, l := range have {
		if l[label] {
			return true
		}
	}
	return false
}
