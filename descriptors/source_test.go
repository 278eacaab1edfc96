package descriptors_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	refv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/descriptors"
)

// change is one call of onChange.
type change struct {
	set *descriptors.Set
	err error
}

// run runs a source until the test ends and returns its changes.
func run(t *testing.T, s *descriptors.Source) <-chan change {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	changes := make(chan change)
	var wg sync.WaitGroup
	wg.Go(func() {
		err := s.Run(ctx, func(set *descriptors.Set, err error) {
			select {
			case changes <- change{set, err}:
			case <-ctx.Done():
			}
		})
		if err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return changes
}

// next waits for the next change and describes it: the messages of its last file, or "error: …".
func next(t *testing.T, changes <-chan change) string {
	t.Helper()
	select {
	case c := <-changes:
		if (c.set == nil) == (c.err == nil) {
			t.Fatalf("change with %v and %v", c.set, c.err)
		}
		if c.err != nil {
			return "error: " + text(c.err)
		}
		var names []string
		for _, m := range c.set.Files[len(c.set.Files)-1].GetMessageType() {
			names = append(names, m.GetName())
		}
		return strings.Join(names, ",")
	case <-time.After(90 * time.Second):
		t.Fatal("no change")
	}
	return ""
}

// withMessages is a binary set of one file with the messages.
func withMessages(t *testing.T, names ...string) []byte {
	t.Helper()
	f := &descriptorpb.FileDescriptorProto{Name: proto.String("t.proto"), Syntax: proto.String("proto3")}
	for _, n := range names {
		f.MessageType = append(f.MessageType, &descriptorpb.DescriptorProto{Name: proto.String(n)})
	}
	b, err := proto.Marshal(&descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{f}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFileSource(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "bank.binpb")
	write := func(b []byte) { t.Helper(); must(t, os.WriteFile(path, b, 0o600)) }
	s := descriptors.FileSource(path)
	if s.String() != path {
		t.Errorf("origin %q", s)
	}
	if _, err := s.Load(t.Context()); err == nil {
		t.Error("Load of a missing file: no error")
	}
	changes := run(t, s)
	if got := next(t, changes); !strings.HasPrefix(got, "error: descriptor set: open ") {
		t.Errorf("missing at start: %s", got)
	}
	write(withMessages(t, "A"))
	if got := next(t, changes); got != "A" {
		t.Errorf("created: %s", got)
	}
	write(withMessages(t, "A")) // no change of content, no call
	write(withMessages(t, "A", "B"))
	if got := next(t, changes); got != "A,B" {
		t.Errorf("written in place: %s", got)
	}
	must(t, os.WriteFile(path+".new", withMessages(t, "C"), 0o600))
	must(t, os.Rename(path+".new", path))
	if got := next(t, changes); got != "C" {
		t.Errorf("renamed over: %s", got)
	}
	write([]byte("half"))
	if got := next(t, changes); !strings.HasPrefix(got, "error: descriptor set "+path+": is text") {
		t.Errorf("damaged: %s", got)
	}
	write(withMessages(t, "C"))
	if got := next(t, changes); got != "C" {
		t.Errorf("repaired, as it was before: %s", got)
	}
	must(t, os.Remove(path))
	if got := next(t, changes); !strings.HasPrefix(got, "error: descriptor set: open ") {
		t.Errorf("removed: %s", got)
	}
}

// TestConfigMap swaps a symbolic link above the file's target, as the kubelet does.
func TestConfigMap(t *testing.T) {
	dir := t.TempDir()
	generation := func(name string, messages ...string) {
		t.Helper()
		must(t, os.Mkdir(filepath.Join(dir, name), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, name, "bank.binpb"), withMessages(t, messages...), 0o600))
		must(t, os.Symlink(name, filepath.Join(dir, "..data_tmp")))
		must(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	}
	generation("..1", "A")
	must(t, os.Symlink(filepath.Join("..data", "bank.binpb"), filepath.Join(dir, "bank.binpb")))
	changes := run(t, descriptors.FileSource(filepath.Join(dir, "bank.binpb")))
	if got := next(t, changes); got != "A" {
		t.Fatalf("first: %s", got)
	}
	for i, want := range []string{"B", "C", "D"} {
		generation("..g"+want, want)
		if i > 0 {
			must(t, os.RemoveAll(filepath.Join(dir, "..g"+[]string{"B", "C"}[i-1])))
		}
		if got := next(t, changes); got != want {
			t.Errorf("swap to %s: %s", want, got)
		}
	}
}

// TestSwappedDirectory swaps a symbolic link at a directory above the file, as deployments by "current" links do.
func TestSwappedDirectory(t *testing.T) {
	dir := t.TempDir()
	for _, v := range []string{"A", "B"} {
		must(t, os.MkdirAll(filepath.Join(dir, v, "cfg"), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, v, "cfg", "x.binpb"), withMessages(t, v), 0o600))
	}
	must(t, os.Symlink("A", filepath.Join(dir, "current")))
	changes := run(t, descriptors.FileSource(filepath.Join(dir, "current", "cfg", "x.binpb")))
	if got := next(t, changes); got != "A" {
		t.Fatalf("first: %s", got)
	}
	must(t, os.Symlink("B", filepath.Join(dir, "new")))
	must(t, os.Rename(filepath.Join(dir, "new"), filepath.Join(dir, "current")))
	if got := next(t, changes); got != "B" {
		t.Errorf("swapped: %s", got)
	}
}

func TestProtoSource(t *testing.T) {
	dir := t.TempDir()
	write := func(name, body string) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte("syntax = \"proto3\"; "+body), 0o600))
	}
	write("a.proto", "message A {}")
	changes := run(t, descriptors.ProtoSource([]string{dir}, nil))
	if got := next(t, changes); got != "A" {
		t.Errorf("first: %s", got)
	}
	write("a.proto", "message A { strin x = 1; }")
	if got := next(t, changes); got != "error: proto sources: a.proto:1:32: field A.x: unknown type strin" {
		t.Errorf("fault: %s", got)
	}
	write("a.proto", "message A2 {}")
	if got := next(t, changes); got != "A2" {
		t.Errorf("repaired: %s", got)
	}
	write("deep/er/b.proto", "package b; message B {}")
	if got := next(t, changes); got != "B" {
		t.Errorf("new directory: %s", got)
	}
	write("deep/er/b.proto", "package b; message B2 {}")
	if got := next(t, changes); got != "B2" {
		t.Errorf("changed in it: %s", got)
	}
}

