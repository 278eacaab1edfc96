// Package policies tests the gateway's policies end to end: a whole gateway with a real backend, called over REST, gRPC and
// WebSocket, with the real parts that policies lean on: an OpenID Connect provider, client certificates, an external
// authorization server.
package policies
