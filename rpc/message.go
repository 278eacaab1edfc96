package rpc

import (
	"sync"

	"google.golang.org/grpc/mem"
)

// Message is one protobuf message as wire bytes, immutable, held in grpc's pooled buffers. It is a small value: pass it
// by value. Whoever holds a Message holds one reference to its buffers and must either hand it over or Release it, once.
// A dropped reference is not an error, only a buffer the pool never sees again.
//
// # Concurrency
// A Message may be read by many goroutines. Retain before sharing it, so that each holder has a reference of its own.
type Message struct {
	bufs   mem.BufferSlice
	shared *shared
}

// maxForms is how many renderings a shared message remembers: those of a binding or two, plain and compressed, of the schemas
// before and after a reload.
const maxForms = 8

// shared is what all holders of one cached message have in common.
type shared struct {
	mu    sync.Mutex
	forms map[any][]byte
}

// NewMessage wraps wire bytes that belong to the garbage collector. b must not be changed afterwards. A nil or empty b
// is the message with no fields set.
func NewMessage(b []byte) Message {
	if len(b) == 0 {
		return Message{}
	}
	m := &sliceMessage{SliceBuffer: b}
	m.bufs[0] = m
	return Message{bufs: m.bufs[:]}
}

// sliceMessage is a message in one slice of ordinary memory, its buffer and the list of its buffers in one allocation.
type sliceMessage struct {
	mem.SliceBuffer
	bufs [1]mem.Buffer
}

// PooledMessage wraps *b, which returns to pool when the last reference is released.
func PooledMessage(b *[]byte, pool mem.BufferPool) Message {
	return Message{bufs: mem.BufferSlice{mem.NewBuffer(b, pool)}}
}

// MessageOf takes over one reference to bufs.
func MessageOf(bufs mem.BufferSlice) Message { return Message{bufs: bufs} }

// Len is the size in bytes of the wire form.
func (m Message) Len() int { return m.bufs.Len() }

// Buffers lends the buffers; they are valid as long as the caller holds its reference.
func (m Message) Buffers() mem.BufferSlice { return m.bufs }

// Bytes lends the wire form in one piece, valid as long as the caller holds its reference. It copies only if the message
// lies in several buffers.
func (m Message) Bytes() []byte {
	switch len(m.bufs) {
	case 0:
		return nil
	case 1:
		return m.bufs[0].ReadOnlyData()
	}
	return m.bufs.Materialize()
}

// Retain adds a reference and returns the message, so that it can be handed over and kept.
func (m Message) Retain() Message {
	m.bufs.Ref()
	return m
}

// Release gives back one reference.
func (m Message) Release() { m.bufs.Free() }

// Share returns the message in a form that remembers its renderings (Rendering), for messages sent many times, such as
// cached answers.
func (m Message) Share() Message {
	if m.shared == nil {
		m.shared = &shared{forms: map[any][]byte{}}
	}
	return m
}

// Rendering returns the bytes that render makes of the message under key, remembering them if the message is shared.
// The result must not be changed. key must be comparable and name all that the result depends on. For a message that is
// not shared ok is false and render is not called.
func (m Message) Rendering(key any, render func(wire []byte) ([]byte, error)) (b []byte, ok bool, err error) {
	if m.shared == nil {
		return nil, false, nil
	}
	m.shared.mu.Lock()
	defer m.shared.mu.Unlock()
	if b, ok = m.shared.forms[key]; ok {
		return b, true, nil
	}
	if b, err = render(m.Bytes()); err != nil {
		return nil, true, err
	}
	if len(m.shared.forms) >= maxForms {
		clear(m.shared.forms)
	}
	m.shared.forms[key] = b
	return b, true, nil
}
