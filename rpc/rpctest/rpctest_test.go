package rpctest_test

import (
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc/metadata"

	"transom/descriptors"
	"transom/rpc"
	"transom/rpc/rpctest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestCallKeepsTheContract(t *testing.T) {
	rpctest.TestStream(t, rpctest.Harness{
		Start: func(t *testing.T, m *descriptors.Method, header metadata.MD, h rpc.Handler) rpctest.Client {
			call := rpctest.Start(t.Context(), h, m, header)
			t.Cleanup(func() { _ = call.Wait() })
			return call
		},
	})
}
