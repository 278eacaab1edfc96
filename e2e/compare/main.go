// Command compare runs the table of e2e/cases against transom, grpc-gateway and Vanguard in front of the same backend, and
// prints who gives an answer that the rule allows. It is a module of its own, so that transom needs none of the others.
//
//	compare [-v] [-markdown FILE]
//
// A gateway passes a case with any of the answers that the rule allows; whoever does not start, does not answer within ten
// seconds or drops the connection without an answer fails it. grpc-gateway runs twice: as it comes, and with the options that its
// documentation offers for what the cases ask (escaped characters kept, unknown fields refused, defaults left out).
//
// The code in casesgw is generated, in the root of the repository, by
//
//	go tool -modfile=.tools/buf.mod buf generate --template e2e/compare/buf.gen.yaml
//
// Exit code: 0 if transom passes all cases, 1 otherwise.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"text/tabwriter"
	"time"

	"connectrpc.com/vanguard"
	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/grpclog"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"

	"transom/e2e/cases"
	casesgw "transom/e2e/compare/casesgw"
	"transom/gateway"
	configv1 "transom/proto/transom/config/v1"
)

func main() {
	verbose := flag.Bool("v", false, "say why a case is failed")
	markdown := flag.String("markdown", "", "also write `FILE`, the comparison as a document")
	flag.Parse()
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard))
	log.SetOutput(io.Discard) // net/http's and the proxy's own complaints
	ok, err := run(context.Background(), *verbose, *markdown)
	if err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

// intro opens the document; its arguments are the versions of grpc-gateway and Vanguard.
const intro = `# Comparison

Written by ` + "`make compare`" + `, which runs the cases of REST and JSON (` + "`e2e/cases`" + `) against transom, grpc-gateway %s (generated
code) and Vanguard %s (in front of httputil.ReverseProxy) over HTTP/1.1, one gateway after the other, before the same
scripted backend. ` + "`make compare ARGS=-v`" + ` says why a case is failed.

The cases are our own reading of google/api/http.proto, ProtoJSON, gRPC and HTTP, and where these are silent, our choice; a
gateway passes with any answer that the rule allows. What must be refused or taken at start [22-24, 28-30] is given to transom and
Vanguard as a schema, and to grpc-gateway's generator. What a gateway leaves to others counts as failed: grpc-gateway and
Vanguard have neither CORS nor compression of their own [106, 108], Vanguard no server streams over REST [93-97], grpc-gateway
no uploads as streams with a variable in the path [80]. "Tuned" is grpc-gateway with escaped characters kept, unknown fields
refused and defaults left out. Bodies are limited to 1 MiB by each gateway's own means (http.MaxBytesHandler for grpc-gateway).

`

// version is the version of a module that this program was built with.
func version(module string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == module {
				return m.Version
			}
		}
	}
	return ""
}

// contender is a gateway that runs; extras is its address with the options of Case.Extras. load returns why it does not take
// a schema, or nil.
type contender struct {
	name, addr, extras string
	load               func(set *descriptorpb.FileDescriptorSet) error
}

// run runs all cases against all gateways and reports whether transom passes every one.
func run(ctx context.Context, verbose bool, markdown string) (bool, error) {
	b, err := cases.StartBackend()
	if err != nil {
		return false, err
	}
	defer b.Close()
	dir, err := os.MkdirTemp("", "compare")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	var all []contender
	plain, err := startTransom(ctx, dir, b, false)
	if err != nil {
		return false, fmt.Errorf("transom: %w", err)
	}
	extras, err := startTransom(ctx, dir, b, true)
	if err != nil {
		return false, fmt.Errorf("transom: %w", err)
	}
	all = append(all, contender{"transom", plain, extras, func(set *descriptorpb.FileDescriptorSet) error {
		g, err := loadTransom(ctx, dir, set, b, false)
		if err != nil {
			return err
		}
		go func() { _ = g.Run(ctx) }() // until the process ends, as the others do
		return nil
	}})
	plugin, err := buildPlugin(ctx, dir)
	if err != nil {
		return false, fmt.Errorf("protoc-gen-grpc-gateway: %w", err)
	}
	for _, tuned := range []bool{false, true} {
		h, err := grpcGateway(ctx, b, tuned)
		if err != nil {
			return false, fmt.Errorf("grpc-gateway: %w", err)
		}
		addr, err := serve(http.MaxBytesHandler(h, cases.MaxBody))
		if err != nil {
			return false, err
		}
		name := "grpc-gateway"
		if tuned {
			name = "grpc-gateway, tuned"
		}
		all = append(all, contender{name, addr, addr, func(set *descriptorpb.FileDescriptorSet) error { return generate(ctx, plugin, set) }})
	}
	h, err := vanguardProxy(b)
	if err != nil {
		return false, fmt.Errorf("vanguard: %w", err)
	}
	addr, err := serve(h)
	if err != nil {
		return false, err
	}
	all = append(all, contender{"Vanguard", addr, addr, loadVanguard})
	return compare(ctx, b, all, verbose, markdown)
}

