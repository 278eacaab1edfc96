package rpc

// MetadataText is s as a text value of metadata: bytes outside 0x20 to 0x7E, which metadata cannot carry, are
// percent-encoded, and "%" too.
func MetadataText(s string) string {
	const hex = "0123456789ABCDEF"
	plain := func(c byte) bool { return c >= 0x20 && c <= 0x7E && c != '%' }
	i := 0
	for i < len(s) && plain(s[i]) {
		i++
	}
	if i == len(s) {
		return s
	}
	b := append(make([]byte, 0, len(s)+8), s[:i]...)
	for ; i < len(s); i++ {
		if c := s[i]; plain(c) {
			b = append(b, c)
		} else {
			b = append(b, '%', hex[c>>4], hex[c&15])
		}
	}
	return string(b)
}
