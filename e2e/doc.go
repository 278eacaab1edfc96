// Package e2e tests the whole gateway: the binary as a process, real backends, and the clients that people use: curl,
// grpc-go, ghz, quic-go, browsers. `make e2e` builds what the tests run.
package e2e
