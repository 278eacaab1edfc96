package gateway

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/protobuf/proto"

	"transom/descriptors"
	configv1 "transom/proto/transom/config/v1"
)

// source is one place that descriptors come from, and what came from it. Its key is made of its settings and, if it is a
// cluster, the cluster's; it outlives reloads that change neither.
type source struct {
	from *descriptors.Source
	// mayMiss says that the source need not answer for a configuration to be sound.
	mayMiss bool
	// set is what it last said that was put in force; nil if it has not answered.
	set *descriptors.Set
	// stop ends its Run; nil before it is started.
	stop context.CancelFunc
}

// source finds out what a descriptor source is; nil if it is at fault.
func (b *builder) source(path string, d *configv1.DescriptorSource) (key string, s *source) {
	key = keyOf(d)
	switch src := d.GetSource().(type) {
	case *configv1.DescriptorSource_File:
		return key, &source{from: descriptors.FileSource(src.File)}
	case *configv1.DescriptorSource_Proto:
		return key, &source{from: descriptors.ProtoSource(src.Proto.GetRoots(), src.Proto.GetFiles())}
	case *configv1.DescriptorSource_Reflection_:
		name := src.Reflection.GetCluster()
		cluster := b.clusterOf(path+".reflection.cluster", name)
		if cluster == nil {
			return key, nil
		}
		key += keyOf(b.cfg.GetClusters()[name])
		return key, &source{from: descriptors.ReflectionSource(cluster.Conn(), 0), mayMiss: true}
	}
	b.fault(path, "a descriptor source is one of file, proto or reflection")
	return key, nil
}

// keyOf is equal for equal messages.
func keyOf(m proto.Message) string {
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(m) // text from a configuration is valid UTF-8
	return string(b)
}

// rereads says which sources are read for a build, and which are taken as they are known.
type rereads interface {
	// read gives the set of s, whose known self is k, which may be nil. No set and no error: it does not answer.
	read(ctx context.Context, key string, s, k *source) (*descriptors.Set, error)
}

// fresh reads every source.
type fresh struct{}

// reflectionTimeout bounds one try at a reflection source.
const reflectionTimeout = 5 * time.Second

func (fresh) read(ctx context.Context, _ string, s, known *source) (*descriptors.Set, error) {
	if !s.mayMiss {
		return s.from.Load(ctx)
	}
	ctx, cancel := context.WithTimeout(ctx, reflectionTimeout)
	defer cancel()
	set, err := s.from.Load(ctx)
	if err == nil {
		return set, nil
	}
	if known != nil {
		return known.set, nil
	}
	return nil, nil
}

// changed takes one source's new set, and all others as they are known.
type changed struct {
	key string
	set *descriptors.Set
}

func (c changed) read(_ context.Context, key string, _, known *source) (*descriptors.Set, error) {
	if key == c.key {
		return c.set, nil
	}
	return known.set, nil
}

// descriptorsChanged puts in force what a source says anew. If that cannot be read or does not compile, all stays as it was. A
// configuration that was refused may be sound with it, and is tried again.
func (g *Gateway) descriptorsChanged(ctx context.Context, key string, set *descriptors.Set, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sources[key]
	if s == nil || ctx.Err() != nil {
		return // no longer wanted
	}
	what := "descriptors of " + s.from.String()
	switch {
	case err != nil && s.mayMiss:
		g.log.LogAttrs(ctx, slog.LevelWarn, "descriptors can't be read", slog.String("source", s.from.String()), slog.String("error", err.Error()))
		return
	case err != nil:
	case s.set == nil || s.set.Digest() != set.Digest():
		var p *plan
		if p, err = g.compile(ctx, g.cfg, changed{key, set}); err == nil {
			err = g.commit(ctx, p)
		}
	case !g.loads.refused[what]:
		return // it is what is in force
	}
	g.loaded(ctx, what, g.locate(err))
	if err == nil && g.loads.refused[configuration] && !g.cfg.GetReload().GetNoWatch() {
		_ = g.refresh(ctx) // it says itself what is wrong
	}
}

// watch follows the configuration file and the files that are named in it until ctx ends. Without a file it follows those that the
// configuration names all the same.
func (g *Gateway) watch(ctx context.Context) {
	paths := func() []string {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.watched()
	}
	descriptors.Watch(ctx, descriptors.Settle, paths, func() {
		g.mu.Lock()
		same := g.cfg.GetReload().GetNoWatch() || digestOf(g.watched()) == g.digest
		g.mu.Unlock()
		if !same && ctx.Err() == nil {
			_ = g.Refresh(ctx) // it says itself what is wrong
		}
	})
}

// watched are the configuration file and those it names. g.mu is held.
func (g *Gateway) watched() []string {
	files := watchedFiles(g.cfg)
	if g.file != "" {
		files = append(files, g.file)
	}
	return files
}
