package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"
)

// The comparison of policies: transom with one against transom without, both given the very same requests, and answers from
// the cache against the null proxy. With and without are one process, which a reload takes from one to the other between
// rounds: where a process has its memory costs it up to a twentieth more or less for as long as it lives, which no number of
// rounds would tell from what its policies cost. Each comparison has a process of its own, since what one has served before
// decides how often it collects garbage; all run at once, and each round goes over all comparisons. A round is long, of three
// seconds of CPU time: the least of many short ones is a matter of luck, namely of which calls happen to be carried together.

// lifetime is the number of rounds after which all processes are started anew, so that it is not one place in memory that
// speaks for all.
const lifetime = 3

const apiKey = "4f9a1c0b7d2e68351122334455667788"

// contest is one comparison: what a transom with policies spends on a call of load, as a factor of what one without does, or
// the null proxy.
type contest struct {
	name string
	// policies are a part of the configuration; than is "null" or "transom".
	policies, than string
	observed       bool    // policies are none, but metrics and access log
	requests       int     // in one round, at scale 1
	bound          float64 // of the factor; 0 for none
	load           *httpLoad
	// sides are with and without.
	sides [2]side
	// spent is the CPU time a call of either in each round, in µs.
	spent [2][]float64
}

// side is one of the two that a contest compares: a process, and how it gets to be it.
type side struct {
	*proc
	become func() error // nil if the process is nothing else
}

// ratio is what with spends as a factor of without: by the least round of each, by the mean of the half of the rounds in which
// each spent least, and as the median of the rounds' own ratios. The contest of a transom with its like shows what of each is
// chance. us is the least of either.
func (c *contest) ratio() (least, quiet, median float64, us [2]float64) {
	var ratios []float64
	for i, with := range c.spent[0] {
		ratios = append(ratios, with/c.spent[1][i])
	}
	slices.Sort(ratios)
	var mean [2]float64
	for i, all := range c.spent {
		half := slices.Sorted(slices.Values(all))[:(len(all)+1)/2]
		us[i] = half[0]
		for _, v := range half {
			mean[i] += v / float64(len(half))
		}
	}
	return us[0] / us[1], mean[0] / mean[1], ratios[len(ratios)/2], us
}

func contests(dir, issuer, token, admin string) ([]*contest, error) {
	body, err := protojson.Marshal(order(7, 0))
	if err != nil {
		return nil, err
	}
	small := func(name, value string) *httpLoad {
		l := &httpLoad{verb: "POST", path: "/bench/unary", contentType: "application/json", body: body}
		if name != "" {
			l.header = http.Header{name: {value}}
		}
		return l
	}
	large := &httpLoad{verb: "GET", path: "/bench/list/256k"}
	keys := fmt.Sprintf(`
consumers:
  providers: {keys: {api_key: {}}}
  known: {shop: {api_keys: ["sha256:%x"]}}
policies:
- {selector: "*", auth: {require: [keys]}, limits: [{name: calls, rate: 1000000/s, per: consumer}]}
`, sha256.Sum256([]byte(apiKey)))
	tokens := fmt.Sprintf(`
consumers:
  providers: {main: {jwt: {issuer: %q, jwks_uri: %q, audiences: [bench], outbound: {private: true}}}}
policies:
- {selector: "*", auth: {require: [main]}}
`, issuer, issuer+"/keys")
	observed := fmt.Sprintf("admin: {address: %q}\naccess_log: {file: %q}\n", admin, filepath.Join(dir, "access.log"))
	cached := "policies:\n- {selector: [transom.bench.v1.Bench.Unary, transom.bench.v1.Bench.List], cache: {ttl: 1h}}\n"
	return []*contest{
		{name: "the same twice", than: "transom", requests: 64000, load: small("", "")},
		{name: "API key and rate limit", policies: keys, than: "transom", requests: 64000, bound: 1.05, load: small("X-Api-Key", apiKey)},
		{name: "JWT, verified before", policies: tokens, than: "transom", requests: 64000, bound: 1.03, load: small("Authorization", "Bearer "+token)},
		{name: "metrics and access log", policies: observed, observed: true, than: "transom", requests: 64000, bound: 1.08, load: small("", "")},
		{name: "200 B from the cache", policies: cached, than: "null", requests: 64000, bound: 0.7, load: small("", "")},
		{name: "256 KiB from the cache", policies: cached, than: "transom", requests: 2560, bound: 0.5, load: large},
	}, nil
}

