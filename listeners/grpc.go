package listeners

import (
	"net/http"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"transom/rpc"
	"transom/transcoder"
)

// grpcStream is a native gRPC call (gRPC over HTTP/2, also over HTTP/3).
type grpcStream struct{ framed }

var _ rpc.Stream = (*grpcStream)(nil)

// serveGRPC answers native gRPC.
func (f *Front) serveGRPC(w http.ResponseWriter, r *http.Request, v View) {
	s := &grpcStream{}
	s.begin(f, w, r, rpc.ProtocolGRPC, v)
	if r.ProtoMajor < 2 {
		s.refuseHTTP(transcoder.HTTPError(http.StatusHTTPVersionNotSupported, codes.Unknown, "gRPC needs HTTP/2 or HTTP/3"))
		return
	}
	if s.notPOST() {
		return
	}
	s.contentType, s.encodingHeader, s.loadReport = grpcType, "Grpc-Encoding", true
	s.finish(s.start(v))
}

func (s *grpcStream) start(v View) error {
	r := s.Request
	route, timeout, err := s.grpcCall(v, subtype(r.Header.Get("Content-Type"), "application/grpc"))
	if err != nil {
		s.info.Fail(rpc.SourceClient)
		return err
	}
	if s.codec != nil {
		s.contentType = grpcJSONType
	}
	// Every grpc-go client says that it accepts gzip, so that only one that compresses is taken to want it.
	if enc := s.decode.coding; enc != nil {
		s.encode = compressor{coding: route.replyCoding(enc, r.Header["Grpc-Accept-Encoding"])}
	}
	return s.serve(route, timeout, r.Body, s)
}

// grpcCall reads what gRPC and gRPC-Web have in common of a request's header: method, encodings, timeout.
func (s *framed) grpcCall(v View, codec string) (*Route, time.Duration, error) {
	r := s.Request
	m, ok := methodOf(r, v)
	if !ok {
		return nil, 0, s.missing(v, status.Errorf(codes.Unimplemented, "unknown method %s", r.URL.Path))
	}
	s.call.Method = m
	route := v.Route(m)
	var err error
	if s.codec, ok, err = codecOf(codec, route.Plan); err != nil {
		return nil, 0, err
	}
	if !ok {
		return nil, 0, status.Errorf(codes.Unimplemented, "message encoding %q is not supported, use proto or json", codec)
	}
	if s.decode, err = decompressorFor(r.Header.Get("Grpc-Encoding"), route.MaxMessageBytes); err != nil {
		return nil, 0, &withHeader{err, http.Header{"Grpc-Accept-Encoding": {"identity, " + acceptedEncodings}}}
	}
	timeout, err := grpcTimeout(r)
	return route, timeout, err
}

// finish sends the status as trailers, or as headers if nothing was sent before (trailers-only).
func (s *grpcStream) finish(err error) {
	st := statusOf(err)
	h := s.w.Header()
	if s.header {
		_ = s.out.flush(s)
		writeTrailer(h, http.TrailerPrefix, s.trailer, true)
		writeGRPCStatus(h, true, st)
	} else {
		h["Content-Type"] = s.contentType
		h["Content-Length"] = nil // none is made up: the specification's Trailers-Only has no such field
		s.addHeaderOf(h, err)
		s.writeMetadata(h, s.trailer, true)
		writeGRPCStatus(h, false, st)
		s.w.WriteHeader(http.StatusOK)
	}
	s.done(err, st, http.StatusOK)
}
