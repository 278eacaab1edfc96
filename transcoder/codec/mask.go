package codec

// AppendMaskPaths appends the field-mask paths of what a JSON body of the message sets, in the order of the text: the
// path of each leaf in proto names, where lists, maps, well-known types, null and an empty object are leaves. Unknown
// fields are refused unless o discards them; values are not checked beyond being JSON, and extensions are passed over.
func (m *Message) AppendMaskPaths(paths []string, json []byte, o *Options) ([]string, error) {
	t := m.m.types
	r := t.newReader(json, o)
	defer t.freeReader(r)
	out, i := r.maskPaths(paths, "", m.m, space(json, 0))
	if i >= 0 {
		if i = space(json, i); i < len(json) {
			i = r.expected(i, "the end")
		}
	}
	if i < 0 {
		return paths, r.fault()
	}
	return out, nil
}

func (r *reader) maskPaths(paths []string, prefix string, m *message, i int) ([]string, int) {
	if r.at(i) != '{' {
		return paths, r.expected(i, "an object")
	}
	if r.depth--; r.depth < 0 {
		return paths, r.fail(i, "nested too deeply")
	}
	if i = space(r.in, i+1); r.at(i) == '}' {
		r.depth++
		return paths, i + 1
	}
	for {
		if r.at(i) != '"' {
			return paths, r.expected(i, "a field name")
		}
		f, what, at := r.key(m, i+1, false)
		if i = at; i < 0 {
			return paths, i
		}
		if what != keyField {
			i = r.skipValue(i)
		} else {
			path := prefix + string(f.desc.Name())
			nested := f.shape == shapeSingular && f.msg != nil && (f.msg.special == plain || f.msg.special == emptyType)
			if nested && r.at(i) == '{' && r.at(space(r.in, i+1)) != '}' {
				paths, i = r.maskPaths(paths, path+".", f.msg, i)
			} else {
				paths = append(paths, path)
				i = r.skipValue(i)
			}
		}
		if i < 0 {
			return paths, i
		}
		i = space(r.in, i)
		switch r.at(i) {
		case ',':
			i = space(r.in, i+1)
		case '}':
			r.depth++
			return paths, i + 1
		default:
			return paths, r.expected(i, "a comma or the end of the object")
		}
	}
}