// drivePolicies is drive for policies.
func drivePolicies(rounds int, scale float64, only, binary string) (bool, error) {
	dir, err := os.MkdirTemp("", "benchproxy")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	set := filepath.Join(dir, "bench.binpb")
	if err := writeSet(set); err != nil {
		return false, err
	}
	if err := withoutSideEffects(set); err != nil {
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
	issuer, token, err := startIssuer()
	if err != nil {
		return false, err
	}
	admin, err := freeAddress()
	if err != nil {
		return false, err
	}
	list, err := contests(dir, issuer, token, admin)
	if err != nil {
		return false, err
	}
	list = slices.DeleteFunc(list, func(c *contest) bool { return !strings.Contains(c.name, only) })
	for done := 0; done < rounds; done += lifetime {
		if err := live(list, min(lifetime, rounds-done), scale, func(c *contest) ([]*proc, error) {
			p, f, err := startReloadable(binary, dir, set, backend.addr, c.policies)
			if err != nil {
				return nil, err
			}
			c.sides = [2]side{{p, f.with(c.policies)}, {p, f.with("")}}
			if c.than != "null" {
				return []*proc{p}, nil
			}
			null, err := start("null", self, "null", backend.addr)
			c.sides = [2]side{{p, nil}, {null, nil}}
			return []*proc{p, null}, err
		}); err != nil {
			return false, err
		}
	}
	good := true
	fmt.Printf("%-24s %10s %10s   %s\n", "µs of CPU a call", "without", "with", "with/without by minima (bound), by the quieter half of the rounds, median")
	for _, c := range list {
		least, quiet, median, us := c.ratio()
		verdict := "ok"
		switch {
		case c.bound == 0:
			verdict = "is what chance makes of 1"
		case least > c.bound:
			verdict, good = "OVER", false
		}
		fmt.Printf("%-24s %10.1f %10.1f   %.3f (%.2f) %s, %.3f, %.3f, of %s\n", c.name, us[1], us[0], least, c.bound, verdict, quiet, median, c.than)
	}
	return good, nil
}

// live starts the processes of all contests, lets them warm up for a quarter of a round, makes further rounds of which it keeps
// what was spent, and ends them.
func live(list []*contest, rounds int, scale float64, start func(c *contest) ([]*proc, error)) error {
	for _, c := range list {
		procs, err := start(c)
		for _, p := range procs {
			defer p.end()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.name, err)
		}
	}
	for r := range rounds + 1 {
		for _, c := range list {
			n := max(1, int(float64(c.requests)*scale))
			if r == 0 {
				n = max(1, n/4)
			}
			for i := range 2 {
				which := (i + r) % 2
				spent, err := c.sides[which].spend(c.load, n)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", c.name, c.sides[which].name, err)
				}
				if r > 0 {
					c.spent[which] = append(c.spent[which], float64(spent)/float64(n)/1e3)
				}
			}
		}
	}
	return nil
}

// spend is the CPU time that the side needs for n calls of load, once it has become what it is and served a few.
func (s side) spend(load *httpLoad, n int) (time.Duration, error) {
	if s.become != nil {
		if err := s.become(); err != nil {
			return 0, err
		}
		if _, err := spend(s.proc, load, max(1, n/10)); err != nil {
			return 0, err
		}
	}
	return spend(s.proc, load, n)
}

// configFile is the configuration of a process.
type configFile struct {
	path, rest string
	proc       *proc
	said       <-chan string // a line when there was a reload
}

// startReloadable runs the real binary with a configuration of which policies is a part, and may be replaced.
func startReloadable(binary, dir, set, backend, policies string) (*proc, *configFile, error) {
	addr, err := freeAddress()
	if err != nil {
		return nil, nil, err
	}
	f := &configFile{
		path: filepath.Join(dir, addr+".yaml"),
		rest: fmt.Sprintf("listeners: [{address: %q}]\ndescriptors: [{file: %q}]\nclusters: {bench: {target: \"static:///%s\"}}\n", addr, set, backend),
	}
	if err := f.write(policies); err != nil {
		return nil, nil, err
	}
	said := make(chan string, 1)
	f.said = said
	f.proc, err = runTransom("transom", addr, &reloads{said: said}, binary, "serve", "--config", f.path)
	return f.proc, f, err
}

