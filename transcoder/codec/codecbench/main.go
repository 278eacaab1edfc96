// Command codecbench measures the codec beside protojson, over dynamic and over generated messages, on one corpus in both
// directions, and prints how many times faster the codec is.
//
// All candidates run in one process, turn by turn, and what counts is the CPU time of the process (getrusage, with the
// garbage collector's share) in the quickest round of each: on a busy machine the ratio of two such minima is steady where
// wall-clock times are not. Inputs are the same in every iteration, which flatters all branch predictors alike.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"transom/transcoder/codec"
)

func main() {
	rounds := flag.Int("rounds", 11, "rounds per candidate")
	round := flag.Duration("round", 15*time.Millisecond, "CPU time of one round")
	only := flag.String("entry", "", "measure this entry only")
	profile := flag.String("profile", "", "instead of measuring, run the codec alone for a few seconds and write a CPU profile here")
	direction := flag.String("direction", "", "json or wire: measure wire → JSON or JSON → wire only")
	flag.Parse()
	if err := run(*rounds, *round, *only, *direction, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "codecbench:", err)
		os.Exit(1)
	}
}

// candidate is one way to do a job.
type candidate struct {
	name string
	do   func() error

	n      int     // iterations per round
	best   float64 // nanoseconds
	allocs float64
}

// The candidates of each job, in order.
const (
	ours = iota
	dynamic
	generated
)

func run(rounds int, round time.Duration, only, direction, profile string) error {
	runtime.GOMAXPROCS(1)
	ballast := make([]byte, 32<<20) // a server's heap, so that the collector runs as often as there
	defer runtime.KeepAlive(ballast)
	types := codec.NewTypes(dynamicpb.NewTypes(protoregistry.GlobalFiles))
	for _, d := range []string{"json", "wire"} {
		if direction != "" && d != direction {
			continue
		}
		if d == "json" {
			fmt.Println("wire to JSON")
		} else {
			fmt.Println("JSON to wire")
		}
		fmt.Printf("%-10s %8s %8s %10s %7s %11s %8s %11s %8s %7s %7s\n", "entry", "JSON B", "wire B", "codec ns", "allocs", "dynamic ns",
			"allocs", "generated", "allocs", "x dyn", "x gen")
		var logDyn, logGen float64
		count := 0
		for _, e := range corpus() {
			if only != "" && e.name != only {
				continue
			}
			wire, text, err := prepare(types, e)
			if err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			cs := readers(types, e.msg, text)
			if d == "json" {
				cs = writers(types, e.msg, wire)
			}
			if profile != "" {
				if err := record(profile, cs[ours]); err != nil {
					return err
				}
				continue
			}
			if err := measure(cs, rounds, round); err != nil {
				return fmt.Errorf("%s: %w", e.name, err)
			}
			dyn, gen := cs[dynamic].best/cs[ours].best, cs[generated].best/cs[ours].best
			fmt.Printf("%-10s %8d %8d %10.0f %7.2f %11.0f %8.0f %11.0f %8.0f %7.1f %7.1f\n", e.name, len(text), len(wire), cs[ours].best,
				cs[ours].allocs, cs[dynamic].best, cs[dynamic].allocs, cs[generated].best, cs[generated].allocs, dyn, gen)
			logDyn += math.Log(dyn)
			logGen += math.Log(gen)
			count++
		}
		if count > 1 {
			fmt.Printf("%-10s %91.1f %7.1f\n", "geomean", math.Exp(logDyn/float64(count)), math.Exp(logGen/float64(count)))
		}
		fmt.Println()
	}
	return nil
}

