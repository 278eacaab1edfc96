package rpc

import (
	"fmt"
	"runtime/debug"
)

// PanicError is a panic that ended a call, and not the process. To clients it is INTERNAL, as any error that is not meant for
// them; its text is for the log.
type PanicError struct {
	// Value is what was panicked with, Stack the goroutine's.
	Value any
	Stack []byte
}

// Error implements error.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v\n%s", e.Value, e.Stack) }

// Recovered is to be deferred: it makes a panic a *PanicError in *err. A goroutine that runs a part of a call, and is not
// net/http's, needs it.
func Recovered(err *error) {
	if p := recover(); p != nil {
		*err = &PanicError{Value: p, Stack: debug.Stack()}
	}
}