// compare prints the table. transom is the first of all.
func compare(ctx context.Context, b *cases.Backend, all []contender, verbose bool, markdown string) (bool, error) {
	table := cases.Table()
	passed := make([]int, len(all))
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	var md strings.Builder
	names := make([]string, len(all))
	for i, c := range all {
		names[i] = c.name
	}
	fmt.Fprintf(w, "case\t%s\trule\n", strings.Join(names, "\t"))
	fmt.Fprintf(&md, intro, version("github.com/grpc-ecosystem/grpc-gateway/v2"), version("connectrpc.com/vanguard"))
	fmt.Fprintf(&md, "| case | rule | %s |\n|---|---|%s\n", strings.Join(names, " | "), strings.Repeat("---|", len(all)))
	row := func(number int, rule string, run func(c contender) error) {
		marks := make([]string, len(all))
		var why []string
		for i, c := range all {
			err := run(c)
			marks[i] = "yes"
			if err == nil {
				passed[i]++
				continue
			}
			marks[i] = "-"
			why = append(why, fmt.Sprintf("      %s: %s", c.name, strings.ReplaceAll(err.Error(), "\n", "; ")))
		}
		fmt.Fprintf(w, "%d\t%s\t%s\n", number, strings.Join(marks, "\t"), rule)
		fmt.Fprintf(&md, "| %d | %s | %s |\n", number, strings.NewReplacer("|", `\|`, "*", `\*`).Replace(rule), strings.Join(marks, " | "))
		if verbose {
			for _, line := range why {
				fmt.Fprintln(w, line)
			}
		}
	}
	schemas := cases.Schemas()
	for _, tc := range table {
		for len(schemas) > 0 && schemas[0].Number < tc.Number {
			s := schemas[0]
			schemas = schemas[1:]
			row(s.Number, s.Title(), func(c contender) error { return s.Check(c.load(s.DescriptorSet())) })
		}
		row(tc.Number, tc.Rule, func(c contender) error {
			addr := c.addr
			if tc.Extras {
				addr = c.extras
			}
			client := cases.NewClient(b, addr)
			defer client.Close()
			_, err := client.Run(ctx, tc)
			return err
		})
	}
	total := len(table) + len(cases.Schemas())
	totals := make([]string, len(all))
	for i, n := range passed {
		totals[i] = fmt.Sprintf("%d/%d", n, total)
	}
	fmt.Fprintf(w, "all\t%s\t\n", strings.Join(totals, "\t"))
	fmt.Fprintf(&md, "| **all** | | **%s** |\n", strings.Join(totals, "** | **"))
	if err := w.Flush(); err != nil {
		return false, err
	}
	if markdown != "" {
		if err := os.WriteFile(markdown, []byte(md.String()), 0o644); err != nil {
			return false, err
		}
	}
	return passed[0] == total, nil
}

// serve serves h, as HTTP/1.1 and h2c, until the process ends.
func serve(h http.Handler) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols), ReadHeaderTimeout: 10 * time.Second}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	go func() { _ = srv.Serve(l) }()
	return l.Addr().String(), nil
}

// startTransom runs transom until the process ends, as the test of e2e/cases does.
func startTransom(ctx context.Context, dir string, b *cases.Backend, extras bool) (string, error) {
	g, err := loadTransom(ctx, dir, cases.DescriptorSet(), b, extras)
	if err != nil {
		return "", err
	}
	go func() { _ = g.Run(ctx) }()
	return g.Addrs()[0].String(), nil
}

