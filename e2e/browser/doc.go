// Package browser tests the gateway with a real Chromium: our own client over WebSocket, WebTransport and fetch, the official
// gRPC-Web client, Connect's and improbable-eng's, bare WebSockets, EventSource, HTTP/2 and HTTP/3, and what pages of foreign
// origins may do. `make web` builds the clients, `make deps` installs the browser.
package browser
