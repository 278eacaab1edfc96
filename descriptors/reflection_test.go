package descriptors_test

import (
	"context"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	testgrpc "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/reflection"
	refv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	refv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/descriptors"
)

// dial serves what register registers in memory and returns a connection to it.
func dial(t *testing.T, register func(*grpc.Server)) *grpc.ClientConn {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	srv := grpc.NewServer()
	register(srv)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///bank.test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return conn
}

func TestFromReflection(t *testing.T) {
	both := func(s *grpc.Server) {
		testgrpc.RegisterTestServiceServer(s, testgrpc.UnimplementedTestServiceServer{})
		grpc_health_v1.RegisterHealthServer(s, health.NewServer())
	}
	for name, register := range map[string]func(*grpc.Server){
		"v1 and v1alpha": func(s *grpc.Server) { both(s); reflection.Register(s) },
		"v1 only":        func(s *grpc.Server) { both(s); reflection.RegisterV1(s) },
		"v1alpha only": func(s *grpc.Server) {
			both(s)
			refv1alpha.RegisterServerReflectionServer(s, reflection.NewServer(reflection.ServerOptions{Services: s}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			set, err := descriptors.FromReflection(t.Context(), dial(t, register))
			if err != nil {
				t.Fatal(err)
			}
			if set.Origin != "server reflection of passthrough:///bank.test" {
				t.Errorf("origin %q", set.Origin)
			}
			s, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, m := range s.Methods() {
				got = append(got, m.FullPath)
			}
			want := []string{
				"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/List", "/grpc.health.v1.Health/Watch",
				"/grpc.testing.TestService/CacheableUnaryCall", "/grpc.testing.TestService/EmptyCall", "/grpc.testing.TestService/FullDuplexCall",
				"/grpc.testing.TestService/HalfDuplexCall", "/grpc.testing.TestService/StreamingInputCall", "/grpc.testing.TestService/StreamingOutputCall",
				"/grpc.testing.TestService/UnaryCall", "/grpc.testing.TestService/UnimplementedCall",
			}
			if !slices.Equal(got, want) {
				t.Errorf("methods:\n got %q\nwant %q", got, want)
			}
		})
	}
}

// cannedReflection answers from a table: services, then files by symbol or name.
type cannedReflection struct {
	refv1.UnimplementedServerReflectionServer
	services []string
	files    map[string]*descriptorpb.FileDescriptorProto // by service or path
	raw      map[string][]byte
	hang     bool
}

func (c *cannedReflection) ServerReflectionInfo(s grpc.BidiStreamingServer[refv1.ServerReflectionRequest, refv1.ServerReflectionResponse]) error {
	for {
		q, err := s.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if c.hang {
			<-s.Context().Done()
			return s.Context().Err()
		}
		a := &refv1.ServerReflectionResponse{}
		key := q.GetFileByFilename() + q.GetFileContainingSymbol()
		b := c.raw[key]
		if f := c.files[key]; f != nil {
			if b, err = proto.Marshal(f); err != nil {
				return err
			}
		}
		switch {
		case key == "" && c.services == nil:
			a.MessageResponse = &refv1.ServerReflectionResponse_ErrorResponse{ErrorResponse: &refv1.ErrorResponse{ErrorCode: int32(codes.PermissionDenied), ErrorMessage: "not for you"}}
		case key == "":
			l := &refv1.ListServiceResponse{}
			for _, name := range c.services {
				l.Service = append(l.Service, &refv1.ServiceResponse{Name: name})
			}
			a.MessageResponse = &refv1.ServerReflectionResponse_ListServicesResponse{ListServicesResponse: l}
		case b != nil:
			a.MessageResponse = &refv1.ServerReflectionResponse_FileDescriptorResponse{FileDescriptorResponse: &refv1.FileDescriptorResponse{FileDescriptorProto: [][]byte{b}}}
		default:
			a.MessageResponse = &refv1.ServerReflectionResponse_ErrorResponse{ErrorResponse: &refv1.ErrorResponse{ErrorCode: int32(codes.NotFound), ErrorMessage: "no " + key}}
		}
		if err := s.Send(a); err != nil {
			return err
		}
	}
}

func TestOddReflectionServers(t *testing.T) {
	file := func(name string, service bool, deps ...string) *descriptorpb.FileDescriptorProto {
		f := &descriptorpb.FileDescriptorProto{Name: proto.String(name), Package: proto.String("x"), Syntax: proto.String("proto3"), Dependency: deps}
		if service {
			f.MessageType = []*descriptorpb.DescriptorProto{{Name: proto.String("R")}}
			f.Service = []*descriptorpb.ServiceDescriptorProto{{Name: proto.String("S"), Method: []*descriptorpb.MethodDescriptorProto{{Name: proto.String("M"), InputType: proto.String(".x.R"), OutputType: proto.String(".x.R")}}}}
		}
		return f
	}
	type files = map[string]*descriptorpb.FileDescriptorProto
	const origin = "server reflection of passthrough:///bank.test: "
	for _, tt := range []struct {
		name           string
		server         *cannedReflection
		fetch, compile string // the error, or ""
	}{
		{"unknown import of options only", &cannedReflection{services: []string{"x.S"}, files: files{"x.S": file("s.proto", true, "a.proto", "gogo.proto", "google/protobuf/any.proto"), "a.proto": file("a.proto", false)}}, "", ""},
		{
			"circular import", &cannedReflection{services: []string{"x.S"}, files: files{"x.S": file("s.proto", true, "a.proto"), "a.proto": file("a.proto", false, "s.proto")}}, "",
			`file s.proto (from server reflection of passthrough:///bank.test) imports "a.proto", which imports it in turn`,
		},
		{"unknown service", &cannedReflection{services: []string{"x.S", "x.T"}, files: files{"x.S": file("s.proto", true)}}, origin + "service x.T: rpc error: code = NotFound desc = no x.T", ""},
		{"malformed file", &cannedReflection{services: []string{"x.S"}, raw: map[string][]byte{"x.S": {0x0a, 0x05}}}, origin + "service x.S: a file descriptor is malformed: name at byte 0: unexpected EOF", ""},
		{"malformed import", &cannedReflection{services: []string{"x.S"}, files: files{"x.S": file("s.proto", true, "a.proto")}, raw: map[string][]byte{"a.proto": {0x0a, 0x05}}}, origin + "file a.proto: a file descriptor is malformed: name at byte 0: unexpected EOF", ""},
		{"refused", &cannedReflection{}, origin + "list services: rpc error: code = PermissionDenied desc = not for you", ""},
		{"wrong file for an import", &cannedReflection{services: []string{"x.S"}, files: files{"x.S": file("s.proto", true, "a.proto"), "a.proto": file("b.proto", false)}}, "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := dial(t, func(s *grpc.Server) { refv1.RegisterServerReflectionServer(s, tt.server) })
			set, err := descriptors.FromReflection(t.Context(), conn)
			if got := text(err); got != tt.fetch {
				t.Fatalf("FromReflection:\n got %s\nwant %s", got, tt.fetch)
			}
			if err != nil {
				return
			}
			s, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
			if got := text(err); got != tt.compile {
				t.Fatalf("Compile:\n got %s\nwant %s", got, tt.compile)
			}
			if err == nil && len(s.Methods()) != 1 {
				t.Errorf("%d methods", len(s.Methods()))
			}
		})
	}
	t.Run("no reflection", func(t *testing.T) {
		_, err := descriptors.FromReflection(t.Context(), dial(t, func(*grpc.Server) {}))
		if status.Code(err) != codes.Unimplemented || !strings.HasPrefix(text(err), origin) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("silent server", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := descriptors.FromReflection(ctx, dial(t, func(s *grpc.Server) { refv1.RegisterServerReflectionServer(s, &cannedReflection{hang: true}) }))
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("got %v", err)
		}
	})
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return strings.ReplaceAll(err.Error(), "\u00a0", " ")
}
