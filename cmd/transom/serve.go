package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"transom/gateway"
	"transom/gateway/configfile"
	adminv1 "transom/proto/transom/admin/v1"
	configv1 "transom/proto/transom/config/v1"
)

// sourceFlags are where the configuration comes from: a file, or flags for the simple case.
type sourceFlags struct {
	config      string
	listen      []string
	listenTLS   []string
	cert, key   string
	http3       bool
	descriptors []string
	upstreams   []string
	maxMessage  uint32
	warmup      time.Duration
	admin       string
	// given reports whether a flag is.
	given func(flag string) bool
}

func (f *sourceFlags) register(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.config, "config", "", "configuration `FILE` (YAML); instead of the flags below")
	fl.StringArrayVar(&f.listen, "listen", nil, "`HOST:PORT` for HTTP/1.1 and h2c; repeatable")
	fl.StringArrayVar(&f.listenTLS, "listen-tls", nil, "`HOST:PORT` for HTTP/1.1 and HTTP/2 over TLS; repeatable")
	fl.StringVar(&f.cert, "tls-cert", "", "PEM `FILE` of the certificate chain for --listen-tls")
	fl.StringVar(&f.key, "tls-key", "", "PEM `FILE` of the certificate's private key")
	fl.BoolVar(&f.http3, "http3", false, "also serve HTTP/3 on the port of --listen-tls, over UDP")
	fl.StringArrayVar(&f.descriptors, "descriptors", nil, "FileDescriptorSet `FILE`; repeatable; without it the upstream is asked by reflection")
	fl.StringArrayVar(&f.upstreams, "upstream", nil, "`TARGET` of the gRPC servers: host:port, static:///a,b, dns:///host:port, file:///path")
	fl.StringVar(&f.admin, "admin-listen", "", "loopback `HOST:PORT`, or unix:/path, for operators: health, metrics, transom status")
	fl.Uint32Var(&f.maxMessage, "max-message-bytes", 0, "largest message in bytes (default 4 MiB)")
	fl.DurationVar(&f.warmup, "warmup", 90*time.Second, "how long a new server gets less than its full share")
	f.given = fl.Changed
}

// load gives the configuration and, if it came from a file, the file for the positions of faults.
func (f *sourceFlags) load() (*configv1.Config, *configfile.File, error) {
	if f.config != "" {
		for _, flag := range [...]string{"listen", "listen-tls", "tls-cert", "tls-key", "http3", "descriptors", "upstream", "admin-listen", "max-message-bytes", "warmup"} {
			if f.given(flag) || flag == "descriptors" && len(f.descriptors) > 0 {
				return nil, nil, usageError{fmt.Errorf("--config stands alone: what --%s says goes into the file", flag)}
			}
		}
		file, err := configfile.Load(f.config)
		if err != nil {
			return nil, nil, err
		}
		return file.Config, file, nil
	}
	if len(f.upstreams) != 1 {
		return nil, nil, usageError{errors.New("say where calls go: --upstream TARGET (once; more clusters need --config)")}
	}
	if len(f.listenTLS) > 0 && (f.cert == "" || f.key == "") {
		return nil, nil, usageError{errors.New("--listen-tls needs --tls-cert and --tls-key")}
	}
	for _, flag := range [...]string{"http3", "tls-cert", "tls-key"} {
		if f.given(flag) && len(f.listenTLS) == 0 {
			return nil, nil, usageError{fmt.Errorf("--%s needs --listen-tls", flag)}
		}
	}
	if f.warmup < 0 || f.warmup > time.Hour {
		return nil, nil, usageError{fmt.Errorf("--warmup: %v is not 0s … 1h", f.warmup)}
	}
	if f.maxMessage > math.MaxInt32 {
		return nil, nil, usageError{fmt.Errorf("--max-message-bytes: %d is more than 2 GiB - 1", f.maxMessage)}
	}
	const name = "default"
	cfg := &configv1.Config{
		Clusters: map[string]*configv1.Cluster{name: {
			Target: f.upstreams[0], MessageBytes: f.maxMessage,
			Lb: &configv1.LoadBalancing{Warmup: durationpb.New(f.warmup)},
		}},
		Limits: &configv1.Limits{MessageBytes: f.maxMessage},
	}
	if f.admin != "" {
		cfg.Admin = &configv1.Admin{Address: f.admin}
	}
	for _, a := range f.listen {
		cfg.Listeners = append(cfg.Listeners, &configv1.Listener{Address: a})
	}
	for _, a := range f.listenTLS {
		cfg.Listeners = append(cfg.Listeners, &configv1.Listener{Address: a, Http3: f.http3, Tls: &configv1.TLS{Certificate: f.cert, Key: f.key}})
	}
	for _, d := range f.descriptors {
		cfg.Descriptors = append(cfg.Descriptors, &configv1.DescriptorSource{Source: &configv1.DescriptorSource_File{File: d}})
	}
	if len(cfg.Descriptors) == 0 {
		cfg.Descriptors = []*configv1.DescriptorSource{{Source: &configv1.DescriptorSource_Reflection_{
			Reflection: &configv1.DescriptorSource_Reflection{Cluster: name},
		}}}
	}
	for _, l := range cfg.GetListeners() {
		if _, _, err := net.SplitHostPort(l.GetAddress()); err != nil {
			return nil, nil, usageError{fmt.Errorf("listen address %q: want HOST:PORT", l.GetAddress())}
		}
	}
	return cfg, nil, nil
}

