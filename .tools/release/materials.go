package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"time"
)

// bom is a bill of materials, as CycloneDX 1.6 writes it in JSON.
type bom struct {
	Format       string `json:"bomFormat"`
	Spec         string `json:"specVersion"`
	Serial       string `json:"serialNumber"`
	Version      int    `json:"version"`
	Metadata     meta   `json:"metadata"`
	Components   []part `json:"components"`
	Dependencies []deps `json:"dependencies"`
}

type meta struct {
	Timestamp string `json:"timestamp"`
	Component part   `json:"component"`
}

type part struct {
	Type       string     `json:"type"`
	Ref        string     `json:"bom-ref"`
	Name       string     `json:"name"`
	Version    string     `json:"version"`
	PURL       string     `json:"purl"`
	Hashes     []hash     `json:"hashes,omitempty"`
	Properties []property `json:"properties,omitempty"`
}

type hash struct {
	Algorithm string `json:"alg"`
	Content   string `json:"content"`
}

type property struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type deps struct {
	Ref       string   `json:"ref"`
	DependsOn []string `json:"dependsOn"`
}

// materials lists what a Go binary says that it is made of: the modules, with the sums of go.sum, and the standard library.
func materials(bin, version string, at time.Time) ([]byte, error) {
	info, err := buildinfo.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(data)
	main := component("application", info.Main.Path, version)
	main.Hashes = []hash{{"SHA-256", hex.EncodeToString(sum[:])}}
	for _, s := range info.Settings {
		main.Properties = append(main.Properties, property{"go:build:" + s.Key, s.Value})
	}
	parts := []part{component("library", "std", strings.TrimPrefix(info.GoVersion, "go"))}
	for _, d := range info.Deps {
		parts = append(parts, module(d))
	}
	id := sum[:16]
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // RFC 9562, version 8
	all := deps{Ref: main.Ref}
	for _, p := range parts {
		all.DependsOn = append(all.DependsOn, p.Ref)
	}
	return json.MarshalIndent(bom{
		Format: "CycloneDX", Spec: "1.6", Version: 1,
		Serial:     fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:]),
		Metadata:   meta{at.Format(time.RFC3339), main},
		Components: parts, Dependencies: []deps{all},
	}, "", " ")
}

func module(m *debug.Module) part {
	if m.Replace != nil {
		m = m.Replace
	}
	p := component("library", m.Path, m.Version)
	if m.Sum != "" {
		p.Properties = []property{{"go:sum", m.Sum}}
	}
	return p
}

func component(kind, path, version string) part {
	purl := "pkg:golang/" + path + "@" + strings.ReplaceAll(version, "+", "%2B")
	return part{Type: kind, Ref: purl, Name: path, Version: version, PURL: purl}
}
