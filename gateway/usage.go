package gateway

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"transom/descriptors"
	"transom/gateway/observe"
	adminv1 "transom/proto/transom/admin/v1"
	configv1 "transom/proto/transom/config/v1"
)

const (
	defaultUsagePeriod    = time.Hour
	defaultUsageConsumers = 10000
	defaultUsageRows      = 1000
	maxUsageRows          = 10000
)

// countUsage holds the counts of usage, if they are asked for, with the APIs of the schema.
func (b *builder) countUsage() *observe.UsageOf {
	c := b.cfg.GetUsage()
	if c == nil {
		return nil
	}
	of := &observe.UsageOf{APIs: b.apis(c)}
	if b.dry || len(b.faults) > 0 {
		return nil
	}
	cfg := observe.UsageConfig{File: c.GetFile(), Period: defaultUsagePeriod, Consumers: int(c.GetConsumers())}
	if d := c.GetPeriod(); d != nil {
		cfg.Period = d.AsDuration()
	}
	if cfg.Consumers == 0 {
		cfg.Consumers = defaultUsageConsumers
	}
	// What the APIs are changes what is counted from then on, and nothing of what was.
	key, _ := proto.Clone(c).(*configv1.Usage)
	key.Apis = nil
	var err error
	of.Usage, err = hold(&b.holds, "usage", "", key, func() (*observe.Usage, func(), error) {
		u, err := observe.NewUsage(cfg, b.log)
		if err != nil {
			return nil, nil, err
		}
		return u, u.Close, nil
	})
	if err != nil {
		b.faultOf("usage.file", err)
		return nil
	}
	return of
}

// apis names the API of each method but those of grpc.health.v1, by full path: that of the most specific selector, else its
// service. A selector that takes in no method is a fault, and so are two of equal precedence.
func (b *builder) apis(c *configv1.Usage) map[string]string {
	type rule struct {
		selector
		api, path string
		// used says that it takes in a method, told that it is a fault.
		used, told bool
	}
	var rules []*rule
	for _, name := range slices.Sorted(maps.Keys(c.GetApis())) {
		for i, text := range c.GetApis()[name].GetSelector() {
			path := fmt.Sprintf("usage.apis[%s].selector[%d]", name, i)
			sel, err := parseSelector(text)
			if err != nil {
				b.faultOf(path, err)
				continue
			}
			rules = append(rules, &rule{selector: sel, api: name, path: path})
		}
	}
	apis := map[string]string{}
	for _, m := range b.schema.Methods() {
		if isHealth(m) {
			continue
		}
		var best *rule
		for _, r := range rules {
			if !r.matches(string(m.Name)) {
				continue
			}
			r.used = true
			switch {
			case best == nil || r.rank() > best.rank():
				best = r
			case r.rank() == best.rank() && r.api != best.api && !r.told:
				r.told = true
				b.fault(r.path, "%s is in API %s by a selector of the same precedence", m.Name, best.api)
			}
		}
		if apis[m.FullPath] = string(m.Name.Parent()); best != nil {
			apis[m.FullPath] = best.api
		}
	}
	for _, r := range rules {
		if !r.used && len(b.missing) == 0 {
			b.fault(r.path, "%s", noMethod(b.schema, r.name))
		}
	}
	return apis
}

// noMethod says that a selector of that name takes in no method, and what may be meant.
func noMethod(schema *descriptors.Schema, name string) string {
	msg := "it takes in no method of the loaded descriptors"
	if s := schema.Suggest(name); s != "" {
		msg += fmt.Sprintf("; did you mean %q?", s)
	}
	return msg
}

// getUsage implements transom.admin.v1.Admin.GetUsage.
func (g *Gateway) getUsage(_ context.Context, req *adminv1.GetUsageRequest) (*adminv1.Usage, error) {
	after, err := base64.RawURLEncoding.DecodeString(req.GetPageToken())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, "page_token: none that was given")
	}
	consumer, api, _ := strings.Cut(string(after), "\x00")
	size := cmp.Or(int(req.GetPageSize()), defaultUsageRows)
	if size > maxUsageRows {
		return nil, status.Errorf(codes.InvalidArgument, "page_size: at most %d", maxUsageRows)
	}
	var u *observe.Usage
	var report observe.UsageReport
	g.Snapshot(func(s *Snapshot) {
		if u = s.usage; u != nil {
			report = u.Report(req.GetPrevious(), req.GetConsumer(), req.GetApi())
		}
	})
	if u == nil {
		return nil, status.Error(codes.FailedPrecondition, "usage is not counted: the configuration has no usage")
	}
	out := &adminv1.Usage{}
	if !report.Start.IsZero() {
		out.StartTime, out.EndTime = timestamppb.New(report.Start), timestamppb.New(report.End)
	}
	for _, r := range report.Rows {
		if len(after) > 0 && cmp.Or(cmp.Compare(r.Consumer, consumer), cmp.Compare(r.API, api)) <= 0 {
			continue
		}
		if len(out.GetRows()) == size {
			last := out.GetRows()[size-1]
			out.NextPageToken = base64.RawURLEncoding.EncodeToString([]byte(last.GetConsumer() + "\x00" + last.GetApi()))
			break
		}
		out.Rows = append(out.Rows, &adminv1.UsageRow{
			Consumer: strings.ToValidUTF8(r.Consumer, "\ufffd"), Plan: r.Plan, Api: r.API, Calls: r.Calls, Errors: r.Errors, Refused: r.Refused,
			MessagesIn: r.MessagesIn, MessagesOut: r.MessagesOut, BytesIn: r.BytesIn, BytesOut: r.BytesOut,
			Time: durationpb.New(r.Time), P50: durationpb.New(r.P50), P95: durationpb.New(r.P95), P99: durationpb.New(r.P99), Max: durationpb.New(r.Max),
		})
	}
	return out, nil
}
