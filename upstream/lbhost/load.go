package lbhost

import (
	v3orcapb "github.com/cncf/xds/go/xds/data/orca/v3"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// loadTrailer carries the load report of a call (ORCA, gRFC A51).
const loadTrailer = "endpoint-load-metrics-bin"

// ServerLoad is the ORCA report in a call's trailer as balancer.DoneInfo wants it: an *orca.v3.OrcaLoadReport, or nil if
// there is not exactly one that is well-formed.
func ServerLoad(trailer metadata.MD) any {
	v := trailer[loadTrailer]
	if len(v) != 1 {
		return nil
	}
	r := &v3orcapb.OrcaLoadReport{}
	if proto.Unmarshal([]byte(v[0]), r) != nil {
		return nil
	}
	return r
}