// prepare returns an entry in both forms, after checking that the codec agrees with protojson on them.
func prepare(types *codec.Types, e entry) (wire, text []byte, err error) {
	if wire, err = proto.Marshal(e.msg); err != nil {
		return nil, nil, err
	}
	spaced, err := protojson.Marshal(e.msg)
	if err != nil {
		return nil, nil, err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, spaced); err != nil {
		return nil, nil, err
	}
	m := types.Message(e.msg.ProtoReflect().Descriptor())
	if text, err = m.AppendJSON(nil, wire, nil); err != nil {
		return nil, nil, err
	}
	if !bytes.Equal(text, b.Bytes()) {
		return nil, nil, fmt.Errorf("the codec's JSON differs from protojson's")
	}
	back, err := m.AppendWire(nil, text, nil)
	if err != nil {
		return nil, nil, err
	}
	again := e.msg.ProtoReflect().New().Interface()
	if err := proto.Unmarshal(back, again); err != nil || !proto.Equal(e.msg, again) {
		return nil, nil, fmt.Errorf("the codec's wire form is another message: %w", err)
	}
	return wire, text, nil
}

func writers(types *codec.Types, msg proto.Message, wire []byte) []*candidate {
	md := msg.ProtoReflect().Descriptor()
	m := types.Message(md)
	var buf []byte
	return []*candidate{
		{name: "codec", do: func() (err error) {
			buf, err = m.AppendJSON(buf[:0], wire, nil)
			return err
		}},
		{name: "dynamic", do: func() error {
			d := dynamicpb.NewMessage(md)
			if err := proto.Unmarshal(wire, d); err != nil {
				return err
			}
			var err error
			buf, err = protojson.MarshalOptions{}.MarshalAppend(buf[:0], d)
			return err
		}},
		{name: "generated", do: func() error {
			g := msg.ProtoReflect().New().Interface()
			if err := proto.Unmarshal(wire, g); err != nil {
				return err
			}
			var err error
			buf, err = protojson.MarshalOptions{}.MarshalAppend(buf[:0], g)
			return err
		}},
	}
}

func readers(types *codec.Types, msg proto.Message, text []byte) []*candidate {
	md := msg.ProtoReflect().Descriptor()
	m := types.Message(md)
	var buf []byte
	return []*candidate{
		{name: "codec", do: func() (err error) {
			buf, err = m.AppendWire(buf[:0], text, nil)
			return err
		}},
		{name: "dynamic", do: func() error {
			d := dynamicpb.NewMessage(md)
			if err := protojson.Unmarshal(text, d); err != nil {
				return err
			}
			var err error
			buf, err = proto.MarshalOptions{}.MarshalAppend(buf[:0], d)
			return err
		}},
		{name: "generated", do: func() error {
			g := msg.ProtoReflect().New().Interface()
			if err := protojson.Unmarshal(text, g); err != nil {
				return err
			}
			var err error
			buf, err = proto.MarshalOptions{}.MarshalAppend(buf[:0], g)
			return err
		}},
	}
}

// measure runs the candidates in turn.
func measure(cs []*candidate, rounds int, round time.Duration) error {
	for _, c := range cs {
		if err := c.do(); err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
		c.best = math.Inf(1)
		for c.n = 1; ; c.n *= 2 {
			spent, err := c.spend()
			if err != nil {
				return err
			}
			if spent >= round/2 || c.n > 1<<24 {
				break
			}
		}
	}
	for range rounds {
		for _, c := range cs {
			runtime.GC()
			spent, err := c.spend()
			if err != nil {
				return err
			}
			c.best = min(c.best, float64(spent)/float64(c.n))
		}
	}
	for _, c := range cs {
		c.allocs = allocations(c)
	}
	return nil
}

// allocations counts per iteration, with the collector off: it empties pools.
func allocations(c *candidate) float64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var before, after runtime.MemStats
	_ = c.do()
	n := min(c.n, 200)
	runtime.ReadMemStats(&before)
	for range n {
		_ = c.do()
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(n)
}

// spend runs one round and returns the CPU time it took.
func (c *candidate) spend() (time.Duration, error) {
	start := cpuTime()
	for range c.n {
		if err := c.do(); err != nil {
			return 0, err
		}
	}
	return cpuTime() - start, nil
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func record(path string, c *candidate) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return err
	}
	for start := cpuTime(); cpuTime()-start < 3*time.Second; {
		for range 10 {
			if err := c.do(); err != nil {
				return err
			}
		}
	}
	pprof.StopCPUProfile()
	fmt.Println(strings.Repeat(" ", 10), "profile written")
	return f.Close()
}
