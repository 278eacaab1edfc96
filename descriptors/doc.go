// Package descriptors knows what can be called: it turns protobuf descriptors from files, .proto sources or a server's
// reflection into a [Schema] of methods, HTTP bindings and types. It imports nothing else of transom.
//
// # From source to schema
// A [Set] is the files of one source ([FromFile], [FromProto], [FromReflection]; [Source] reads one again whenever it
// changes). [Compile] merges sets, since every team's set has its own copy of what it imports, checks everything that can
// be checked before a call, and reports all faults at once. A Schema never changes; a reload compiles another, and [Diff]
// says what that means for clients.
//
// # Routes
// [Schema.MatchHTTP] finds the binding of a request. It works on the path as it came, percent-encoded: the path is split
// at its slashes first and each segment is decoded once, so "%2F" is data. The rules where http.proto leaves a choice:
//
//   - At each segment a literal goes before "*", "*" before "**", whatever the order of the files. If the better route
//     lacks the HTTP method, the next one is tried; if all lack it the error lists what is allowed.
//   - "*" and a literal match no empty segment: "/items/" and "/a//b" are not found rather than cleaned. "**" matches any
//     number of segments, none and empty ones included.
//   - A custom verb follows the last colon of the last segment and counts only where a template has it; elsewhere, and
//     when no such template takes the HTTP method, the colon is part of the value.
//   - "." and ".." are text. A path that does not decode to UTF-8 is an error of its own.
//   - HEAD is served by GET unless it has a binding.
//
// # Concurrency
// A Schema and all that hangs on it (Method, Binding, the descriptors) is immutable and shared freely. A Match is a plain
// value.
package descriptors
