package gateway

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"

	"google.golang.org/protobuf/encoding/protojson"

	"transom/descriptors"
	adminv1 "transom/proto/transom/admin/v1"
	configv1 "transom/proto/transom/config/v1"
)

// Against compiles cfg without serving it, and compares it with what a running transom has in force: its configuration, with
// secrets redacted, and its schema. settings are the differences of the configuration, "policies[0].timeout: "10s" → "5s"",
// but not of secrets; changes those of the schema. The service config of the running one is read from where it says.
func Against(ctx context.Context, cfg, running *configv1.Config, schema *adminv1.Schema, log *slog.Logger) (settings []string, changes []descriptors.Change, err error) {
	err = offline(ctx, cfg, log, func(s *Snapshot) error {
		opts := descriptors.Options{IgnoreTrailingSlash: running.GetHttpRules().GetIgnoreTrailingSlash()}
		if err := readRules(&opts, schema.GetServiceConfig()); err != nil {
			return fmt.Errorf("the service config of the running transom: %w", err)
		}
		old, err := descriptors.Compile([]*descriptors.Set{{Origin: "the running transom", Files: schema.GetFiles().GetFile()}}, opts)
		if err != nil {
			return fmt.Errorf("the schema of the running transom: %w", err)
		}
		changes = descriptors.Diff(old, s.schema)
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	was, err := jsonOf(running)
	if err != nil {
		return nil, nil, err
	}
	now, err := jsonOf(redacted(cfg))
	if err != nil {
		return nil, nil, err
	}
	return differences(nil, "", was, now), changes, nil
}

// readRules sets the HTTP rules of the service config at path, if there is one.
func readRules(opts *descriptors.Options, path string) error {
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	opts.Rules, err = descriptors.ParseServiceConfig(path, text)
	return err
}

// DiffFiles compares the descriptor sets in two files, as Against does those of a running transom. serviceConfig, which may be
// empty, is a file with the HTTP rules of both.
func DiffFiles(old, new, serviceConfig string) ([]descriptors.Change, error) {
	var opts descriptors.Options
	if err := readRules(&opts, serviceConfig); err != nil {
		return nil, err
	}
	var schemas [2]*descriptors.Schema
	for i, path := range [...]string{old, new} {
		set, err := descriptors.FromFile(path)
		if err != nil {
			return nil, err
		}
		if schemas[i], err = descriptors.Compile([]*descriptors.Set{set}, opts); err != nil {
			return nil, err
		}
	}
	return descriptors.Diff(schemas[0], schemas[1]), nil
}

// jsonOf is a configuration as JSON has it, by the names of the file.
func jsonOf(cfg *configv1.Config) (any, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	var v any
	return v, json.Unmarshal(b, &v)
}

// differences appends what is not the same below path; nil is nothing.
func differences(all []string, path string, was, now any) []string {
	switch a := was.(type) {
	case map[string]any:
		b, ok := now.(map[string]any)
		if !ok {
			break
		}
		keys := map[string]bool{}
		for k := range a {
			keys[k] = true
		}
		for k := range b {
			keys[k] = true
		}
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			sub := k
			if path != "" {
				sub = path + "." + k
			}
			all = differences(all, sub, a[k], b[k])
		}
		return all
	case []any:
		b, ok := now.([]any)
		if !ok {
			break
		}
		at := func(list []any, i int) any {
			if i < len(list) {
				return list[i]
			}
			return nil
		}
		for i := range max(len(a), len(b)) {
			all = differences(all, fmt.Sprintf("%s[%d]", path, i), at(a, i), at(b, i))
		}
		return all
	}
	before, after := brief(was), brief(now)
	if text(was) == text(now) {
		return all
	}
	switch {
	case was == nil:
		return append(all, fmt.Sprintf("%s: new: %s", path, after))
	case now == nil:
		return append(all, fmt.Sprintf("%s: gone: %s", path, before))
	}
	return append(all, fmt.Sprintf("%s: %s → %s", path, before, after))
}

func text(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// brief is the text of a value, cut off where it is long.
func brief(v any) string {
	const most = 100
	if r := []rune(text(v)); len(r) > most {
		return string(r[:most]) + "…"
	}
	return text(v)
}
