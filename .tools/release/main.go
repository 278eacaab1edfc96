// Command release makes what transom is delivered as: for each platform a binary, an archive and the list of what it is
// made of (CycloneDX), for Linux a Debian package too, one OCI image for all Linux platforms, and the sums of all.
//
// Two runs on one commit give the same bytes, with the same Go.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// platform is what Go builds for.
type platform struct{ os, arch string }

func (p platform) String() string { return p.os + "_" + p.arch }

// release is one run.
type release struct {
	out     string // directory
	version string // with its v
	at      time.Time
}

func main() {
	var r release
	platforms := flag.String("platforms", "linux/amd64,linux/arm64,darwin/amd64,darwin/arm64", "what to build for")
	prebuilt := flag.String("prebuilt", "", "take this `FILE` for the machine's own platform, and make nothing for others: for tests")
	flag.StringVar(&r.out, "out", "dist", "`DIRECTORY` to write to; what it holds is removed")
	flag.StringVar(&r.version, "version", "", "the version, v1.2.3 (default: as git describes the commit)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := r.run(ctx, strings.Split(*platforms, ","), *prebuilt); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to clean up
	}
}

func (r *release) run(ctx context.Context, platforms []string, prebuilt string) error {
	if err := r.describe(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(r.out); err != nil {
		return err
	}
	if err := os.MkdirAll(r.out, 0o755); err != nil { //nolint:gosec // to be handed on
		return err
	}
	work, err := os.MkdirTemp("", "release-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if prebuilt != "" {
		platforms = []string{runtime.GOOS + "/" + runtime.GOARCH}
	}
	image := &image{version: r.version, at: r.at}
	for _, name := range platforms {
		goos, arch, ok := strings.Cut(name, "/")
		if !ok {
			return fmt.Errorf("%q is no platform: want OS/ARCHITECTURE", name)
		}
		p, bin := platform{goos, arch}, prebuilt
		if bin == "" {
			fmt.Println("building", p)
			bin = filepath.Join(work, p.String(), "transom")
			if err := r.build(ctx, p, bin); err != nil {
				return err
			}
		}
		if err := r.deliver(ctx, p, bin); err != nil {
			return fmt.Errorf("%v: %w", p, err)
		}
		if p.os == "linux" {
			if err := image.add(p, bin); err != nil {
				return fmt.Errorf("image for %v: %w", p, err)
			}
		}
	}
	if len(image.manifests) > 0 {
		if err := image.write(r.name("oci.tar")); err != nil {
			return err
		}
	}
	return r.sums()
}

// describe finds version and time of the commit.
func (r *release) describe(ctx context.Context) error {
	git := func(args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, "git", args...).Output() //nolint:gosec // our own arguments
		return strings.TrimSpace(string(out)), err
	}
	seconds, err := git("log", "-1", "--format=%ct")
	if err != nil {
		return fmt.Errorf("a release is made of a commit: git log: %w", err)
	}
	n, err := strconv.ParseInt(seconds, 10, 64)
	if err != nil {
		return err
	}
	r.at = time.Unix(n, 0).UTC()
	if r.version != "" {
		return nil
	}
	if r.version, err = git("describe", "--tags", "--match", "v[0-9]*", "--dirty"); err == nil {
		return nil
	}
	hash, err := git("describe", "--always", "--dirty", "--abbrev=12") // there is no tag yet
	r.version = "v0.0.0-" + r.at.Format("20060102150405") + "-" + hash
	return err
}

// name is the path of a file to deliver.
func (r *release) name(suffix string) string {
	return filepath.Join(r.out, "transom_"+strings.TrimPrefix(r.version, "v")+"_"+suffix)
}

// build compiles transom for p.
func (r *release) build(ctx context.Context, p platform, bin string) error {
	return r.command(ctx, []string{"CGO_ENABLED=0", "GOOS=" + p.os, "GOARCH=" + p.arch}, "go", "build", "-trimpath", "-buildvcs=false",
		"-pgo=auto", "-tags=grpcnotrace", "-ldflags=-s -w -X transom/gateway.version="+r.version, "-o", bin, "./cmd/transom")
}

func (r *release) command(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...) //nolint:gosec // our own arguments
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, args[0], err, out)
	}
	return nil
}

// deliver writes what is made of one binary.
func (r *release) deliver(ctx context.Context, p platform, bin string) error {
	bom, err := materials(bin, r.version, r.at)
	if err != nil {
		return err
	}
	if err := os.WriteFile(r.name(p.String()+".cdx.json"), bom, 0o644); err != nil { //nolint:gosec // to be handed on
		return err
	}
	files := []file{{"transom", bin, 0o755}}
	for _, name := range []string{"LICENSE", "README.md", "CHANGELOG.md", "docs/configuration.md", "deploy/transom.yaml", "deploy/systemd/transom.service", "proto/transom/v1/policy.proto"} {
		files = append(files, file{name, name, 0o644})
	}
	var archive bytes.Buffer
	if err := tarGzip(&archive, "transom-"+strings.TrimPrefix(r.version, "v")+"/", files, r.at); err != nil {
		return err
	}
	if err := os.WriteFile(r.name(p.String()+".tar.gz"), archive.Bytes(), 0o644); err != nil { //nolint:gosec // to be handed on
		return err
	}
	if p.os != "linux" {
		return nil
	}
	env := []string{"ARCH=" + p.arch, "VERSION=" + r.version, "BINARY=" + bin, "SOURCE_DATE_EPOCH=" + strconv.FormatInt(r.at.Unix(), 10)}
	return r.command(ctx, env, "go", "tool", "-modfile=.tools/nfpm.mod", "nfpm", "package",
		"--config", "deploy/debian/nfpm.yaml", "--packager", "deb", "--target", r.name(p.arch+".deb"))
}

// sums writes SHA256SUMS, for sha256sum --check.
func (r *release) sums() error {
	entries, err := os.ReadDir(r.out)
	if err != nil {
		return err
	}
	var text strings.Builder
	for _, e := range slices.SortedFunc(slices.Values(entries), func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) }) {
		data, err := os.ReadFile(filepath.Join(r.out, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&text, "%x  %s\n", sha256.Sum256(data), e.Name())
		fmt.Printf("%9.1f MB  %s\n", float64(len(data))/1e6, e.Name())
	}
	return os.WriteFile(filepath.Join(r.out, "SHA256SUMS"), []byte(text.String()), 0o644) //nolint:gosec // to be handed on
}
