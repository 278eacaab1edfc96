package grpcwire

// ValidText reports whether v is a value that metadata can carry as it is: ASCII 0x20 to 0x7E (gRPC over HTTP/2, "Custom-Metadata").
func ValidText(v string) bool {
	const each = 0x0101010101010101
	for ; len(v) >= 8; v = v[8:] {
		w := uint64(v[0]) | uint64(v[1])<<8 | uint64(v[2])<<16 | uint64(v[3])<<24 | uint64(v[4])<<32 | uint64(v[5])<<40 | uint64(v[6])<<48 | uint64(v[7])<<56
		// Adding 1 takes what is over 0x7E, and taking 0x20 away what is below, to where the high bit is; carries and borrows come only
		// from bytes that are at fault themselves.
		if (w|(w+each)|(w-0x20*each))&(0x80*each) != 0 {
			return false
		}
	}
	for i := range len(v) {
		if v[i] < 0x20 || v[i] > 0x7E {
			return false
		}
	}
	return true
}
