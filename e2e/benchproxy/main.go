// Command benchproxy compares the CPU that a proxy spends on one REST request: transom with its default settings, a null
// proxy that forwards the same bytes and transcodes nothing, and grpc-gateway with generated code.
//
// Each runs as a process of its own, with the same GOGC and GOMAXPROCS, in front of one backend process. The driver
// sends rounds of requests to one after the other, interleaved, and reads the CPU time of each proxy from /proc. What
// counts is the ratio of minima over the rounds. Not measured: latency, TLS, HTTP/2 towards the client.
//
//	go run . [-rounds N] [-requests N] [-transom BINARY]
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
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/e2e/benchproxy/benchv1"
)

// scenario is one kind of request.
type scenario struct {
	name       string
	verb, path string
	body       []byte
	requests   int // in one round, at scale 1
	bound      float64
	// contentType of a Connect call, whose message the null proxy hands through as it is; grpc-gateway has no such calls.
	// Empty for REST.
	contentType string
}

func main() {
	if len(os.Args) > 1 {
		switch os.Args[1] {
		case "backend":
			log.Fatal(runBackend())
		case "null":
			log.Fatal(runNull(os.Args[2]))
		case "gateway":
			log.Fatal(runGateway(os.Args[2]))
		}
	}
	rounds := flag.Int("rounds", 7, "rounds")
	scale := flag.Float64("scale", 1, "requests in a round, as a factor")
	only := flag.String("only", "", "run scenarios whose name contains this")
	binary := flag.String("transom", "", "path of the transom binary")
	strict := flag.Bool("strict", true, "exit 1 when a ratio is over its bound")
	flag.Parse()
	ok, err := drive(*rounds, *scale, *only, *binary)
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

// cpu is the user and system time that the process has used.
func (p *proc) cpu() (time.Duration, error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(p.cmd.Process.Pid) + "/schedstat")
	if err == nil {
		// schedstat of the process is that of its main thread only; add up the threads.
		_ = b
	}
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
	var procs []*proc
	for _, name := range []string{"null", "gateway"} {
		p, err := start(name, self, name, backend.addr)
		if err != nil {
			return false, err
		}
		defer p.cmd.Process.Kill()
		procs = append(procs, p)
	}
	tr, err := startTransom(binary, set, backend.addr)
	if err != nil {
		return false, err
	}
	defer tr.cmd.Process.Kill()
	procs = append(procs, tr)

	good := true
	fmt.Printf("%-18s %10s %10s %10s   %s\n", "scenario", "null µs", "transom", "grpc-gw", "transom/null (bound), grpc-gateway/null")
	for _, sc := range scenarios() {
		if !strings.Contains(sc.name, only) {
			continue
		}
		n := max(1, int(float64(sc.requests)*scale))
		best := map[string]float64{}
		procs := procs
		if sc.contentType != "" {
			procs = slices.DeleteFunc(slices.Clone(procs), func(p *proc) bool { return p.name == "gateway" })
		}
		for _, p := range procs {
			if err := load(p, sc, max(1, n/4)); err != nil { // warm up
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
				if err := load(p, sc, n); err != nil {
					return false, fmt.Errorf("%s, %s: %w", sc.name, p.name, err)
				}
				after, err := p.cpu()
				if err != nil {
					return false, err
				}
				best[p.name] = min(best[p.name], float64(after-before)/float64(n)/1e3)
			}
		}
		ratio := best["transom"] / best["null"]
		verdict := "ok"
		if ratio > sc.bound {
			verdict, good = "OVER", false
		}
		fmt.Printf("%-18s %10.1f %10.1f %10.1f   %.2f (%.2f) %s, %.2f\n", sc.name, best["null"], best["transom"], best["gateway"],
			ratio, sc.bound, verdict, best["gateway"]/best["null"])
	}
	return good, nil
}

// startTransom runs the real binary.
func startTransom(binary, set, backend string) (*proc, error) {
	if binary == "" {
		return nil, errors.New("say where transom is: -transom BINARY (make bench-proxy builds it)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	l.Close()
	cmd := exec.Command(binary, "serve", "--listen", addr, "--descriptors", set, "--upstream", "static:///"+backend)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2", "GOGC=100")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for range 200 {
		resp, err := http.Get("http://" + addr + "/healthz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return &proc{"transom", cmd, addr}, nil
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return nil, errors.New("transom does not get ready")
}

const workers = 16

// load sends n requests over 16 connections and checks that each is answered in full.
func load(p *proc, sc scenario, n int) error {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: workers, DisableCompression: true}}
	defer client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	path := sc.path
	contentType := sc.contentType
	if contentType == "" {
		contentType = "application/json"
	}
	if p.name == "null" && sc.contentType == "" {
		path = "/null" + path
	}
	var wg sync.WaitGroup
	errs := make(chan error, workers)
	for w := range workers {
		share := n / workers
		if w < n%workers {
			share++
		}
		wg.Go(func() {
			for range share {
				req, err := http.NewRequestWithContext(ctx, sc.verb, "http://"+p.addr+path, strings.NewReader(string(sc.body)))
				if err != nil {
					errs <- err
					return
				}
				if len(sc.body) == 0 {
					req.Body = nil
					req.ContentLength = 0
				} else {
					req.Header["Content-Type"] = []string{contentType}
				}
				resp, err := client.Do(req)
				if err != nil {
					errs <- err
					return
				}
				size, err := io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != http.StatusOK || size < 40 {
					errs <- fmt.Errorf("status %d, %d bytes, %v", resp.StatusCode, size, err)
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
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
