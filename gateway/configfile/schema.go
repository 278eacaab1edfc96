package configfile

import _ "embed"

//go:embed schema.json
var schema []byte

// Schema is the JSON Schema (draft 7) of a configuration file, written from the protos: names, types, ranges and meanings. It knows
// the canonical names of fields and values only, nothing that holds between fields, and not how long times may be. It must not be
// changed.
func Schema() []byte { return schema }
