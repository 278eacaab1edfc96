// Package traffic decides where calls go, and what becomes of some of them on the way: it chooses a cluster by what a call
// carries or by share, sends copies of calls elsewhere, makes calls late or fail for tests, and tells clients that a method
// is on its way out.
//
// # Concurrency
// Everything but [Mirrors] is immutable once made; Mirrors is safe for concurrent use.
package traffic

import (
	"math/rand/v2"
	"strings"

	"google.golang.org/grpc/metadata"
)

// Condition is something that a call's metadata must have. Of a name with several values one will do.
type Condition struct {
	// Header is the metadata name, in lower case.
	Header string
	// Match says how Text is compared.
	Match Match
	Text  string
}

// Match is a way to compare.
type Match uint8

// The ways to compare.
const (
	Present Match = iota // there is a value
	Absent               // there is none
	Exact                // a value is Text
	Prefix               // a value begins with Text
)

// holds reports whether md meets the condition.
func (c *Condition) holds(md metadata.MD) bool {
	values := md[c.Header]
	switch c.Match {
	case Present:
		return len(values) > 0
	case Absent:
		return len(values) == 0
	case Exact, Prefix:
		for _, v := range values {
			if v == c.Text || c.Match == Prefix && strings.HasPrefix(v, c.Text) {
				return true
			}
		}
	}
	return false
}

// all reports whether md meets every condition.
func all(when []Condition, md metadata.MD) bool {
	for i := range when {
		if !when[i].holds(md) {
			return false
		}
	}
	return true
}

// chosen is true for the given share, 0 … 1, of all times it is asked, at random.
func chosen(share float64) bool { return share >= 1 || share > 0 && rand.Float64() < share }
