package codec

import (
	"fmt"
	"strings"
)

// Error is a fault of the input: text that is not JSON or does not fit the type, or wire bytes that cannot be parsed or
// have no JSON form. Its text is fit for the client that sent the input.
type Error struct {
	Offset       int    // bytes before the fault, -1 when unknown
	Line, Column int    // of JSON text, from 1; the column counts characters; 0 when unknown
	Path         string // where in the message, like accounts[2].balance.units; empty at the top
	Msg          string
}

// Error reads like `accounts[2].balance.units: expected an integer, found "x" (line 3, column 7)`.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Path != "" {
		b.WriteString(e.Path)
		b.WriteString(": ")
	}
	b.WriteString(e.Msg)
	if e.Line > 0 {
		fmt.Fprintf(&b, " (line %d, column %d)", e.Line, e.Column)
	}
	return b.String()
}