// fakeServer is a connection to a server whose answers a test sets; it opens no socket, so that time can be simulated.
type fakeServer struct {
	mu    sync.Mutex
	err   error
	file  *descriptorpb.FileDescriptorProto
	calls atomic.Int32
}

func (f *fakeServer) set(err error, messages ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	f.file = &descriptorpb.FileDescriptorProto{Name: proto.String("t.proto"), Syntax: proto.String("proto3"), Service: []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("S")}}}
	for _, n := range messages {
		f.file.MessageType = append(f.file.MessageType, &descriptorpb.DescriptorProto{Name: proto.String(n)})
	}
}

func (f *fakeServer) Invoke(context.Context, string, any, any, ...grpc.CallOption) error {
	return errors.New("not used")
}

func (f *fakeServer) NewStream(_ context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	if strings.Contains(method, "v1alpha") {
		return nil, status.Error(codes.Unavailable, "also down")
	}
	f.calls.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	return &fakeStream{file: f.file}, f.err
}

type fakeStream struct {
	grpc.ClientStream
	file *descriptorpb.FileDescriptorProto
	last *refv1.ServerReflectionRequest
}

func (s *fakeStream) SendMsg(m any) error {
	q, ok := m.(*refv1.ServerReflectionRequest)
	if !ok {
		return io.EOF
	}
	s.last = q
	return nil
}

func (s *fakeStream) RecvMsg(m any) error {
	a, ok := m.(*refv1.ServerReflectionResponse)
	if !ok {
		return io.EOF
	}
	if s.last.GetFileContainingSymbol() == "" {
		a.MessageResponse = &refv1.ServerReflectionResponse_ListServicesResponse{ListServicesResponse: &refv1.ListServiceResponse{Service: []*refv1.ServiceResponse{{Name: "S"}}}}
		return nil
	}
	b, err := proto.Marshal(s.file)
	a.MessageResponse = &refv1.ServerReflectionResponse_FileDescriptorResponse{FileDescriptorResponse: &refv1.FileDescriptorResponse{FileDescriptorProto: [][]byte{b}}}
	return err
}

func TestReflectionSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &fakeServer{}
		srv.set(status.Error(codes.Unavailable, "connection refused"))
		start := time.Now()
		ctx, cancel := context.WithCancel(t.Context())
		changes := make(chan change)
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = descriptors.ReflectionSource(srv, time.Minute).Run(ctx, func(set *descriptors.Set, err error) { changes <- change{set, err} })
		})
		if got := next(t, changes); got != "error: server reflection: open a stream: rpc error: code = Unavailable desc = connection refused" {
			t.Errorf("down: %s", got)
		}
		time.Sleep(10 * time.Minute) // simulated: down all the while, told once
		if n := srv.calls.Load(); n < 10*60/30 || n > 10*60/15+10 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		srv.set(nil, "A")
		if got := next(t, changes); got != "A" {
			t.Errorf("up: %s", got)
		}
		if d := time.Since(start) - 10*time.Minute; d > 30*time.Second {
			t.Errorf("noticed %v after it came up", d)
		}
		calls := srv.calls.Load()
		time.Sleep(10*time.Minute + time.Second)
		if n := srv.calls.Load() - calls; n != 10 {
			t.Errorf("refreshed %d times in ten minutes, want 10", n)
		}
		srv.set(nil, "A", "B")
		if got := next(t, changes); got != "A,B" {
			t.Errorf("new version: %s", got)
		}
		cancel()
		wg.Wait()
	})
}
