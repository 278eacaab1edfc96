package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"transom/gateway"
)

// memoryShare is what Go's memory limit is set to, of the container's: the rest is for what is not Go's.
const memoryShare = 0.9

// run serves until ctx ends, and does what signals ask for: SIGHUP reloads, SIGUSR1 opens the access log anew.
func run(ctx context.Context, g *gateway.Gateway) error {
	// GOMEMLIMIT stands if it is set. Without a container there is no limit, which is no error here.
	_, _ = memlimit.Set(memlimit.WithRatio(memoryShare), memlimit.WithProvider(memlimit.FromCgroup))
	keepHeapFloor()
	ctx, stop := context.WithCancel(ctx)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP, syscall.SIGUSR1)
	defer signal.Stop(hup)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case sig := <-hup:
				if sig == syscall.SIGUSR1 {
					g.ReopenLogs(ctx)
					continue
				}
				_ = g.Refresh(ctx) // it says itself what is wrong
			}
		}
	})
	err := g.Run(ctx)
	stop()
	wg.Wait()
	return err
}
