package descriptors_test

import (
	"maps"
	"os/exec"
	"strings"
	"testing"

	"cloud.google.com/go/container/apiv1/containerpb"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/descriptors"
)

// linkedSet is a binary descriptor set, imports included, of files linked into the test.
func linkedSet(t *testing.T, files ...protoreflect.FileDescriptor) []byte {
	t.Helper()
	fds := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(fd protoreflect.FileDescriptor)
	add = func(fd protoreflect.FileDescriptor) {
		if seen[fd.Path()] {
			return
		}
		seen[fd.Path()] = true
		for i := range fd.Imports().Len() {
			add(fd.Imports().Get(i).FileDescriptor)
		}
		fds.File = append(fds.File, protodesc.ToFileDescriptorProto(fd))
	}
	for _, fd := range files {
		add(fd)
	}
	b, err := proto.Marshal(fds)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestForeignSets compiles sets that nobody wrote for transom and checks that what they hold is there.
func TestForeignSets(t *testing.T) {
	set, err := descriptors.FromBytes("interop", linkedSet(t, testgrpc.File_grpc_testing_test_proto, testgrpc.File_grpc_testing_benchmark_service_proto))
	if err != nil {
		t.Fatal(err)
	}
	other, err := descriptors.FromBytes("otlp", linkedSet(t, collector.File_opentelemetry_proto_collector_trace_v1_trace_service_proto))
	if err != nil {
		t.Fatal(err)
	}
	rules, err := descriptors.ParseServiceConfig("trace_service_http.yaml", []byte(`
type: google.api.Service
config_version: 3
http:
  rules:
    - selector: opentelemetry.proto.collector.trace.v1.TraceService.Export
      post: /v1/traces
      body: "*"
`))
	if err != nil {
		t.Fatal(err)
	}
	s, err := descriptors.Compile([]*descriptors.Set{set, other}, descriptors.Options{Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	for path, streams := range map[string][2]bool{
		"/grpc.testing.TestService/UnaryCall": {}, "/grpc.testing.TestService/StreamingInputCall": {true, false},
		"/grpc.testing.TestService/StreamingOutputCall": {false, true}, "/grpc.testing.BenchmarkService/StreamingBothWays": {true, true},
	} {
		if m, ok := s.Method(path); !ok || m.ClientStreams != streams[0] || m.ServerStreams != streams[1] {
			t.Errorf("%s: %v %+v", path, ok, m)
		}
	}
	if got := show(s.MatchHTTP("POST", "/v1/traces")); got != "Export" {
		t.Errorf("POST /v1/traces: %s", got)
	}
}

// TestGoogleAPI compiles one of Google's large APIs (Kubernetes Engine) and calls it up by its documented URLs.
func TestGoogleAPI(t *testing.T) {
	set, err := descriptors.FromBytes("gke", linkedSet(t, containerpb.File_google_container_v1_cluster_service_proto))
	if err != nil {
		t.Fatal(err)
	}
	s, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Methods()) < 30 || len(s.Bindings()) < 60 {
		t.Errorf("%d methods, %d bindings", len(s.Methods()), len(s.Bindings()))
	}
	for _, tt := range []struct{ verb, path, want string }{
		{"GET", "/v1/projects/p/locations/europe-west1/clusters", "ListClusters parent=projects/p/locations/europe-west1"},
		{"GET", "/v1/projects/p/zones/a/clusters", "ListClusters project_id=p zone=a"},
		{"POST", "/v1/projects/p/locations/l/clusters/c/nodePools/n:rollback", "RollbackNodePoolUpgrade name=projects/p/locations/l/clusters/c/nodePools/n"},
		{"POST", "/v1/projects/p/locations/l/clusters/c:setMasterAuth", "SetMasterAuth name=projects/p/locations/l/clusters/c"},
		{"PUT", "/v1/projects/p/locations/l/clusters", "405 GET,HEAD,POST"},
		{"GET", "/v2/projects/p", "404"},
	} {
		if got := show(s.MatchHTTP(tt.verb, tt.path)); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.verb, tt.path, got, tt.want)
		}
	}
}

// TestGatewayExamples compiles grpc-gateway's own example protos, the widest use of google.api.http there is, from source.
// Three methods go beyond the rules of http.proto; a service config puts them right.
func TestGatewayExamples(t *testing.T) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/grpc-ecosystem/grpc-gateway/v2").Output()
	if err != nil {
		t.Fatal(err)
	}
	const dir, pkg = "examples/internal/proto/examplepb/", "grpc.gateway.examples.internal.proto.examplepb."
	var files []string
	for _, f := range []string{"a_bit_of_everything", "echo_service", "flow_combination", "stream", "response_body_service", "wrappers", "non_standard_names", "camel_case_service", "opaque"} {
		files = append(files, dir+f+".proto")
	}
	set, err := descriptors.FromProto(t.Context(), []string{strings.TrimSpace(string(out))}, files)
	if err != nil {
		t.Fatal(err)
	}
	_, err = descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	faulty := map[string]int{}
	for _, l := range lines(err) {
		name, _, _ := strings.Cut(strings.TrimPrefix(l, "method "+pkg+"ABitOfEverythingService."), ":")
		faulty[name]++
	}
	if want := map[string]int{"CreateNestedBodyOneof": 1, "DoubleColon": 1, "GetRepeatedQuery": 16}; !maps.Equal(faulty, want) {
		t.Errorf("faults by method: %v, want %v", faulty, want)
	}
	rules, err := descriptors.ParseServiceConfig("fix.yaml", []byte(strings.ReplaceAll(`
http:
  rules:
  - {selector: PKG.CreateNestedBodyOneof, post: /v1/example/a_bit_of_everything/nested_body_oneof, body: "*"}
  - {selector: PKG.DoubleColon, post: "/v1/example/a_bit_of_everything/{uuid}:double"}
  - {selector: PKG.GetRepeatedQuery, get: /v1/example/a_bit_of_everything_repeated}
`, "PKG", pkg+"ABitOfEverythingService")))
	if err != nil {
		t.Fatal(err)
	}
	s, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{Rules: rules})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ verb, path, want string }{
		{"GET", "/v1/example/a_bit_of_everything/x%2Fy", "Lookup uuid=x/y"},
		{"POST", "/v1/example/a_bit_of_everything/x:custom", "Custom uuid=x"},
		{"POST", "/v1/example/a_bit_of_everything/x:y:double", "DoubleColon uuid=x:y"},
		{"GET", "/v1/example/a_bit_of_everything/query/7", "GetQuery uuid=7"},
		{"PATCH", "/v1/publishers/1/books/2", "UpdateBook book.name=publishers/1/books/2"},
		{"PATCH", "/v2/example/a_bit_of_everything/9", "UpdateV2 abe.uuid=9"},
		{"GET", "/v2/NEGATIVE:check", "CheckExternalPathEnum value=NEGATIVE"},
		{"POST", "/v1/example/a_bit_of_everything/bulk", "BulkCreate"},
		{"GET", "/v1/example/echo1/a/7/note", "Echo id=a line_num=7 status.note=note"},
		{"GET", "/v1/example/snake/a/b/c", "SnakeEnum who=a what=b where=c"},
		{"GET", "/responsebody/stream/x", "GetResponseBodyStream data=x"},
		{"PUT", "/v2/example/timeout", "405 GET,HEAD"},
	} {
		if got := show(s.MatchHTTP(tt.verb, tt.path)); got != tt.want {
			t.Errorf("%s %s: %s, want %s", tt.verb, tt.path, got, tt.want)
		}
	}
}
