// Package listeners owns the sockets and the client protocols. It serves HTTP/1.1, HTTP/2 and HTTP/3 through one
// http.Handler ([Front]), which tells the protocols apart by their marks (content type, upgrade, path), takes a [View] of
// what is loaded, and runs each request as one [rpc.Call]. Every protocol is one unexported rpc.Stream; how a call ends
// (status, trailers, error body, close frame) is known only here.
//
// # Protocols
// REST/JSON by google.api.http with server streams as NDJSON, Server-Sent Events or a JSON array; native gRPC, gRPC-Web,
// Connect; WebSocket.
//
// # Concurrency
// A Front and a Server serve any number of requests at once. One request's stream belongs to its handler, as rpc.Stream
// says. Nothing here starts a goroutine that outlives its request, but a Server's own accept loops, which end with Run.
package listeners
