// Command benchproxy compares the CPU that a proxy spends on one call: transom with its default settings, a null proxy of the
// same shape that forwards the same bytes and knows nothing of them, and for REST grpc-gateway with generated code.
//
// Each runs as a process of its own, with the same GOGC and GOMAXPROCS, in front of one backend process. The driver
// sends rounds of requests to one after the other, interleaved, and reads the CPU time of each proxy from /proc. What
// counts is the ratio of minima over the rounds. Not measured: latency, TLS, HTTP/2 towards the client but for native gRPC.
//
// With -policies it compares transom with a policy and transom without it, and answers from the cache with the null proxy.
//
//	go run . -transom BINARY [-policies] [-rounds N] [-scale FACTOR] [-only NAME]
//	go run . -transom BINARY -record FILE
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/e2e/benchproxy/benchv1"
)

// scenario is one kind of call.
type scenario struct {
	name string
	// null is the program that transom is compared with.
	null string
	// gateway says that grpc-gateway can serve it too.
	gateway  bool
	requests int // in one round, at scale 1
	bound    float64
	// load makes n calls of a proxy and checks that each is answered in full.
	load func(ctx context.Context, p *proc, n int) error
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "backend":
			log.Fatal(runBackend())
		case "null":
			log.Fatal(runNull(os.Args[2]))
		case "null-framed":
			log.Fatal(runNullFramed(os.Args[2]))
		case "null-socket":
			log.Fatal(runNullSocket(os.Args[2]))
		case "null-native":
			log.Fatal(runNullNative(os.Args[2]))
		case "gateway":
			log.Fatal(runGateway(os.Args[2]))
		}
	}
	rounds := flag.Int("rounds", 7, "rounds")
	scale := flag.Float64("scale", 1, "requests in a round, as a factor")
	only := flag.String("only", "", "run scenarios whose name contains this")
	binary := flag.String("transom", "", "path of the transom binary")
	strict := flag.Bool("strict", true, "exit 1 when a ratio is over its bound")
	policies := flag.Bool("policies", false, "compare policies instead of proxies")
	profile := flag.String("record", "", "compare nothing, but write transom's CPU profile under all loads to this file")
	flag.Parse()
	if *binary == "" {
		log.Fatal("say where transom is: -transom BINARY (make builds it)")
	}
	if *profile != "" {
		if err := record(*profile, *binary); err != nil {
			log.Fatal(err)
		}
		return
	}
	run := drive
	if *policies {
		run = drivePolicies
	}
	ok, err := run(*rounds, *scale, *only, *binary)
	if err != nil {
		log.Fatal(err)
	}
	if !ok && *strict {
		os.Exit(1)
	}
}

// proc is a process under measurement.
type proc struct {
	name string
	cmd  *exec.Cmd
	addr string
}

// start runs a subcommand of this binary, which prints its address.
func start(name string, args ...string) (*proc, error) {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "GOGC=100")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &proc{name, cmd, strings.TrimSpace(line)}, nil
}

// end kills the process and waits for its end.
func (p *proc) end() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// cpu is the user and system time that the process has used.
func (p *proc) cpu() (time.Duration, error) {
	// schedstat of the process is that of its main thread only, so the threads are added up.
	tasks, err := filepath.Glob("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/task/*/schedstat")
	if err != nil {
		return 0, err
	}
	var ns int64
	for _, t := range tasks {
		b, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b))
		n, err := strconv.ParseInt(f[0], 10, 64)
		if err != nil {
			return 0, err
		}
		ns += n
	}
	return time.Duration(ns), nil
}

func drive(rounds int, scale float64, only, binary string) (bool, error) {
	dir, err := os.MkdirTemp("", "benchproxy")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	set := filepath.Join(dir, "bench.binpb")
	if err := writeSet(set); err != nil {
		return false, err
	}
	self, err := os.Executable()
	if err != nil {
		return false, err
	}
	backend, err := start("backend", self, "backend")
	if err != nil {
		return false, err
	}
	defer backend.cmd.Process.Kill()
	all := map[string]*proc{}
	for _, name := range []string{"null", "null-framed", "null-socket", "null-native", "gateway"} {
		p, err := start(name, self, name, backend.addr)
		if err != nil {
			return false, err
		}
		defer p.cmd.Process.Kill()
		all[name] = p
	}
	tr, err := startTransom(binary, set, backend.addr)
	if err != nil {
		return false, err
	}
	defer tr.cmd.Process.Kill()

	good := true
	fmt.Printf("%-18s %10s %10s   %s\n", "µs of CPU a call", "null", "transom", "transom/null (bound)")
	for _, sc := range scenarios() {
		if !strings.Contains(sc.name, only) {
			continue
		}
		n := max(1, int(float64(sc.requests)*scale))
		best := map[string]float64{}
		procs := []*proc{all[sc.null], tr}
		if sc.gateway {
			procs = append(procs, all["gateway"])
		}
		load := func(p *proc, n int) error {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			return sc.load(ctx, p, n)
		}
		for _, p := range procs {
			if err := load(p, max(1, n/4)); err != nil { // warm up
				return false, fmt.Errorf("%s, %s: %w", sc.name, p.name, err)
			}
			best[p.name] = math.Inf(1)
		}
		for r := range rounds {
			for i := range procs {
				p := procs[(i+r)%len(procs)]
				before, err := p.cpu()
				if err != nil {
					return false, err
				}
				if err := load(p, n); err != nil {
					return false, fmt.Errorf("%s, %s: %w", sc.name, p.name, err)
				}
				after, err := p.cpu()
				if err != nil {
					return false, err
				}
				best[p.name] = min(best[p.name], float64(after-before)/float64(n)/1e3)
			}
		}
		ratio := best["transom"] / best[sc.null]
		verdict := "ok"
		if ratio > sc.bound {
			verdict, good = "OVER", false
		}
		fmt.Printf("%-18s %10.1f %10.1f   %.2f (%.2f) %s", sc.name, best[sc.null], best["transom"], ratio, sc.bound, verdict)
		if sc.gateway {
			fmt.Printf(", grpc-gateway %.1f, %.2f", best["gateway"], best["gateway"]/best[sc.null])
		}
		fmt.Println()
	}
	return good, nil
}

// startTransom runs the real binary.
func startTransom(binary, set, backend string) (*proc, error) {
	addr, err := freeAddress()
	if err != nil {
		return nil, err
	}
	return runTransom("transom", addr, os.Stderr, binary, "serve", "--listen", addr, "--descriptors", set, "--upstream", "static:///"+backend)
}

// runTransom runs the real binary, which listens on addr and logs to log, and waits until it is ready.
func runTransom(name, addr string, log io.Writer, binary string, args ...string) (*proc, error) {
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "GOGC=100")
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for range 1000 {
		resp, err := http.Get("http://" + addr + "/healthz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return &proc{name, cmd, addr}, nil
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, errors.New(name + " does not get ready")
}

// writeSet writes the descriptor set of the service.
func writeSet(path string) error {
	set := &descriptorpb.FileDescriptorSet{}
	seen := map[string]bool{}
	var add func(protoreflect.FileDescriptor)
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
	add(benchv1.File_bench_proto)
	b, err := proto.Marshal(set)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}
