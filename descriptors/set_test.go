package descriptors_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/descriptorpb"

	"transom/descriptors"
)

// sampleSet is the binary form of a small set that compiles.
func sampleSet(t testing.TB) ([]byte, *descriptorpb.FileDescriptorSet) {
	t.Helper()
	set := sources(t, "sample", map[string]string{"t.proto": request + `service S { rpc M(R) returns (R) { option (google.api.http) = {get: "/a/{id}"}; } }`})
	fds := &descriptorpb.FileDescriptorSet{File: set.Files[len(set.Files)-1:]} // its imports are linked in
	for _, f := range fds.GetFile() {
		f.SourceCodeInfo = nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(fds)
	if err != nil {
		t.Fatal(err)
	}
	return b, fds
}

func TestFromBytesFaults(t *testing.T) {
	good, fds := sampleSet(t)
	var zipped bytes.Buffer
	zw := gzip.NewWriter(&zipped)
	if _, err := zw.Write(good); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := prototext.Marshal(fds)
	if err != nil {
		t.Fatal(err)
	}
	json, err := protojson.Marshal(fds)
	if err != nil {
		t.Fatal(err)
	}
	bytesField := func(n protowire.Number, b []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), b)
	}
	const need = "; a binary FileDescriptorSet is needed (protoc --include_imports -o FILE)"
	for _, tt := range []struct {
		name string
		in   []byte
		want string
	}{
		{"empty", nil, "is empty"},
		{"gzip", zipped.Bytes(), "is gzip-compressed" + need},
		{"text format", text, "is in protobuf text format" + need},
		{"JSON", json, "is JSON" + need},
		{"proto source", []byte("// Bank.\nsyntax = \"proto3\";\n"), "is .proto source" + need},
		{"YAML", []byte("listeners:\n- {}\n"), "is text" + need},
		{"no files", protowire.AppendVarint(protowire.AppendTag(nil, 9, protowire.VarintType), 1), "holds no files"},
		{"no name", bytesField(1, bytesField(2, []byte("pkg"))), "file 0 has no name"},
		{"tag", []byte{0x0a, 0x02, 0x12, 0x80}, `package at byte 2 (in file[0]): unexpected EOF`},
		{"cut off", good[:len(good)-1], ""},
		{"deep in", bytesField(1, append(bytesField(1, []byte("a")), bytesField(4, append(bytesField(1, []byte("M")), bytesField(2, []byte{0x0a, 0x05, 'x'})...))...)), "name at byte 12 (in file[0].message_type[0].field[0]): unexpected EOF"},
		{"field number 0", []byte{0x0a, 0x01, 0x00}, "malformed field tag at byte 2 (in file[0]): proto: invalid field number"},
	} {
		_, err := descriptors.FromBytes("x.binpb", tt.in)
		if err == nil {
			t.Errorf("%s: no error", tt.name)
			continue
		}
		got := strings.ReplaceAll(err.Error(), "\u00a0", " ")
		if want := "descriptor set x.binpb: " + tt.want; got != want && tt.want != "" {
			t.Errorf("%s:\n got %s\nwant %s", tt.name, got, want)
		}
		if !strings.HasPrefix(got, "descriptor set x.binpb: ") {
			t.Errorf("%s: %s does not name the set", tt.name, got)
		}
	}
}

