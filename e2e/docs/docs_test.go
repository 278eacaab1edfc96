// Package docs_test runs what the documents show: each configuration is checked by transom, each command is run against
// the demo. A block that nothing can run or check fails, so that nothing untested is shown.
package docs_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"transom/cmd/transom/demo"
	"transom/cmd/transom/demo/bank"
	"transom/descriptors"
	"transom/e2e/process"
	"transom/upstream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a command may take.
const patience = 60 * time.Second

const repository = "../.."

// block is a fenced block of a document.
type block struct {
	file string
	line int // of its first line of text
	kind string
	text string
}

func (b block) where(line int) string {
	return fmt.Sprintf("%s:%d", filepath.Base(b.file), b.line+line)
}

// blocks are the fenced blocks of README.md and the documents.
func blocks(t *testing.T) []block {
	t.Helper()
	files, err := filepath.Glob(repository + "/docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []block
	for _, file := range append(files, repository+"/README.md") {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var in *block
		for i, line := range strings.Split(string(text), "\n") {
			switch kind, fence := strings.CutPrefix(strings.TrimSpace(line), "```"); {
			case fence && in == nil:
				in = &block{file: file, line: i + 2, kind: kind}
			case fence:
				all = append(all, *in)
				in = nil
			case in != nil:
				in.text += line + "\n"
			}
		}
		if in != nil {
			t.Errorf("%s: the block is not closed", in.where(-1))
		}
	}
	return all
}

// place is a directory that looks like the project's, where commands are run.
type place struct {
	dir  string
	path string // PATH, with the wrappers first
}

// newPlace makes a place with what documents take for granted: a built transom, a descriptor set, a certificate.
func newPlace(t *testing.T) *place {
	t.Helper()
	root, err := filepath.Abs(repository)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + "/bin/transom"); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	dir := t.TempDir()
	write := func(name string, data []byte, mode os.FileMode) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, mode); err != nil {
			t.Fatal(err)
		}
	}
	certificate, key, err := demo.SelfSigned(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []string{"", "etc/transom/"} {
		for name, from := range map[string]string{"edge.crt": certificate, "edge.key": key, "clients.pem": certificate} {
			pem, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			write(at+name, pem, 0o600)
		}
		write(at+"bank.binpb", bank.DescriptorSet(), 0o600)
		write(at+"admin.token", []byte("of a test\n"), 0o600)
		write(at+"endpoints.yaml", []byte("endpoints: [{address: \"127.0.0.1:50051\"}]\n"), 0o600)
	}
	write("build/bank.binpb", bank.DescriptorSet(), 0o600)
	for _, link := range []string{"go.mod", "proto", ".tools", "deploy", "Makefile"} {
		if err := os.Symlink(filepath.Join(root, link), filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	// What the documents call, made to say whether it went well. STATUS is the answer's, if the document names one.
	write("bin/transom", []byte("#!/bin/sh\n"+`case $1 in
status|clusters|limits|usage|purge|reload|drain|healthcheck) exec `+root+`/bin/transom "$@" --admin "$ADMIN";;
esac
exec `+root+"/bin/transom \"$@\"\n"), 0o755)
	write("wrap/transom", []byte("#!/bin/sh\nexec "+dir+"/bin/transom \"$@\"\n"), 0o755)
	write("wrap/curl", []byte(`#!/bin/bash
said=$(/usr/bin/env -S PATH="$REAL" curl -sS --max-time 30 -w '\nSTATUS %{http_code}' "$@") || exit
status=${said##*STATUS }
echo "${said%STATUS *}"
if [ -n "$STATUS" ]; then [ "$status" = "$STATUS" ] || { echo "status $status, want $STATUS" >&2; exit 1; }
elif [ "$status" -ge 400 ]; then echo "status $status" >&2; exit 1; fi
`), 0o755)
	write("wrap/go", []byte(`#!/bin/sh
[ "$1 $2 $3" = "tool -modfile=.tools/ghz.mod ghz" ] || { echo "only ghz is run here" >&2; exit 1; }
shift 3
exec `+root+"/build/tools/ghz \"$@\"\n"), 0o755)
	write("wrap/buf", []byte("#!/bin/sh\n[ \"$1 $2\" = \"build -o\" ] && cd "+root+" && PATH=\"$REAL\" exec go tool -modfile=.tools/buf.mod buf build --path proto/bank -o "+dir+"/$3\n"), 0o755)
	return &place{dir: dir, path: dir + "/wrap:" + os.Getenv("PATH")}
}

// demonstration runs the demo until the test ends, and gives the addresses that stand for those of the documents.
func demonstration(t *testing.T) (replace *strings.Replacer, admin string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out, in := io.Pipe()
	done := make(chan struct{})
	var failed error // before done is closed
	var listeners []net.Listener
	var free []string
	for range 4 { // plain, TLS, admin, bank
		l := process.Listen(t)
		listeners, free = append(listeners, l), append(free, l.Addr().String())
	}
	for _, l := range listeners { // when there are all four, so that none is another's
		_ = l.Close()
	}
	go func() {
		failed = demo.Run(ctx, demo.Config{Plain: free[0], TLS: free[1], Admin: free[2], Backends: []string{free[3]}, Out: in})
		_ = in.CloseWithError(io.EOF)
		close(done)
	}()
	t.Cleanup(func() {
		cancel()
		if <-done; failed != nil {
			t.Errorf("the demo: %v", failed)
		}
	})
	if _, err := out.Read(make([]byte, 64<<10)); err != nil {
		<-done
		t.Fatalf("the demo does not start: %v", failed)
	}
	return strings.NewReplacer(
		"localhost:8080", free[0], "localhost:8443", free[1], "localhost:9901", free[2], "127.0.0.1:9901", free[2], "localhost:50061", free[3],
	), free[2]
}

var (
	statusNote = regexp.MustCompile(`\s# ([1-5][0-9][0-9])\b`)
	made       = regexp.MustCompile(`^make [a-z-]+`)
	listens    = regexp.MustCompile(`(--(?:admin-)?listen(?:-tls)?) \S+`)
	variable   = regexp.MustCompile(`\$\{([A-Z_]+)\}`)
)

// commands are the block's, by the line that they begin at; a line that ends in a backslash goes on.
func (b block) commands() (lines []int, texts []string) {
	goesOn := false
	for i, line := range strings.Split(strings.TrimRight(b.text, "\n"), "\n") {
		switch {
		case goesOn:
			texts[len(texts)-1] += "\n" + line
		case strings.TrimSpace(line) == "" || strings.HasPrefix(line, "#"):
			continue
		default:
			lines, texts = append(lines, i), append(texts, line)
		}
		goesOn = strings.HasSuffix(line, `\`)
	}
	return lines, texts
}

// TestCommands runs each command of each sh block, all of a block against one demo.
func TestCommands(t *testing.T) {
	p := newPlace(t)
	makefile, err := os.ReadFile(repository + "/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, b := range blocks(t) {
		if b.kind != "sh" {
			continue
		}
		t.Run(b.where(0), func(t *testing.T) {
			replace, admin := demonstration(t)
			lines, texts := b.commands()
			for i, text := range texts {
				where := b.where(lines[i])
				env := append(os.Environ(), "PATH="+p.path, "REAL="+os.Getenv("PATH"), "ADMIN="+admin)
				if m := statusNote.FindStringSubmatch(text); m != nil {
					env = append(env, "STATUS="+m[1])
				}
				ran++
				switch first, _, _ := strings.Cut(text, " "); {
				case first == "make":
					target := strings.TrimPrefix(made.FindString(text), "make ")
					if !bytes.Contains(makefile, []byte("\n"+target+":")) {
						t.Errorf("%s: there is no target %q", where, target)
					}
				case strings.HasPrefix(text, "transom serve") || strings.HasPrefix(text, "bin/transom serve"):
					p.serve(t, where, text, env)
				case slices.Contains([]string{"curl", "transom", "bin/transom", "go", "buf"}, first):
					p.run(t, where, replace.Replace(text), env)
				default:
					t.Errorf("%s: nothing runs %q", where, text)
				}
			}
		})
	}
	if ran < 30 {
		t.Errorf("%d commands, want more", ran)
	}
}

// run runs one command by bash.
func (p *place) run(t *testing.T, where, text string, env []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", strings.ReplaceAll(text, "/etc/transom/", "etc/transom/"))
	cmd.Dir, cmd.Env = p.dir, env
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %s\n%v\n%s", where, text, err, out)
	} else if len(bytes.TrimSpace(out)) == 0 && strings.Contains(text, "curl") {
		t.Errorf("%s: %s says nothing", where, text)
	}
	if strings.Contains(text, "ghz") && !bytes.Contains(out, []byte("[OK]")) {
		t.Errorf("%s: %s\n%s", where, text, out)
	}
}

// serve starts a transom, on free ports, and ends it when it listens.
func (p *place) serve(t *testing.T, where, text string, env []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	text = listens.ReplaceAllString(text, "$1 127.0.0.1:0")
	cmd := exec.CommandContext(ctx, "bash", "-c", "exec "+text)
	cmd.Dir, cmd.Env = p.dir, env
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	listening := false
	buf := make([]byte, 4096)
	for {
		n, err := stderr.Read(buf)
		said.Write(buf[:n])
		if !listening && bytes.Contains(said.Bytes(), []byte("msg=listening")) {
			listening = true
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
		if err != nil {
			break
		}
	}
	if err := cmd.Wait(); err != nil || !listening {
		t.Errorf("%s: %s: %v\n%s", where, text, err, said.String())
	}
}

// TestConfigurations has transom check each yaml block. What a block leaves out of a configuration is put beside it.
func TestConfigurations(t *testing.T) {
	p := newPlace(t)
	checked := 0
	for _, b := range blocks(t) {
		if b.kind != "yaml" {
			continue
		}
		checked++
		t.Run(b.where(0), func(t *testing.T) {
			var has map[string]any
			if err := yaml.Unmarshal([]byte(b.text), &has); err != nil {
				t.Fatal(err)
			}
			if has["endpoints"] != nil { // what a file:/// target names
				if _, err := upstream.ParseEndpointFile([]byte(b.text)); err != nil {
					t.Error(err)
				}
				return
			}
			text := strings.NewReplacer("/etc/transom/", "etc/transom/", "/var/log/transom/", "").Replace(b.text)
			for _, part := range []struct{ name, text string }{
				{"listeners", `[{address: "127.0.0.1:0"}]`}, {"descriptors", "[{file: bank.binpb}]"}, {"clusters", `{bank: {target: "127.0.0.1:1"}}`},
			} {
				if has[part.name] == nil {
					text += part.name + ": " + part.text + "\n"
				}
			}
			config := filepath.Join(t.TempDir(), "transom.yaml")
			if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			env := append(os.Environ(), "PATH="+p.path)
			for _, v := range variable.FindAllStringSubmatch(text, -1) {
				env = append(env, v[1]+"=value")
			}
			cmd := exec.CommandContext(t.Context(), p.dir+"/bin/transom", "check", "--config", config)
			cmd.Dir, cmd.Env = p.dir, env
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v\n%s\n%s", err, out, text)
			}
		})
	}
	if checked < 10 {
		t.Errorf("%d configurations, want more", checked)
	}
}

// TestBlocks has every block be of a kind that something looks after.
func TestBlocks(t *testing.T) {
	command := regexp.MustCompile(`(?m)^\s*(\$ )?(curl|transom|bin/transom|go|make|ghz|kubectl|docker|apt-get|dpkg) `)
	for _, b := range blocks(t) {
		switch b.kind {
		case "yaml", "sh": // see above
		case "proto":
			compileProto(t, b)
		case "calls":
			if filepath.Base(b.file) != "policies.md" {
				t.Errorf("%s: only those of policies.md are made, by TestDocumentedCalls", b.where(0))
			}
		case "json":
			if !json.Valid([]byte(b.text)) {
				t.Errorf("%s: this is no JSON", b.where(0))
			}
		case "text":
			if m := command.FindString(b.text); m != "" {
				t.Errorf("%s: %q is not run in a block of text; make it sh", b.where(0), m)
			}
		default:
			t.Errorf("%s: nothing looks after blocks of kind %q", b.where(0), b.kind)
		}
	}
}

// compileProto compiles a block as a .proto file, with empty messages for those that its methods take and give.
func compileProto(t *testing.T, b block) {
	t.Helper()
	text := "syntax = \"proto3\";\npackage shown;\n" + b.text
	for _, m := range regexp.MustCompile(`\((\w+)\) returns \((\w+)\)`).FindAllStringSubmatch(b.text, -1) {
		text += "message " + m[1] + " {}\nmessage " + m[2] + " {}\n"
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/shown.proto", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := descriptors.FromProto(t.Context(), []string{dir, repository + "/proto"}, []string{"shown.proto"}); err != nil {
		t.Errorf("%s: %v", b.where(0), err)
	}
}