func (f *configFile) write(policies string) error {
	next := f.path + ".next"
	if err := os.WriteFile(next, []byte(policies+f.rest), 0o600); err != nil {
		return err
	}
	return os.Rename(next, f.path)
}

// with is what makes the process one with those policies.
func (f *configFile) with(policies string) func() error {
	return func() error {
		if err := f.write(policies); err != nil {
			return err
		}
		if err := f.proc.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			return err
		}
		select {
		case line := <-f.said:
			if !strings.Contains(line, " msg=reloaded ") {
				return errors.New(line)
			}
			return nil
		case <-time.After(10 * time.Second):
			return errors.New("the reload takes too long")
		}
	}
}

// reloads takes what a process logs, tells of reloads, and passes on the rest.
type reloads struct {
	said chan<- string
	part []byte
}

func (r *reloads) Write(p []byte) (int, error) {
	r.part = append(r.part, p...)
	for {
		line, rest, whole := bytes.Cut(r.part, []byte{'\n'})
		if !whole {
			return len(p), nil
		}
		if bytes.Contains(line, []byte("reload")) {
			select {
			case r.said <- string(line):
			default: // it has said so before
			}
		} else {
			fmt.Fprintf(os.Stderr, "%s\n", line)
		}
		r.part = rest
	}
}

// spend is the CPU time that p needs for n calls of load.
func spend(p *proc, load *httpLoad, n int) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	before, err := p.cpu()
	if err != nil {
		return 0, err
	}
	if err := load.run(ctx, p, n); err != nil {
		return 0, err
	}
	after, err := p.cpu()
	return after - before, err
}

// withoutSideEffects says of the methods of a descriptor set that they have none, so that they may be cached.
func withoutSideEffects(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	set := &descriptorpb.FileDescriptorSet{}
	if err := proto.Unmarshal(b, set); err != nil {
		return err
	}
	for _, f := range set.GetFile() {
		for _, s := range f.GetService() {
			for _, m := range s.GetMethod() {
				if m.Options == nil {
					m.Options = &descriptorpb.MethodOptions{}
				}
				m.Options.IdempotencyLevel = descriptorpb.MethodOptions_NO_SIDE_EFFECTS.Enum()
			}
		}
	}
	if b, err = proto.Marshal(set); err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}

// freeAddress is a loopback address that nobody listens on now.
func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// startIssuer serves a key, and signs a token with it as a provider of OpenID Connect does (RFC 7515, RFC 7518 section 3.4).
func startIssuer() (issuer, token string, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", err
	}
	issuer = "http://" + l.Addr().String()
	point, err := key.PublicKey.Bytes()
	if err != nil {
		return "", "", err
	}
	const coordinate = 32 // bytes, after one that says the form of the point
	b64 := base64.RawURLEncoding.EncodeToString
	keys, err := json.Marshal(map[string]any{"keys": []map[string]any{{
		"kty": "EC", "crv": "P-256", "kid": "1", "alg": "ES256", "use": "sig", "x": b64(point[1 : 1+coordinate]), "y": b64(point[1+coordinate:]),
	}}})
	if err != nil {
		return "", "", err
	}
	go func() {
		_ = http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(keys)
		}))
	}()
	claims, err := json.Marshal(map[string]any{
		"iss": issuer, "aud": "bench", "sub": "user-7", "scope": "orders.read orders.write", "iat": time.Now().Unix(), "exp": time.Now().Add(24 * time.Hour).Unix(),
	})
	if err != nil {
		return "", "", err
	}
	signed := b64([]byte(`{"alg":"ES256","kid":"1","typ":"JWT"}`)) + "." + b64(claims)
	sum := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, key, sum[:])
	if err != nil {
		return "", "", err
	}
	signature := make([]byte, 2*coordinate)
	r.FillBytes(signature[:coordinate])
	s.FillBytes(signature[coordinate:])
	return issuer, signed + "." + b64(signature), nil
}
