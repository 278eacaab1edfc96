package h2wire_test

import (
	"bytes"
	"strings"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"transom/rpc/h2wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestFrames has x/net read what is appended.
func TestFrames(t *testing.T) {
	b := h2wire.AppendFrame(nil, 6, h2wire.FrameSettings, 0, 0)
	b = h2wire.AppendSetting(b, h2wire.SettingMaxFrame, 20_000)
	b = h2wire.AppendReset(b, 5, h2wire.CodeCancel)
	b = h2wire.AppendWindowUpdate(b, 7, h2wire.MaxWindow)
	b = h2wire.AppendPing(b, h2wire.FlagAck, &[8]byte{1, 2, 3, 4, 5, 6, 7, 8})
	b = h2wire.AppendGoAway(b, h2wire.MaxStreamID, h2wire.CodeEnhanceCalm)
	fr := http2.NewFramer(nil, bytes.NewReader(b))
	for _, want := range []string{
		"[FrameHeader SETTINGS len=6]", "[FrameHeader RST_STREAM stream=5 len=4]", "[FrameHeader WINDOW_UPDATE stream=7 len=4]",
		"[FrameHeader PING flags=ACK len=8]", "[FrameHeader GOAWAY len=8]",
	} {
		f, err := fr.ReadFrame()
		if err != nil || f.Header().String() != want {
			t.Fatalf("%v, %v, want %s", f, err, want)
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if v, ok := f.Value(http2.SettingMaxFrameSize); !ok || v != 20_000 {
				t.Error(v)
			}
		case *http2.RSTStreamFrame:
			if f.ErrCode != http2.ErrCodeCancel {
				t.Error(f.ErrCode)
			}
		case *http2.WindowUpdateFrame:
			if f.Increment != h2wire.MaxWindow {
				t.Error(f.Increment)
			}
		case *http2.GoAwayFrame:
			if f.LastStreamID != h2wire.MaxStreamID || f.ErrCode != http2.ErrCodeEnhanceYourCalm {
				t.Error(f)
			}
		}
	}
}

// TestEndHeaders cuts header blocks of all lengths around the frames' into HEADERS and CONTINUATION.
func TestEndHeaders(t *testing.T) {
	const maxFrame = 100
	for n := range 3*maxFrame + 2 {
		block := bytes.Repeat([]byte{'x'}, n)
		b := append([]byte("before"), 0)
		start := len(b)
		b = append(h2wire.AppendFrame(b, 0, h2wire.FrameHeaders, h2wire.FlagEndHeaders|h2wire.FlagEndStream, 3), block...)
		b = h2wire.EndHeaders(b, start, 3, maxFrame)
		fr := http2.NewFramer(nil, bytes.NewReader(b[start:]))
		var got []byte
		for ended := false; !ended; {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			switch f := f.(type) {
			case *http2.HeadersFrame:
				got, ended = append(got, f.HeaderBlockFragment()...), f.HeadersEnded()
				if !f.StreamEnded() {
					t.Errorf("%d bytes: the end of the stream is lost", n)
				}
			case *http2.ContinuationFrame:
				got, ended = append(got, f.HeaderBlockFragment()...), f.HeadersEnded()
			}
			if f.Header().Length > maxFrame {
				t.Errorf("%d bytes: %v", n, f.Header())
			}
		}
		if !bytes.Equal(got, block) {
			t.Errorf("%d bytes: %d came", n, len(got))
		}
	}
}

// FuzzLiteral has x/net decode literal fields of all kinds.
func FuzzLiteral(f *testing.F) {
	f.Add("content-type", "application/grpc")
	f.Add("x", "")
	f.Add("", strings.Repeat("x", 500))
	f.Fuzz(func(t *testing.T, name, value string) {
		b := h2wire.AppendLiteral(nil, h2wire.LiteralPlain, h2wire.LiteralBits, name, value)
		b = h2wire.AppendLiteral(b, h2wire.LiteralNeverIndexed, h2wire.LiteralBits, name, value)
		b = h2wire.AppendLiteral(b, h2wire.LiteralIndexed, h2wire.LiteralIndexedBits, name, value)
		got, err := hpack.NewDecoder(h2wire.DefaultTable, nil).DecodeFull(b)
		if err != nil || len(got) != 3 {
			t.Fatalf("%v, %v", got, err)
		}
		for i, f := range got {
			if f.Name != name || f.Value != value || f.Sensitive != (i == 1) {
				t.Errorf("%v", f)
			}
		}
	})
}

func TestErrCode(t *testing.T) {
	for c := range h2wire.ErrCode(14) {
		if got, want := c.String(), http2.ErrCode(c).String(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if got := h2wire.ErrCode(99).String(); got != "0x63" {
		t.Error(got)
	}
}

func TestSecret(t *testing.T) {
	for name, want := range map[string]bool{"authorization": true, "set-cookie": true, "x-api-key": true, "session-token": true, "content-type": false} {
		if h2wire.Secret(name) != want {
			t.Errorf("%s: not %v", name, want)
		}
	}
}
