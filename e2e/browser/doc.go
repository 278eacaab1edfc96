// Package browser tests the gateway with a real Chromium: our own client over WebSocket, WebTransport and fetch, bare
// WebSockets, EventSource, HTTP/2 and HTTP/3, and what pages of foreign origins may do. `make e2e` builds the client and
// installs the browser.
package browser
