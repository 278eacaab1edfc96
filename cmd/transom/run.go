package main

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"transom/gateway"
)

// run serves until ctx ends, and does what signals ask for: SIGHUP reloads.
func run(ctx context.Context, g *gateway.Gateway) error {
	ctx, stop := context.WithCancel(ctx)
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-hup:
				_ = g.Refresh(ctx) // it says itself what is wrong
			}
		}
	})
	err := g.Run(ctx)
	stop()
	wg.Wait()
	return err
}
