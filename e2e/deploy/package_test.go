package deploy

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"transom/cmd/transom/demo/bank"
)

// release is where make has put what make release makes of bin/transom.
const release = "../../build/release"

// patience is how long something may take that takes no time on a good day.
const patience = 30 * time.Second

// artifact is the one file of the release whose name ends so.
func artifact(t *testing.T, suffix string) string {
	t.Helper()
	found, err := filepath.Glob(release + "/transom_*_" + suffix)
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %q, want one file (make checkdeploy)", suffix, found)
	}
	path, err := filepath.Abs(found[0])
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// command runs a program and gives what it says.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}

// within is a command that has dir as its root. Who is not root is so there.
func within(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: dir}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	return cmd
}

var listening = regexp.MustCompile(`msg=listening address=(\S+)`)

// serves starts transom from an unpacked root, waits for its first listener, asks it whether it is healthy, and ends it by
// SIGTERM, upon which it must exit with 0.
func serves(t *testing.T, root, config string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := within(ctx, root, "/usr/bin/transom", "serve", "--config", config)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	asked := false
	for lines := bufio.NewScanner(stderr); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if m := listening.FindStringSubmatch(lines.Text()); m != nil && !asked {
			asked = true
			resp, err := http.Get("http://" + m[1] + "/v1/accounts/7")
			if err != nil {
				t.Error(err)
			} else if _ = resp.Body.Close(); resp.StatusCode != http.StatusServiceUnavailable { // there is no backend
				t.Errorf("status %d, want 503", resp.StatusCode)
			}
			http.DefaultClient.CloseIdleConnections()
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Error(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil || !asked {
		t.Errorf("transom serve: %v\n%s", err, said.String())
	}
}

// checks has the transom of an unpacked root check a configuration.
func checks(t *testing.T, root, text string) {
	t.Helper()
	if err := os.WriteFile(root+"/etc/transom/checked.yaml", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := within(t.Context(), root, "/usr/bin/transom", "check", "--config", "/etc/transom/checked.yaml").CombinedOutput(); err != nil {
		t.Errorf("transom check: %v\n%s\n%s", err, out, text)
	}
}

// config writes a configuration for free ports, with the bank's descriptors beside it, below root.
func config(t *testing.T, root string) (path string) {
	t.Helper()
	const dir = "/etc/transom/"
	for name, data := range map[string][]byte{
		"bank.binpb": bank.DescriptorSet(),
		"test.yaml": []byte(`listeners: [{address: "127.0.0.1:0"}]
descriptors: [{file: /etc/transom/bank.binpb}]
clusters: {bank: {target: "127.0.0.1:1"}}
`),
	} {
		if err := os.WriteFile(root+dir+name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir + "test.yaml"
}

// TestDebianPackage installs the package below a directory with dpkg, starts what it holds, has systemd judge the unit, and
// removes it again.
func TestDebianPackage(t *testing.T) {
	deb := artifact(t, runtime.GOARCH+".deb")
	root := t.TempDir()
	for _, dir := range []string{"/var/lib/dpkg/info", "/var/lib/dpkg/updates", "/etc"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(root+"/var/lib/dpkg/status", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	dpkg := func(args ...string) string {
		t.Helper()
		return command(t, "dpkg", append([]string{"--root=" + root, "--force-script-chrootless", "--force-not-root", "--no-triggers", "--log=/dev/null"}, args...)...)
	}
	dpkg("--install", deb)
	if s := dpkg("--status", "transom"); !strings.Contains(s, "Status: install ok installed") || !strings.Contains(s, " /etc/transom/transom.yaml ") {
		t.Errorf("dpkg says\n%s", s)
	}
	if b, err := os.ReadFile(root + "/etc/passwd"); err != nil || !strings.Contains(string(b), "transom:x:") {
		t.Errorf("there is no user: %q, %v", b, err)
	}
	if v := command(t, root+"/usr/bin/transom", "version"); !strings.HasPrefix(v, "transom ") {
		t.Errorf("version: %q", v)
	}
	serves(t, root, config(t, root))
	// The configuration that is installed asks backends for their schema; with a file in its place it is sound.
	installed, err := os.ReadFile(root + "/etc/transom/transom.yaml")
	if err != nil {
		t.Fatal(err)
	}
	checks(t, root, strings.Replace(string(installed), "reflection: {cluster: main}", "file: /etc/transom/bank.binpb", 1))
	unit(t, root)
	dpkg("--purge", "transom")
	for _, gone := range []string{"/usr/bin/transom", "/etc/transom/transom.yaml", "/lib/systemd/system/transom.service"} {
		if _, err := os.Stat(root + gone); err == nil {
			t.Errorf("%s is still there", gone)
		}
	}
}

// worst is the greatest exposure that `systemd-analyze security` may find, of 10: 2.0 and below is what it calls OK.
const worst = 2.0

// unit has systemd-analyze judge the installed unit.
func unit(t *testing.T, root string) {
	t.Helper()
	// What the unit names and transom does not bring: kill, and the targets.
	for _, program := range []string{"/bin/kill"} {
		if err := os.MkdirAll(filepath.Dir(root+program), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+program, []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out := command(t, "systemd-analyze", "verify", "--root="+root, "--man=no", "--recursive-errors=no", "transom.service"); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	out := command(t, "systemd-analyze", "security", "--offline=true", "--no-pager", "--root="+root, "transom.service")
	m := regexp.MustCompile(`exposure level for transom.service: ([0-9.]+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("systemd-analyze security: %s", out)
	}
	t.Logf("exposure %s of 10", m[1])
	if level, err := strconv.ParseFloat(m[1], 64); err != nil || level > worst {
		t.Errorf("the unit's exposure is %s, want %.1f or less\n%s", m[1], worst, out)
	}
}

// TestImage reads the OCI layout as registries do, checks every digest, and starts the image's program in its file system.
func TestImage(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	f, err := os.Open(artifact(t, "oci.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unpack(t, f, dir)
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index); err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if n := len(manifest.Manifests); n != 1 {
		t.Fatalf("%d images, want one", n)
	}
	d := manifest.Manifests[0]
	if d.Platform == nil || d.Platform.OS != "linux" || d.Platform.Architecture != runtime.GOARCH || d.Annotations["org.opencontainers.image.ref.name"] == "" {
		t.Errorf("the index has %+v", d)
	}
	img, err := index.Image(d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	files := mutate.Extract(img)
	defer files.Close()
	unpack(t, files, root)
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Config.User != "65532:65532" || cfg.Architecture != runtime.GOARCH {
		t.Errorf("config: %+v", cfg)
	}
	if info, err := os.Stat(root + "/etc/ssl/certs/ca-certificates.crt"); err != nil || info.Size() < 100_000 {
		t.Errorf("certificates of authorities: %v, %v", info, err)
	}
	serves(t, root, config(t, root))
	dockerfile(t, cfg.Config)
}

// dockerfile holds deploy/Dockerfile to the image that is made without Docker.
func dockerfile(t *testing.T, c v1.Config) {
	t.Helper()
	raw, err := os.ReadFile("../../deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	_, last, ok := strings.Cut(string(raw), "\nFROM scratch\n")
	if !ok {
		t.Fatal("the Dockerfile's last stage is not from scratch")
	}
	list := func(s []string) string {
		b, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return strings.ReplaceAll(string(b), `","`, `", "`)
	}
	var ports []string
	for p := range c.ExposedPorts {
		ports = append(ports, p)
	}
	slices.Sort(ports)
	for _, want := range []string{
		"USER " + c.User, "WORKDIR " + c.WorkingDir, "ENV " + strings.Join(c.Env, " "), "EXPOSE " + strings.Join(ports, " "),
		"STOPSIGNAL " + c.StopSignal, "ENTRYPOINT " + list(c.Entrypoint), "CMD " + list(c.Cmd),
	} {
		if !strings.Contains(last, want+"\n") {
			t.Errorf("the Dockerfile lacks %q, which the image has", want)
		}
	}
}

// unpack writes a tar file below dir, without owners.
func unpack(t *testing.T, r io.Reader, dir string) {
	t.Helper()
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Join(dir, filepath.FromSlash(h.Name))
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(name, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		data, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, h.FileInfo().Mode()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMaterials holds the list of materials to what Go says the program is made of.
func TestMaterials(t *testing.T) {
	raw, err := os.ReadFile(artifact(t, "linux_"+runtime.GOARCH+".cdx.json"))
	if err != nil {
		t.Fatal(err)
	}
	var bom struct {
		BomFormat, SpecVersion, SerialNumber string
		Metadata                             struct {
			Component struct {
				Name, Version string
				Hashes        []struct{ Alg, Content string }
			}
		}
		Components   []struct{ Type, Name, Version, PURL string }
		Dependencies []struct {
			Ref       string
			DependsOn []string
		}
	}
	if err := json.Unmarshal(raw, &bom); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile("../../bin/transom")
	if err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile("../../bin/transom")
	if err != nil {
		t.Fatal(err)
	}
	if h := bom.Metadata.Component.Hashes; len(h) != 1 || h[0].Alg != "SHA-256" || h[0].Content != fmt.Sprintf("%x", sha256.Sum256(program)) {
		t.Errorf("hashes: %v", h)
	}
	if bom.BomFormat != "CycloneDX" || bom.SpecVersion != "1.6" || !regexp.MustCompile(`^urn:uuid:[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(bom.SerialNumber) {
		t.Errorf("%s %s %s", bom.BomFormat, bom.SpecVersion, bom.SerialNumber)
	}
	have := map[string]string{}
	for _, c := range bom.Components {
		have[c.Name] = c.Version
		if c.PURL != "pkg:golang/"+c.Name+"@"+strings.ReplaceAll(c.Version, "+", "%2B") {
			t.Errorf("purl %s", c.PURL)
		}
	}
	for _, d := range info.Deps {
		if have[d.Path] != d.Version {
			t.Errorf("%s %s is not in it, but %q", d.Path, d.Version, have[d.Path])
		}
	}
	if len(bom.Components) != len(info.Deps)+1 || len(bom.Dependencies) != 1 || len(bom.Dependencies[0].DependsOn) != len(bom.Components) {
		t.Errorf("%d components, want %d and the standard library", len(bom.Components), len(info.Deps))
	}
}

// TestArchive looks into the archive, and checks the sums.
func TestArchive(t *testing.T) {
	raw, err := os.ReadFile(artifact(t, "linux_"+runtime.GOARCH+".tar.gz"))
	if err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(h.Name, "/")
		names = append(names, name)
		if name == "transom" && h.Mode != 0o755 {
			t.Errorf("mode %o", h.Mode)
		}
	}
	want := []string{"transom", "LICENSE", "README.md", "CHANGELOG.md", "docs/configuration.md", "deploy/transom.yaml", "deploy/systemd/transom.service", "proto/transom/v1/policy.proto"}
	if !slices.Equal(names, want) {
		t.Errorf("the archive has %q, want %q", names, want)
	}
	cmd := exec.CommandContext(t.Context(), "sha256sum", "--check", "--strict", "SHA256SUMS")
	cmd.Dir = release
	if out, err := cmd.CombinedOutput(); err != nil || strings.Count(string(out), ": OK") != 4 {
		t.Errorf("sha256sum: %v\n%s", err, out)
	}
}
