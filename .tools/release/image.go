package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// image is an OCI image for several platforms: the binary, the certificates of public authorities, and a user. It is
// written as an OCI image layout (OCI image specification 1.1) in a tar file, which podman, skopeo, containerd and Docker
// from 25 on load.
type image struct {
	version   string
	at        time.Time
	blobs     map[string][]byte // by digest in hex
	manifests []descriptor
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *imagePlatform    `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type imagePlatform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

// nobody is the user that the image runs as.
const nobody = 65532

// authorities is where Debian keeps the certificates of public authorities (package ca-certificates).
const authorities = "/etc/ssl/certs/ca-certificates.crt"

// put keeps a blob.
func (m *image) put(mediaType string, data []byte) descriptor {
	if m.blobs == nil {
		m.blobs = map[string][]byte{}
	}
	digest := fmt.Sprintf("%x", sha256.Sum256(data))
	m.blobs[digest] = data
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(data)}
}

func (m *image) putJSON(mediaType string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	return m.put(mediaType, data), err
}

// add puts the image of one platform in.
func (m *image) add(p platform, bin string) error {
	layer, err := m.layer(bin)
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	z, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := z.Write(layer); err != nil {
		return err
	}
	if err := z.Close(); err != nil {
		return err
	}
	labels := map[string]string{
		"org.opencontainers.image.title": "transom", "org.opencontainers.image.version": m.version,
		"org.opencontainers.image.licenses": "Apache-2.0", "org.opencontainers.image.created": m.at.Format(time.RFC3339),
		"org.opencontainers.image.description": "An edge proxy from REST, WebSocket, gRPC-Web, Connect and gRPC clients to gRPC services",
	}
	config, err := m.putJSON("application/vnd.oci.image.config.v1+json", map[string]any{
		"created": m.at.Format(time.RFC3339), "architecture": p.arch, "os": p.os,
		"config": map[string]any{
			"User": fmt.Sprintf("%d:%d", nobody, nobody), "Env": []string{"PATH=/usr/bin"}, "WorkingDir": "/", "StopSignal": "SIGTERM",
			"Entrypoint": []string{"/usr/bin/transom"}, "Cmd": []string{"serve", "--config", "/etc/transom/transom.yaml"},
			"ExposedPorts": map[string]any{"8080/tcp": struct{}{}, "8443/tcp": struct{}{}, "8443/udp": struct{}{}}, "Labels": labels,
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
		"history": []any{map[string]string{"created": m.at.Format(time.RFC3339), "created_by": "transom release"}},
	})
	if err != nil {
		return err
	}
	const manifestType = "application/vnd.oci.image.manifest.v1+json"
	manifest, err := m.putJSON(manifestType, map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": config,
		"layers": []descriptor{m.put("application/vnd.oci.image.layer.v1.tar+gzip", packed.Bytes())}, "annotations": labels,
	})
	manifest.Platform = &imagePlatform{p.arch, p.os}
	m.manifests = append(m.manifests, manifest)
	return err
}

// layer is the file system.
func (m *image) layer(bin string) ([]byte, error) {
	program, err := os.ReadFile(bin)
	if err != nil {
		return nil, err
	}
	certificates, err := os.ReadFile(authorities)
	if err != nil {
		return nil, err
	}
	license, err := os.ReadFile("LICENSE")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	for _, e := range []struct {
		name  string
		mode  int64
		owner int
		data  []byte
	}{
		{"etc/", 0o755, 0, nil},
		{"etc/group", 0o644, 0, fmt.Appendf(nil, "root:x:0:\ntransom:x:%d:\n", nobody)},
		{"etc/passwd", 0o644, 0, fmt.Appendf(nil, "root:x:0:0::/:/sbin/nologin\ntransom:x:%d:%d::/:/sbin/nologin\n", nobody, nobody)},
		{"etc/ssl/", 0o755, 0, nil},
		{"etc/ssl/certs/", 0o755, 0, nil},
		{"etc/ssl/certs/ca-certificates.crt", 0o644, 0, certificates},
		{"etc/transom/", 0o755, 0, nil},
		{"run/", 0o755, 0, nil},
		{"run/transom/", 0o750, nobody, nil},
		{"usr/", 0o755, 0, nil},
		{"usr/bin/", 0o755, 0, nil},
		{"usr/bin/transom", 0o755, 0, program},
		{"usr/share/", 0o755, 0, nil},
		{"usr/share/doc/", 0o755, 0, nil},
		{"usr/share/doc/transom/", 0o755, 0, nil},
		{"usr/share/doc/transom/copyright", 0o644, 0, license},
	} {
		if err := add(t, &tar.Header{Name: e.name, Mode: e.mode, Uid: e.owner, Gid: e.owner}, e.data, m.at); err != nil {
			return nil, err
		}
	}
	err = t.Close()
	return b.Bytes(), err
}

// write writes the layout.
func (m *image) write(name string) error {
	const indexType = "application/vnd.oci.image.index.v1+json"
	tag := strings.ReplaceAll(strings.TrimPrefix(m.version, "v"), "+", "-")
	top := m.manifests
	if len(top) > 1 {
		all, err := m.putJSON(indexType, map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": top})
		if err != nil {
			return err
		}
		top = []descriptor{all}
	}
	top[0].Annotations = map[string]string{"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": "transom:" + tag}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": top})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	entries := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": index, "blobs/": nil, "blobs/sha256/": nil}
	for digest, data := range m.blobs {
		entries[path.Join("blobs/sha256", digest)] = data
	}
	names := make([]string, 0, len(entries))
	for n := range entries {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		mode := int64(0o644)
		if strings.HasSuffix(n, "/") {
			mode = 0o755
		}
		if err := add(t, &tar.Header{Name: n, Mode: mode}, entries[n], m.at); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return os.WriteFile(name, b.Bytes(), 0o644) //nolint:gosec // to be handed on
}
