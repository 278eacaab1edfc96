// Package h2spec runs the HTTP/2 conformance suite h2spec against the gateway and against a plain net/http server: nothing may
// fail at the one that does not fail at the other. `make h2spec` builds the suite and runs it.
package h2spec
