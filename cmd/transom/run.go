package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"github.com/KimMachineGun/automemlimit/memlimit"

	"transom/gateway"
)

// memoryShare is what Go's memory limit is set to, of the container's: the rest is for what is not Go's.
const memoryShare = 0.9

// signals are what the process is asked for from here on: SIGHUP, without which it would end the process, SIGUSR1 and SIGUSR2,
// which would be lost. SIGPIPE no longer ends it: whoever reads its standard output or error may go, and come again.
func signals() (asked chan os.Signal, stop func()) {
	signal.Ignore(syscall.SIGPIPE)
	asked = make(chan os.Signal, 3) // one of each
	signal.Notify(asked, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	return asked, func() { signal.Stop(asked) }
}

// run serves until ctx ends, and does what signals ask for: SIGHUP reloads, SIGUSR1 opens the access log anew, SIGUSR2
// starts the program anew, which takes over the sockets. in is what the process was started with.
func run(ctx context.Context, g *gateway.Gateway, in inheritance, asked <-chan os.Signal, log *slog.Logger) error {
	// GOMEMLIMIT stands if it is set. Without a container there is no limit, which is no error here.
	_, _ = memlimit.Set(memlimit.WithRatio(memoryShare), memlimit.WithProvider(memlimit.FromCgroup))
	keepHeapFloor()
	systemd := newNotifier()
	defer systemd.close()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// Its sockets are bound. Whether clients should come is for /readyz: a start that waited for backends would time out.
	systemd.say("READY=1", "STATUS=waits for descriptors")
	over := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { systemd.watchdog(ctx, func() { g.Addrs() }) })
	wg.Go(func() {
		up, replaced, wanted := g.Up(), false, false
		starting, giveUp := context.WithCancel(ctx)
		defer giveUp()
		// replacing is of a new process that is not ready yet, nil without one; missed is what this one was asked for meanwhile. A
		// reload waits for the new process: sockets that this one opened now the new one could not.
		var replacing chan replacement
		missed := map[syscall.Signal]bool{}
		replaceIt := func() {
			done := make(chan replacement, 1)
			replacing = done
			clear(missed)
			wg.Go(func() {
				pid, turn, err := replace(starting, g, log)
				done <- replacement{pid, turn, err}
			})
		}
		refresh := func() {
			systemd.reloading()
			_ = g.Refresh(ctx) // it says itself what is wrong
			systemd.say("READY=1")
		}
		finish := func(r replacement) {
			replacing = nil
			if r.err != nil {
				log.LogAttrs(ctx, slog.LevelError, "not replaced", slog.String("error", r.err.Error()))
				if missed[syscall.SIGHUP] && ctx.Err() == nil {
					refresh()
				}
				return
			}
			replaced = true
			systemd.say("MAINPID=" + strconv.Itoa(r.pid))
			for sig := range missed { // it may have read files before they changed
				_ = syscall.Kill(r.pid, sig)
			}
			g.Replaced()
			wg.Go(func() {
				<-g.QUICOver()
				_ = r.turn.Close()
			})
		}
		for {
			select {
			case <-up:
				up = nil
				systemd.say("STATUS=serves")
				in.serving()
				if wanted {
					replaceIt()
				}
			case r := <-replacing:
				finish(r)
			case <-g.Down():
				if replacing != nil {
					giveUp()
					finish(<-replacing)
				}
				if !replaced {
					systemd.say("STOPPING=1")
				}
				<-over
				return
			case sig := <-asked:
				switch sig {
				case syscall.SIGUSR1:
					missed[syscall.SIGUSR1] = true
					g.ReopenLogs(ctx)
				case syscall.SIGUSR2:
					switch {
					case replaced || replacing != nil: // once is enough
					case up != nil:
						// Another may wait for this process to serve, and would go on itself if this one drained before it said so.
						log.LogAttrs(ctx, slog.LevelInfo, "to be replaced once it serves")
						wanted = true
					default:
						replaceIt()
					}
				default:
					if replacing != nil {
						missed[syscall.SIGHUP] = true
					} else {
						refresh()
					}
				}
			}
		}
	})
	err := g.Run(ctx)
	stop()
	close(over)
	wg.Wait()
	return err
}
