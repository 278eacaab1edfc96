package e2e

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"cloud.google.com/go/container/apiv1/containerpb"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/e2e/process"
)

// clusterManager answers two methods of Google Kubernetes Engine's API.
type clusterManager struct {
	containerpb.UnimplementedClusterManagerServer
}

func (*clusterManager) ListClusters(_ context.Context, r *containerpb.ListClustersRequest) (*containerpb.ListClustersResponse, error) {
	return &containerpb.ListClustersResponse{Clusters: []*containerpb.Cluster{{Name: r.GetParent(), CurrentNodeCount: 3}}}, nil
}

func (*clusterManager) SetLabels(_ context.Context, r *containerpb.SetLabelsRequest) (*containerpb.Operation, error) {
	return &containerpb.Operation{Name: r.GetName(), Detail: r.GetResourceLabels()["team"], Status: containerpb.Operation_RUNNING}, nil
}

// TestForeignAPI serves an API that nobody wrote for transom, from its descriptors alone.
func TestForeignAPI(t *testing.T) {
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(fd protoreflect.FileDescriptor)
	add = func(fd protoreflect.FileDescriptor) {
		if seen[fd.Path()] {
			return
		}
		seen[fd.Path()] = true
		for i := range fd.Imports().Len() {
			add(fd.Imports().Get(i))
		}
		set.File = append(set.File, protodesc.ToFileDescriptorProto(fd))
	}
	add(containerpb.File_google_container_v1_cluster_service_proto)
	b, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "container.binpb")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer()
	containerpb.RegisterClusterManagerServer(srv, &clusterManager{})
	var wg sync.WaitGroup
	wg.Go(func() { _ = srv.Serve(l) })
	t.Cleanup(func() { srv.Stop(); wg.Wait() })
	p := process.Start(t, 1, "serve", "--listen", "127.0.0.1:0", "--descriptors", file, "--upstream", "static:///"+l.Addr().String())

	code, _, body := curl(t, "http://"+p.Plain+"/v1/projects/p/locations/l/clusters")
	if code != 200 || compact(body) != `{"clusters":[{"name":"projects/p/locations/l","currentNodeCount":3}]}` {
		t.Errorf("list: %d %s", code, body)
	}
	code, _, body = curl(t, "-d", `{"resourceLabels":{"team":"edge"},"labelFingerprint":"x"}`, "-H", "Content-Type: application/json",
		"http://"+p.Plain+"/v1/projects/p/locations/l/clusters/c:setResourceLabels")
	if code != 200 || !strings.Contains(body, `"detail":"edge"`) || !strings.Contains(body, `"status":"RUNNING"`) {
		t.Errorf("set labels: %d %s", code, body)
	}
	code, _, body = curl(t, "http://"+p.Plain+"/v1/projects/p/locations/l/operations/o")
	if code != 501 || !strings.Contains(body, `"code":12`) {
		t.Errorf("a method that the backend lacks: %d %s", code, body)
	}
}