func serveCommand() *cobra.Command {
	var src sourceFlags
	var verbose bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the proxy",
		Example: `  transom serve --listen :8080 --descriptors bank.binpb --upstream dns:///bank:50051
  transom serve --config transom.yaml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			level := &slog.LevelVar{}
			if verbose {
				level.Set(slog.LevelDebug)
			}
			log := logger(level)
			cfg, file, err := src.load()
			if err != nil {
				return err
			}
			if len(cfg.GetListeners()) == 0 {
				return usageError{errors.New("say where to listen: --listen HOST:PORT or --listen-tls HOST:PORT")}
			}
			asked, stop := signals() // before anybody sees the process listen
			defer stop()
			in, err := inherit()
			if err != nil {
				return err
			}
			g, err := gateway.NewOn(cmd.Context(), in.sockets, cfg, log)
			if err != nil {
				return gateway.Locate(err, file)
			}
			g.LogLevel(level)
			if file != nil {
				g.Follow(file.Name)
			}
			return run(cmd.Context(), g, in, asked, log)
		},
	}
	src.register(cmd)
	cmd.Flags().BoolVar(&verbose, "verbose", false, "log at debug level")
	return cmd
}

func checkCommand() *cobra.Command {
	var src sourceFlags
	var running adminFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check configuration and descriptors; exit code 1 and every fault with its line if they are not sound",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, file, err := src.load()
			if err != nil {
				return err
			}
			if err := gateway.Check(cmd.Context(), cfg, logger(slog.LevelWarn)); err != nil {
				return gateway.Locate(err, file)
			}
			if running.address != "" {
				return gateway.Locate(against(cmd, &running, cfg), file)
			}
			fmt.Fprintln(cmd.OutOrStdout(), "ok")
			return nil
		},
	}
	src.register(cmd)
	cmd.Flags().StringVar(&running.address, "against", "", "show what would change for the running transom whose admin listener is at `ADDRESS`; \"running\" is "+defaultAdmin)
	cmd.Flags().StringVar(&running.tokenFile, "admin-token-file", "", "`FILE` of that admin listener's token, if it has one")
	return cmd
}

// errRefused is what check says of a change that a reload would not make.
var errRefused = errors.New("reload.refuse_breaking is set: a reload would be refused")

// against shows what cfg changes for a running transom.
func against(cmd *cobra.Command, running *adminFlags, cfg *configv1.Config) error {
	if running.address == "running" {
		running.address = defaultAdmin
	}
	return running.call(cmd.Context(), func(ctx context.Context, c adminv1.AdminClient) error {
		was, err := c.GetConfig(ctx, &adminv1.GetConfigRequest{})
		if err != nil {
			return err
		}
		schema, err := c.GetSchema(ctx, &adminv1.GetSchemaRequest{})
		if err != nil {
			return err
		}
		settings, changes, err := gateway.Against(ctx, cfg, was, schema, logger(slog.LevelError))
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		fmt.Fprintf(out, "ok; %d differences to the transom at %s\n", len(settings)+len(changes), running.address)
		for _, s := range settings {
			fmt.Fprintln(out, "configuration:", s)
		}
		breaking := false
		for _, c := range changes {
			fmt.Fprintln(out, "schema:", c)
			breaking = breaking || c.Breaking
		}
		if breaking && cfg.GetReload().GetRefuseBreaking() {
			return errRefused
		}
		return nil
	})
}

func routesCommand() *cobra.Command {
	var src sourceFlags
	cmd := &cobra.Command{
		Use:   "routes [FILE...]",
		Short: "List what descriptor sets expose: HTTP verb, path, method, kind",
		RunE: func(cmd *cobra.Command, args []string) error {
			src.descriptors = append(src.descriptors, args...)
			if src.config == "" && len(src.upstreams) == 0 {
				if len(src.descriptors) == 0 {
					return usageError{errors.New("name a descriptor set: transom routes FILE")}
				}
				src.upstreams = []string{"static:///127.0.0.1:1"} // never dialled
			}
			cfg, file, err := src.load()
			if err != nil {
				return err
			}
			return gateway.Locate(gateway.Routes(cmd.Context(), cfg, cmd.OutOrStdout(), logger(slog.LevelError)), file)
		},
	}
	src.register(cmd)
	return cmd
}
