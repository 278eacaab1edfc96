package codec

import (
	"strconv"
	"strings"
)

// keySegment is a map key as part of a path: .key when it looks like a name, else ["key"].
func keySegment(key string) string {
	for i, c := range []byte(key) {
		if !(c|0x20 >= 'a' && c|0x20 <= 'z' || c == '_' || i > 0 && (c >= '0' && c <= '9' || c == '-')) {
			return "[" + strconv.Quote(key) + "]"
		}
	}
	if key == "" {
		return `[""]`
	}
	return key
}

// joinPath makes a path of segments that come innermost first.
func joinPath(segments []string) string {
	var b strings.Builder
	for i := len(segments) - 1; i >= 0; i-- {
		if b.Len() > 0 && segments[i][0] != '[' {
			b.WriteByte('.')
		}
		b.WriteString(segments[i])
	}
	return b.String()
}

// pathAt walks JSON text up to offset and returns the path of the value that holds it.
func pathAt(in []byte, offset int) string {
	type level struct {
		key   string // of the member being read
		array bool
		n     int
	}
	var stack []level
	wantKey := false
	for i := 0; i < len(in) && i < offset; {
		switch in[i] {
		case '{':
			stack = append(stack, level{})
			wantKey = true
		case '[':
			stack = append(stack, level{array: true})
			wantKey = false
		case '}', ']':
			if len(stack) > 0 {
				stack = stack[:len(stack)-1]
			}
			wantKey = false
		case ',':
			if len(stack) > 0 {
				top := &stack[len(stack)-1]
				top.n++
				wantKey = !top.array
				if wantKey {
					top.key = ""
				}
			}
		case '"':
			end, _, _ := scanString(in, i+1)
			if end < 0 {
				end = len(in) - 1
			}
			if wantKey && len(stack) > 0 && end < offset {
				key := appendUnescaped(nil, in[i+1:end])
				stack[len(stack)-1].key = keySegment(strings.ToValidUTF8(string(key), "\uFFFD"))
				wantKey = false
			}
			i = end
		}
		i++
	}
	var segments []string
	for k := len(stack) - 1; k >= 0; k-- {
		if s := stack[k]; s.array {
			segments = append(segments, "["+strconv.Itoa(s.n)+"]")
		} else if s.key != "" {
			segments = append(segments, s.key)
		}
	}
	return joinPath(segments)
}
