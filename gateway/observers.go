package gateway

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"transom/gateway/observe"
	"transom/listeners"
)

// openObservers holds the access log, the traces and the push of metrics that the configuration asks for.
func (b *builder) openObservers() {
	if b.dry {
		b.checkDirectory("access_log.file", b.cfg.GetAccessLog().GetFile())
		b.checkDirectory("usage.file", b.cfg.GetUsage().GetFile())
		return
	}
	var err error
	if c := b.cfg.GetAccessLog(); c != nil {
		b.accessLog, err = hold(&b.holds, "access log", "", c, func() (*observe.AccessLog, func(), error) {
			l, err := observe.OpenAccessLog(observe.AccessLogConfig{File: c.GetFile(), StreamStarts: c.GetStreamStarts(), Log: b.log, Lost: b.metrics.LinesLost()})
			return l, func() {
				ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
				defer cancel()
				if err := l.Close(ctx); err != nil {
					b.log.LogAttrs(ctx, slog.LevelError, "access log", slog.String("error", err.Error()))
				}
			}, err
		})
		if err != nil {
			b.faultOf("access_log.file", err)
		}
	}
	if c := b.cfg.GetTracing(); c != nil {
		b.traces, err = hold(&b.holds, "traces", "", c, func() (*observe.Traces, func(), error) {
			t, err := observe.NewTraces(b.ctx, observe.TracesConfig{
				Endpoint: c.GetEndpoint(), ServiceName: c.GetServiceName(), Sample: c.GetSample(), Untrusted: c.GetUntrusted(), Log: b.log,
			})
			return t, func() {
				ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
				defer cancel()
				if err := t.Close(ctx); err != nil {
					b.log.LogAttrs(ctx, slog.LevelWarn, "the last spans were not sent", slog.String("error", err.Error()))
				}
			}, err
		})
		if err != nil {
			b.faultOf("tracing.endpoint", err)
		}
	}
	if c := b.cfg.GetMetricsPush(); c != nil {
		b.push, err = hold(&b.holds, "metrics push", "", c, func() (*observe.Push, func(), error) {
			p, err := b.metrics.Push(b.ctx, observe.PushConfig{
				Endpoint: c.GetEndpoint(), ServiceName: c.GetServiceName(), Interval: c.GetInterval().AsDuration(), Log: b.log,
			})
			return p, func() { closePush(p, b.log) }, err
		})
		if err != nil {
			b.faultOf("metrics_push.endpoint", err)
		}
	}
}

// checkDirectory makes a fault of a file to write that has no directory. Whether it may be written there is for who serves to find: a check
// may run as somebody else, and writes nothing.
func (b *builder) checkDirectory(path, file string) {
	if file == "" || file == "stdout" || file == "stderr" {
		return
	}
	dir := filepath.Dir(file)
	switch info, err := os.Stat(dir); {
	case errors.Is(err, fs.ErrPermission):
	case err != nil:
		b.faultOf(path, err)
	case !info.IsDir():
		b.fault(path, "%s is no directory", dir)
	}
}

// closePush pushes the last metrics. p may be nil.
func closePush(p *observe.Push, log *slog.Logger) {
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := p.Close(ctx); err != nil {
		log.LogAttrs(ctx, slog.LevelWarn, "the last metrics were not pushed", slog.String("error", err.Error()))
	}
}

// ReopenLogs opens the access log's file anew, after it has been renamed. What goes wrong is logged, and the old file kept.
func (g *Gateway) ReopenLogs(ctx context.Context) {
	g.Snapshot(func(s *Snapshot) {
		if s.accessLog == nil {
			return
		}
		if err := s.accessLog.Reopen(); err != nil {
			g.log.LogAttrs(ctx, slog.LevelError, "access log", slog.String("error", err.Error()))
		}
	})
}

// observer is what the plan's listeners report to.
func (p *plan) observer(g *Gateway) listeners.Observer {
	var m *observe.Metrics
	if p.cfg.GetAdmin() != nil || p.cfg.GetMetricsPush() != nil {
		m = g.metrics
	}
	return observe.New(m, p.builder.accessLog, p.builder.traces, p.builder.usage)
}

// missingNames are the descriptor sources that have not answered.
func (p *plan) missingNames() []string {
	var names []string
	for _, i := range p.missing {
		names = append(names, fmt.Sprintf("descriptors[%d]: cluster %s by reflection", i, p.cfg.GetDescriptors()[i].GetReflection().GetCluster()))
	}
	return names
}
