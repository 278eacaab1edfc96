package deploy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"transom/gateway/configfile"
)

// configurationSchema is what transom schema prints, as a JSON Schema library that knows nothing of transom reads it.
func configurationSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(configfile.Schema()))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("transom.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("transom.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// whole adds to a part of a configuration what it needs to be one.
func whole(t *testing.T, text string) any {
	t.Helper()
	var has map[string]any
	if err := yaml.Unmarshal([]byte(text), &has); err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for name, part := range map[string]string{"listeners": `[{address: "127.0.0.1:0"}]`, "clusters": `{bank: {target: "127.0.0.1:1"}}`} {
		if has[name] == nil {
			text += "\n" + name + ": " + part + "\n"
		}
	}
	b, err := yaml.YAMLToJSON([]byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var yamlBlock = regexp.MustCompile("(?ms)^ *```yaml\n(.*?)^ *```$")

// TestSchemaTakesExamples: each configuration that is shown anywhere, all of which transom check takes, is right by the schema.
func TestSchemaTakesExamples(t *testing.T) {
	s := configurationSchema(t)
	examples := map[string]string{}
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, file := range append(files, "../../README.md") {
		text := read(file)
		for _, m := range yamlBlock.FindAllStringSubmatchIndex(text, -1) {
			if block := text[m[2]:m[3]]; !strings.HasPrefix(block, "endpoints:") { // what a file:/// target names
				examples[fmt.Sprintf("%s at byte %d", filepath.Base(file), m[2])] = block
			}
		}
	}
	for _, file := range []string{"../../deploy/transom.yaml", "../../deploy/compose/transom.yaml"} {
		examples[file] = read(file)
	}
	config, _ := manifests(t)["ConfigMap"].(*corev1.ConfigMap)
	for name, text := range config.Data {
		examples["ConfigMap "+name] = text
	}
	if len(examples) < 40 {
		t.Errorf("%d examples, want more", len(examples))
	}
	for name, text := range examples {
		if err := s.Validate(whole(t, text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Logf("%d examples", len(examples))
}

// TestSchemaDialect: what the dialect of the file allows, and the faults that an editor can show.
func TestSchemaDialect(t *testing.T) {
	s := configurationSchema(t)
	for _, text := range []string{
		`policies: {selector: "*"}`,
		`policies: [{selector: ["*", bank.v1.*], timeout: 1h30m}]`,
		`policies: [{selector: "*", timeout: "${TIMEOUT}", limits: {rate: 10/s}}]`,
		`limits: {message_bytes: 4MiB, header_bytes: 65536, header_count: "${COUNT}", body_idle_timeout: 0.5s}`,
		`reload: {refuse_breaking: "${STRICT}"}`,
		`policies: [{selector: "*", faults: [{abort: UNAVAILABLE}]}]`,
		`policies: [{selector: "*", errors: [{codes: [UNAVAILABLE, not_found], to: INTERNAL}]}]`,
		`consumers: {known: {shop: {claims: {any: [thing]}}}}`,
	} {
		if err := s.Validate(whole(t, text)); err != nil {
			t.Errorf("%s: %v", text, err)
		}
		if _, err := configfile.Parse("x", []byte(text+"\nlisteners: [{address: \"127.0.0.1:0\"}]\nclusters: {bank: {target: \"127.0.0.1:1\"}}\n"), func(name string) (string, bool) {
			return map[string]string{"TIMEOUT": "1s", "COUNT": "70", "STRICT": "true"}[name], true
		}); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{
		`polices: []`,
		`policies: [{selector: "*", time_out: 1s}]`,
		`policies: [{timeout: 1s}]`,
		`policies: [{selector: "*", faults: [{abort: unavailable}]}]`,
		`policies: [{selector: []}]`,
		`policies: [{selector: "*", timeout: 10}]`,
		`policies: [{selector: "*", timeout: 10 minutes}]`,
		`listeners: []`,
		`listeners: [{address: ""}]`,
		`listeners: [{address: ":1", alt_svc_port: 65536}]`,
		`listeners: [{address: ":1", http3: perhaps}]`,
		`listeners: [{address: ":1", tls: {client_auth: maybe}}]`,
		`clusters: {Bank: {target: "127.0.0.1:1"}}`,
		`clusters: {bank: {target: ["127.0.0.1:1"]}}`,
		`descriptors: [{file: a.binpb, reflection: {cluster: bank}}]`,
		`descriptors: [{}]`,
		`limits: {message_bytes: much}`,
		`limits: {header_count: -1}`,
	} {
		if err := s.Validate(whole(t, text)); err == nil {
			t.Errorf("%s: the schema finds nothing wrong", text)
		}
	}
}