func loadTransom(ctx context.Context, dir string, schema *descriptorpb.FileDescriptorSet, b *cases.Backend, extras bool) (*gateway.Gateway, error) {
	raw, err := proto.Marshal(schema)
	if err != nil {
		return nil, err
	}
	own, err := os.MkdirTemp(dir, "") // a file that is written again is loaded again
	if err != nil {
		return nil, err
	}
	set := filepath.Join(own, "cases.binpb")
	if err := os.WriteFile(set, raw, 0o600); err != nil {
		return nil, err
	}
	return gateway.New(ctx, &configv1.Config{
		Listeners:   []*configv1.Listener{{Address: "127.0.0.1:0", Cors: &configv1.Cors{AllowOrigins: []string{cases.Origin}}}},
		Descriptors: []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_File{File: set}}},
		Clusters:    map[string]*configv1.Cluster{"backend": {Target: "static:///" + b.Addr()}},
		Policies:    []*configv1.Policy{{Selector: []string{"*"}, MessageBytes: cases.MaxBody}},
		Metadata:    &configv1.Metadata{RequestHeaders: []string{"X-Hop"}},
		Json:        &configv1.Json{QueryMaps: extras},
	}, slog.New(slog.DiscardHandler))
}

// buildPlugin builds grpc-gateway's generator, which is where it refuses a schema.
func buildPlugin(ctx context.Context, dir string) (string, error) {
	plugin := filepath.Join(dir, "protoc-gen-grpc-gateway")
	out, err := exec.CommandContext(ctx, "go", "build", "-mod=mod", "-o", plugin, "github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return plugin, nil
}

// generate runs the generator on cases.proto.
func generate(ctx context.Context, plugin string, set *descriptorpb.FileDescriptorSet) error {
	in, err := proto.Marshal(&pluginpb.CodeGeneratorRequest{
		FileToGenerate: []string{"cases.proto"}, ProtoFile: set.GetFile(), Parameter: proto.String("standalone=true"),
	})
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, plugin)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		return err
	}
	resp := &pluginpb.CodeGeneratorResponse{}
	if err := proto.Unmarshal(out, resp); err != nil {
		return err
	}
	if resp.Error != nil {
		return errors.New(resp.GetError())
	}
	return nil
}

// loadVanguard makes a transcoder of a schema.
func loadVanguard(set *descriptorpb.FileDescriptorSet) error {
	files, err := protodesc.NewFiles(set)
	if err != nil {
		return err
	}
	d, err := files.FindDescriptorByName("cases.v1.Cases")
	if err != nil {
		return err
	}
	svc, ok := d.(protoreflect.ServiceDescriptor)
	if !ok {
		return errors.New("no service")
	}
	_, err = vanguard.NewTranscoder([]*vanguard.Service{vanguard.NewServiceWithSchema(svc, http.NotFoundHandler())})
	return err
}

// grpcGateway is the handler of the generated code.
func grpcGateway(ctx context.Context, b *cases.Backend, tuned bool) (http.Handler, error) {
	conn, err := grpc.NewClient(b.Addr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	var opts []runtime.ServeMuxOption
	if tuned {
		opts = append(opts, runtime.WithUnescapingMode(runtime.UnescapingModeAllExceptReserved),
			runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{Marshaler: &runtime.JSONPb{
				MarshalOptions:   protojson.MarshalOptions{},
				UnmarshalOptions: protojson.UnmarshalOptions{},
			}}))
	}
	mux := runtime.NewServeMux(opts...)
	return mux, casesgw.RegisterCasesHandler(ctx, mux, conn)
}

// vanguardProxy is Vanguard in front of a reverse proxy to the backend.
func vanguardProxy(b *cases.Backend) (http.Handler, error) {
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: b.Addr()})
	proxy.Transport = tr
	proxy.FlushInterval = -1
	var services []*vanguard.Service
	for _, name := range []string{"cases.v1.Cases", "cases.v1.Uploads"} {
		services = append(services, vanguard.NewService(name, proxy, vanguard.WithTargetProtocols(vanguard.ProtocolGRPC),
			vanguard.WithTargetCodecs(vanguard.CodecProto), vanguard.WithNoTargetCompression(), vanguard.WithMaxMessageBufferBytes(cases.MaxBody)))
	}
	return vanguard.NewTranscoder(services)
}
