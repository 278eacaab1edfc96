package bank

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/csv"
	"hash"
	"io"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/grpc"

	bankv1 "transom/proto/bank/v1"
)

// statements implements bank.v1.Statements.
type statements struct {
	bankv1.UnimplementedStatementsServer

	bank *Bank
}

// maxPart is the most that one message of a download holds.
const maxPart = 1 << 20

// Upload implements bank.v1.Statements. The file is summed up, not kept.
func (*statements) Upload(stream grpc.ClientStreamingServer[bankv1.UploadStatementRequest, bankv1.Statement]) error {
	sum := newSum()
	for {
		req, err := stream.Recv()
		if err == io.EOF {
			return stream.SendAndClose(sum.statement())
		}
		if err != nil {
			return err
		}
		if sum.name == "" {
			sum.name = req.GetName()
		}
		sum.add(req.GetFile())
	}
}

// Import implements bank.v1.Statements.
func (*statements) Import(stream grpc.ClientStreamingServer[httpbody.HttpBody, bankv1.Statement]) error {
	sum := newSum()
	for {
		part, err := stream.Recv()
		if err == io.EOF {
			return stream.SendAndClose(sum.statement())
		}
		if err != nil {
			return err
		}
		sum.add(part)
	}
}

// sum sums up a file that comes in parts.
type sum struct {
	name, contentType string
	size, parts       int64
	hash              hash.Hash
}

func newSum() *sum { return &sum{hash: sha256.New()} }

func (s *sum) add(part *httpbody.HttpBody) {
	if s.contentType == "" {
		s.contentType = part.GetContentType()
	}
	s.size += int64(len(part.GetData()))
	s.parts++
	s.hash.Write(part.GetData())
}

func (s *sum) statement() *bankv1.Statement {
	return &bankv1.Statement{Name: s.name, ContentType: s.contentType, SizeBytes: s.size, Sha256: s.hash.Sum(nil), Parts: s.parts}
}

// Download implements bank.v1.Statements.
func (s *statements) Download(req *bankv1.DownloadStatementRequest, stream grpc.ServerStreamingServer[httpbody.HttpBody]) error {
	part := int64(req.GetPartBytes())
	switch {
	case part < 0 || part > maxPart:
		return invalid("part_bytes", "%d is outside 0 … %d", part, maxPart)
	case part == 0:
		part = 64 << 10
	}
	if req.GetSizeBytes() < 0 {
		return invalid("size_bytes", "is negative")
	}
	name, _, _ := strings.Cut(req.GetName(), "/statements/")
	file, contentType := Content(req.GetSizeBytes()), "application/octet-stream"
	if req.GetSizeBytes() == 0 {
		text, err := s.csv(name)
		if err != nil {
			return err
		}
		file, contentType = bytes.NewReader(text), csvType
	}
	for {
		data := make([]byte, part)      // the message keeps it
		n, _ := io.ReadFull(file, data) // these readers end, but do not fail
		if n == 0 {
			return nil
		}
		if err := stream.Send(&httpbody.HttpBody{ContentType: contentType, Data: data[:n]}); err != nil {
			return err
		}
		contentType = "" // said once
	}
}

const csvType = "text/csv; charset=utf-8"

// Get implements bank.v1.Statements.
func (s *statements) Get(_ context.Context, req *bankv1.GetStatementRequest) (*httpbody.HttpBody, error) {
	text, err := s.csv(req.GetName())
	if err != nil {
		return nil, err
	}
	return &httpbody.HttpBody{ContentType: csvType, Data: text}, nil
}

// csv lists an account's transactions.
func (s *statements) csv(name string) ([]byte, error) {
	s.bank.mu.Lock()
	defer s.bank.mu.Unlock()
	a, err := s.bank.state.find("name", name)
	if err != nil {
		return nil, err
	}
	all, _, _ := a.since(0)
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	rows := [][]string{{"time", "amount", "reference", "counterparty"}}
	for _, t := range all {
		rows = append(rows, []string{t.GetTime().AsTime().Format(time.RFC3339), text(t.GetAmount()), t.GetReference(), t.GetCounterparty()})
	}
	if err := w.WriteAll(rows); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// Content is the made-up file of that many bytes which Download sends: byte i is i mod 251.
func Content(size int64) io.Reader { return io.LimitReader(&content{}, size) }

type content struct{ at byte }

// Read implements io.Reader.
func (c *content) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = c.at
		if c.at++; c.at == 251 {
			c.at = 0
		}
	}
	return len(p), nil
}
