package listeners

import (
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"transom/rpc"
	"transom/rpc/grpcwire"
	"transom/transcoder"
)

// metadataPrefix marks headers that REST clients mean as metadata.
const metadataPrefix = "Grpc-Metadata-"

// restMetadata picks the metadata of a REST or WebSocket request. It returns nil if there is none.
func restMetadata(e *Edge, h http.Header) (metadata.MD, error) {
	var md metadata.MD
	hop := h["Connection"] // what it names stays here
	for name, values := range h {
		field := e.forwards(name)
		if field == nil {
			if len(name) <= len(metadataPrefix) || name[:len(metadataPrefix)] != metadataPrefix {
				continue
			}
			// A proxy in front that sets the name itself may know nothing of the prefix. Nobody looks for these names again
			// (Edge.tellForwarded).
			if name = name[len(metadataPrefix):]; transcoder.Forwarded(transcoder.Lower(name)) {
				continue
			}
			f := transcoder.FieldOf(name)
			field = &f
		}
		key, values, err := field.Metadata(values, hop)
		if err != nil {
			return nil, err
		}
		if key == "" {
			continue
		}
		if md == nil {
			md = metadata.MD{}
		}
		if before := md[key]; before != nil {
			values = append(slices.Clip(before), values...)
		}
		md[key] = values
	}
	return md, nil
}

// The defaults of limits on headers.
const (
	defaultHeaderBytes  = 16 << 10
	defaultHeaderFields = 100
)

// checkMetadata refuses metadata from a frame that would be too large for a header: it goes to backends as one. It is counted as
// HTTP/2 does (RFC 9113, 6.5.2).
func (f *Front) checkMetadata(md metadata.MD) error {
	const field = 32 // bytes that each counts for; those of ten are on top of the limit, as with a header
	size, fields := -10*field, 0
	for key, values := range md {
		fields += len(values)
		for _, v := range values {
			size += len(key) + len(v) + field
		}
	}
	switch {
	case size > f.cfg.MaxHeaderBytes:
		return status.Errorf(codes.ResourceExhausted, "metadata is larger than the limit of %d bytes", f.cfg.MaxHeaderBytes)
	case fields > f.cfg.MaxHeaderFields:
		return status.Errorf(codes.ResourceExhausted, "metadata has %d fields, more than the limit of %d", fields, f.cfg.MaxHeaderFields)
	}
	return nil
}

// loadReportKey is the trailer in which backends report their load (ORCA, gRFC A51).
const loadReportKey = "endpoint-load-metrics-bin"

// writeMetadata sets response metadata as the header, but for what the gateway says itself. It is otherwise as writeTrailer.
func (x *exchange) writeMetadata(h http.Header, md metadata.MD, loadReport bool) {
	writeTrailer(h, "", x.theirs(md), loadReport)
}

// theirs is response metadata without what the gateway says itself: md, or a copy. A page of another origin must not get leave
// from a backend where the listener's CORS settings give none, and a field of security.response_headers has one value.
func (x *exchange) theirs(md metadata.MD) metadata.MD {
	cors := x.front.cfg.CORS != nil
	var says map[string]bool
	if x.edge != nil {
		says = x.edge.says
	}
	if !cors && len(says) == 0 {
		return md
	}
	left := md
	for key := range md {
		if !(cors && strings.HasPrefix(key, "access-control-")) && !says[key] {
			continue
		}
		if len(left) == len(md) {
			left = maps.Clone(md)
		}
		delete(left, key)
	}
	return left
}

// writeTrailer sets md as headers, each name behind prefix. It takes md over: nobody may use the map afterwards. loadReport keeps
// ORCA load reports, which only native gRPC clients may see.
func writeTrailer(h http.Header, prefix string, md metadata.MD, loadReport bool) {
	if !loadReport {
		delete(md, loadReportKey)
	}
	transcoder.AddHeader(h, md, prefix)
	rpc.FreeMetadata(md)
}

// writeGRPCStatus sets grpc-status, grpc-message and grpc-status-details-bin, as trailers or as headers. A nil st is OK.
func writeGRPCStatus(h http.Header, trailers bool, st *status.Status) {
	statusName, messageName, detailsName := "Grpc-Status", "Grpc-Message", "Grpc-Status-Details-Bin"
	if trailers {
		statusName, messageName, detailsName = http.TrailerPrefix+"Grpc-Status", http.TrailerPrefix+"Grpc-Message", http.TrailerPrefix+"Grpc-Status-Details-Bin"
	}
	if st == nil {
		h[statusName] = statusOK
		return
	}
	h[statusName] = []string{codeText(st.Code())}
	if msg := st.Message(); msg != "" {
		h[messageName] = []string{string(grpcwire.AppendGRPCMessage(nil, msg))}
	}
	if p := st.Proto(); len(p.GetDetails()) > 0 {
		if b, err := proto.Marshal(p); err == nil {
			h[detailsName] = []string{base64.RawStdEncoding.EncodeToString(b)}
		}
	}
}

// statusOf is the status of err, nil for nil.
func statusOf(err error) *status.Status {
	if err == nil {
		return nil
	}
	return rpc.StatusOf(err)
}

// codeText is the decimal form of a code, without allocation.
func codeText(c codes.Code) string {
	const digits = "012345678910111213141516"
	switch {
	case c < 10:
		return digits[c : c+1]
	case c <= codes.Unauthenticated:
		return digits[10+2*(c-10) : 12+2*(c-10)]
	}
	return strconv.Itoa(int(c))
}
