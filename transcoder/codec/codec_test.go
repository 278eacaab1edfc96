package codec

import (
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/apipb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestRoundTrip(t *testing.T) {
	types := NewTypes(nil)
	api := types.Message((&apipb.Api{}).ProtoReflect().Descriptor())
	const text = `{"name":"a","methods":[{"name":"m","requestStreaming":true}],"sourceContext":{"fileName":"x"}}`
	wire, err := api.AppendWire(nil, []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := api.AppendJSON(nil, wire, nil)
	if err != nil || string(got) != text {
		t.Fatalf("got %s, %v, want %s", got, err, text)
	}
	f := types.Field(api.Descriptor().Fields().ByName("methods"))
	got, err = f.AppendJSON(nil, wire, nil)
	if want := `[{"name":"m","requestStreaming":true}]`; err != nil || string(got) != want {
		t.Fatalf("got %s, %v, want %s", got, err, want)
	}
	paths, err := api.AppendMaskPaths(nil, []byte(text), nil)
	if err != nil || len(paths) != 3 || paths[2] != "source_context.file_name" {
		t.Fatalf("got %q, %v", paths, err)
	}
	name := types.Field(api.Descriptor().Fields().ByName("name"))
	if got, err := name.AppendText(nil, "a"); err != nil || string(got) != "\n\x01a" {
		t.Fatalf("got %q, %v", got, err)
	}
}
