package sim

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
)

// section replaces what is between two lines of doc, a Markdown text, that begin and end the section of a name.
func section(doc []byte, name string, text []byte) ([]byte, error) {
	first, last := fmt.Sprintf("<!-- %s: begin -->\n", name), fmt.Sprintf("<!-- %s: end -->\n", name)
	begin, end := bytes.Index(doc, []byte(first)), bytes.Index(doc, []byte(last))
	if begin < 0 || end < begin {
		return nil, fmt.Errorf("the document has no lines %q and %q", first, last)
	}
	return slices.Concat(doc[:begin+len(first)], text, doc[end:]), nil
}

// DocumentPublished replaces the table of claims in doc, between the lines of "published".
func DocumentPublished(doc []byte, claims []Claim) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintln(&b, "| Published by | Published | Simulated | In shape | Adaptive there |\n|---|---|---|---|---|")
	for _, c := range claims {
		shape := "yes"
		if !c.InShape {
			shape = "**no**: " + c.Why
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", c.Source, c.Published, c.Simulated, shape, c.Adaptive)
	}
	return section(doc, "published", b.Bytes())
}

// Document replaces the results in doc, between the lines of "simulate".
func Document(doc []byte, all []ScenarioResult, verdicts []Verdict) ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintln(&b, "\n### Criteria")
	fmt.Fprintln(&b, "\n| Scenario | Cell | Criterion | Result | |\n|---|---|---|---|---|")
	for _, v := range verdicts {
		ok := "holds"
		if !v.OK {
			ok = "**fails**"
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", v.Scenario, v.Cell, v.Criterion, v.Got, ok)
	}
	for i := range all {
		table(&b, &all[i])
	}
	return section(doc, "simulate", b.Bytes())
}

func table(b *bytes.Buffer, s *ScenarioResult) {
	fmt.Fprintf(b, "\n### %s: %s\n\n", s.ID, s.Title)
	if s.Published != "" {
		fmt.Fprintf(b, "Published: %s.\n\n", s.Published)
	}
	fmt.Fprintf(b, "p99 in ms, median of %d seeds (least to greatest); errors in brackets where there are any. %d requests a run.\n\n", s.SeedsRun, s.Results[0].Cell.Requests)
	fmt.Fprint(b, "| Policy |")
	for _, r := range s.Results {
		fmt.Fprintf(b, " %s |", r.Cell.Name)
	}
	fmt.Fprint(b, "\n|---|", strings.Repeat("--:|", len(s.Results)), "\n")
	for _, p := range s.Ran {
		name := p
		if p == "adaptive" {
			name = "**adaptive**"
		}
		fmt.Fprintf(b, "| %s |", name)
		for _, r := range s.Results {
			m, lo, hi := Median(r.Runs[p], p99)
			e, _, _ := Median(r.Runs[p], func(s Summary) float64 { return s.Errors })
			fmt.Fprintf(b, " %s", ms(m))
			if hi > lo*1.005 {
				fmt.Fprintf(b, " (%s–%s)", ms(lo), ms(hi))
			}
			if e > 0 {
				fmt.Fprintf(b, " [%.2g %%]", e*100)
			}
			fmt.Fprint(b, " |")
		}
		fmt.Fprintln(b)
	}
	if len(s.Results) > 1 {
		fmt.Fprintf(b, "\n![p99 of %s](balancing/%s.svg)\n", s.ID, s.ID)
	}
}

func ms(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

// palette is told apart by most eyes; the adaptive policy is black.
var palette = []string{"#000000", "#e69f00", "#56b4e9", "#009e73", "#b8a800", "#0072b2", "#d55e00", "#cc79a7", "#999999", "#7f3c8d", "#a05a2c", "#66c2a5", "#8da0cb", "#444444", "#c2185b"}

// Plot draws the p99 of a scenario, a line per policy over its cells, on a logarithmic scale, as SVG.
func Plot(s *ScenarioResult) []byte {
	const width, height, left, right, top, bottom = 760, 420, 60, 170, 30, 50
	lo, hi := math.Inf(1), 0.
	for _, r := range s.Results {
		for _, p := range s.Ran {
			v := r.median(p, p99)
			lo, hi = min(lo, v), max(hi, v)
		}
	}
	lo, hi = lo*0.9, hi*1.1
	y := func(v float64) float64 {
		return top + (height-top-bottom)*(1-math.Log(v/lo)/math.Log(hi/lo))
	}
	x := func(i int) float64 {
		return left + (width-left-right)*(float64(i)+0.5)/float64(len(s.Results))
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", width, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#ffffff"/><text x="%d" y="18" font-size="14">%s: p99 in ms</text>`+"\n", width, height, left, s.ID)
	for _, v := range []float64{10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000, 10000} {
		if v >= lo && v <= hi {
			fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#dddddd"/><text x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n", left, width-right, y(v), y(v), left-6, y(v)+4, v)
		}
	}
	for i, r := range s.Results {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle" font-size="11">%s</text>`+"\n", x(i), height-bottom+18, r.Cell.Name)
	}
	names := append(Policies(), "least_loaded")
	for k, p := range s.Ran {
		at := slices.Index(names, p)
		colour, thick := palette[max(at, 0)%len(palette)], 1.5
		if p == "adaptive" {
			thick = 3
		}
		dash := ""
		if p == "oracle" {
			dash = ` stroke-dasharray="5 4"`
		}
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="%.1f"%s points="`, colour, thick, dash)
		for i, r := range s.Results {
			fmt.Fprintf(&b, "%.1f,%.1f ", x(i), y(r.median(p, p99)))
		}
		fmt.Fprintln(&b, `"/>`)
		for i, r := range s.Results {
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s"/>`, x(i), y(r.median(p, p99)), colour)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", width-right+12, top+14+k*17, colour, p)
	}
	fmt.Fprintln(&b, "</svg>")
	return b.Bytes()
}
