package main

import (
	"archive/tar"
	"compress/gzip"
	"io"
	"os"
	"time"
)

// file is one to be archived: under a name, from a path or a text.
type file struct {
	name, from string
	mode       int64
}

// tarGzip writes files, all of one time and of nobody in particular, with prefix before their names.
func tarGzip(w io.Writer, prefix string, files []file, at time.Time) error {
	z, err := gzip.NewWriterLevel(w, gzip.BestCompression)
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	for _, f := range files {
		data, err := os.ReadFile(f.from)
		if err != nil {
			return err
		}
		if err := add(t, &tar.Header{Name: prefix + f.name, Mode: f.mode}, data, at); err != nil {
			return err
		}
	}
	if err := t.Close(); err != nil {
		return err
	}
	return z.Close()
}

// add writes one entry: a directory if its name ends in a slash.
func add(t *tar.Writer, h *tar.Header, data []byte, at time.Time) error {
	h.Typeflag, h.Size, h.ModTime, h.Format = tar.TypeReg, int64(len(data)), at, tar.FormatPAX
	if h.Name[len(h.Name)-1] == '/' {
		h.Typeflag = tar.TypeDir
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err := t.Write(data)
	return err
}