// TestTruncated cuts a good set at every byte: never a panic, and an error that says where unless the cut is between files.
func TestTruncated(t *testing.T) {
	good, _ := sampleSet(t)
	refused := 0
	for i := range good {
		set, err := descriptors.FromBytes("cut", good[:i])
		if err != nil {
			refused++
			if i > 0 && !strings.Contains(err.Error(), " at byte ") {
				t.Fatalf("cut at %d: %v does not say where", i, err)
			}
			continue
		}
		if _, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{}); err != nil && strings.Contains(err.Error(), "panic") {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if refused < len(good)*9/10 {
		t.Errorf("only %d of %d cuts were refused", refused, len(good))
	}
}

func TestFromFile(t *testing.T) {
	good, _ := sampleSet(t)
	path := filepath.Join(t.TempDir(), "bank.binpb")
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	set, err := descriptors.FromFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := descriptors.Compile([]*descriptors.Set{set, set}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got := show(s.MatchHTTP("GET", "/a/7")); got != "M id=7" {
		t.Errorf("MatchHTTP: %s", got)
	}
	if _, err := descriptors.FromFile(path + ".not"); err == nil || !strings.Contains(err.Error(), "bank.binpb.not") {
		t.Errorf("missing file: %v", err)
	}
}

func TestFromProtoFaults(t *testing.T) {
	_, err := trySources(t, map[string]string{
		"a.proto": "syntax = \"proto3\";\npackage a;\nmessage A { strin x = 1; }\nmessage B { Nope n = 1; }\n",
		"b.proto": "syntax = \"proto3\";\nimport \"nowhere.proto\";\n",
		"d.proto": "syntax = \"proto3\";\nimport \"c.proto\";\nmessage D { int32 x = 1; int32 y = 1; }\n",
		"e.proto": "syntax = \"proto3\";\nmessage E { int32 x = 1; int32 y = 1; }\n",
		"c.proto": "syntax = \"proto3\";\nmessage {}\n",
	})
	if err != nil { // the name of the temporary directory varies
		err = errors.New(regexp.MustCompile(`is not in \S+`).ReplaceAllString(err.Error(), "is not in ROOT"))
	}
	checkFaults(t, err,
		"proto sources: a.proto:3:13: field a.A.x: unknown type strin",
		"a.proto:4:13: field a.B.n: unknown type Nope",
		"b.proto:2:8: file \"nowhere.proto\" is not in ROOT",
		"c.proto:2:9: syntax error: unexpected '{'",
		"d.proto:3:36: message D: fields x and y both have the same tag 1",
		"e.proto:2:36: message E: fields x and y both have the same tag 1")
	if _, err := descriptors.FromProto(context.Background(), []string{t.TempDir()}, nil); err == nil || !strings.Contains(err.Error(), "no .proto file") {
		t.Errorf("empty root: %v", err)
	}
	if _, err := descriptors.FromProto(context.Background(), []string{filepath.Join(t.TempDir(), "not")}, nil); err == nil {
		t.Error("missing root: no error")
	}
}

// TestFromProtoRoots: files are found under any root, and all of them without a list.
func TestFromProtoRoots(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	for path, body := range map[string]string{
		filepath.Join(one, "x", "a.proto"):      `syntax = "proto3"; package x; import "y.proto"; import "buf/validate/validate.proto"; import "google/rpc/status.proto"; message A { y.B b = 1 [(buf.validate.field).required = true]; google.rpc.Status s = 2; }`,
		filepath.Join(two, "y.proto"):           `syntax = "proto3"; package y; message B {}`,
		filepath.Join(two, ".git", "bad.proto"): `bad`,
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	set, err := descriptors.FromProto(context.Background(), []string{one, two}, nil)
	if err != nil {
		t.Fatal(err)
	}
	s, err := descriptors.Compile([]*descriptors.Set{set}, descriptors.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"x.A", "y.B"} {
		if _, err := s.Files().FindDescriptorByName("x.A"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzFromBytes(f *testing.F) {
	good, _ := sampleSet(f)
	f.Add(good)
	f.Add([]byte{0x0a, 0x02, 0x12, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		set, err := descriptors.FromBytes("fuzz", b)
		if err != nil {
			return
		}
		s, err := descriptors.Compile([]*descriptors.Set{set, set}, descriptors.Options{})
		if err != nil {
			again, _ := descriptors.FromBytes("fuzz", b)
			if _, err2 := descriptors.Compile([]*descriptors.Set{again, again}, descriptors.Options{}); err2 == nil || err2.Error() != err.Error() {
				t.Errorf("faults differ between two runs:\n%v\n%v", err, err2)
			}
			return
		}
		// What is served to reflection clients compiles to the same schema.
		served, err := descriptors.Compile([]*descriptors.Set{{Origin: "served", Files: s.FileDescriptorSet().GetFile()}}, descriptors.Options{})
		if err != nil {
			t.Fatalf("the served set does not compile: %v", err)
		}
		if len(served.Bindings()) != len(s.Bindings()) || len(served.Methods()) != len(s.Methods()) {
			t.Errorf("the served set has %d methods and %d bindings, want %d and %d", len(served.Methods()), len(served.Bindings()), len(s.Methods()), len(s.Bindings()))
		}
	})
}
