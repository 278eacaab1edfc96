package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	adminv1 "transom/proto/transom/admin/v1"
)

// defaultAdmin is where the commands look for a running transom.
const defaultAdmin = "127.0.0.1:9901"

// adminFlags say how to reach a running transom.
type adminFlags struct {
	address, tokenFile string
	json               bool
}

func (f *adminFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.address, "admin", defaultAdmin, "`ADDRESS` of the admin listener: host:port or unix:/path")
	cmd.Flags().StringVar(&f.tokenFile, "admin-token-file", "", "`FILE` of the admin listener's token, if it has one")
}

// adminTimeout bounds one question to a running transom; a reload may have to wait for reflection.
const adminTimeout = 30 * time.Second

// call runs fn with a client of the running transom.
func (f *adminFlags) call(ctx context.Context, fn func(context.Context, adminv1.AdminClient) error) error {
	target := f.address
	if _, _, err := net.SplitHostPort(target); !strings.HasPrefix(target, "unix:/") && (err != nil || strings.HasPrefix(target, "unix:")) {
		return usageError{fmt.Errorf("admin listener %q: want host:port or unix:/path", target)}
	}
	if path, ok := strings.CutPrefix(target, "unix:"); ok {
		target = "unix:" + (&url.URL{Path: "/" + strings.TrimLeft(path, "/")}).EscapedPath()
	} else {
		target = "passthrough:///" + target
	}
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(256<<20)))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, adminTimeout)
	defer cancel()
	if f.tokenFile != "" {
		token, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return err
		}
		ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+strings.TrimSpace(string(token)))
	}
	if err := fn(ctx, adminv1.NewAdminClient(conn)); err != nil {
		if st, ok := status.FromError(err); ok {
			text := st.Message()
			if _, cause, ok := strings.Cut(text, "Error while dialing: "); ok {
				text = "no answer: " + strings.TrimSuffix(cause, `"`)
			}
			return fmt.Errorf("transom at %s: %s", f.address, text)
		}
		return err
	}
	return nil
}

// adminCommand is a command that asks one question, and writes the answer as a text or as JSON.
func adminCommand[M proto.Message](use, short string, ask func(context.Context, adminv1.AdminClient) (M, error), write func(io.Writer, M) error) *cobra.Command {
	var f adminFlags
	cmd := &cobra.Command{
		Use: use, Short: short, Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.call(cmd.Context(), func(ctx context.Context, c adminv1.AdminClient) error {
				m, err := ask(ctx, c)
				if err != nil {
					return err
				}
				if f.json {
					b, err := protojson.MarshalOptions{Multiline: true}.Marshal(m)
					if err != nil {
						return err
					}
					_, err = fmt.Fprintln(cmd.OutOrStdout(), string(b))
					return err
				}
				return write(cmd.OutOrStdout(), m)
			})
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVar(&f.json, "json", false, "print JSON")
	return cmd
}

func statusCommand() *cobra.Command {
	return adminCommand("status", "Show how a running transom is",
		func(ctx context.Context, c adminv1.AdminClient) (*adminv1.Status, error) {
			return c.GetStatus(ctx, &adminv1.GetStatusRequest{})
		}, writeStatus)
}

func writeStatus(w io.Writer, s *adminv1.Status) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	state := "ready"
	switch {
	case s.GetDraining():
		state = "draining"
	case !s.GetReady():
		state = "not ready"
	}
	fmt.Fprintf(tw, "transom %s, pid %d\t%s, up %v\n", s.GetVersion(), s.GetPid(), state, time.Since(s.GetStartTime().AsTime()).Round(time.Second))
	for _, m := range s.GetMissingDescriptors() {
		fmt.Fprintf(tw, "waits for\t%s\n", m)
	}
	fmt.Fprintf(tw, "configuration\t%s\n", s.GetConfigHash())
	fmt.Fprintf(tw, "schema\t%s, %d methods, %d routes\n", s.GetSchemaHash(), s.GetMethods(), s.GetRoutes())
	last := "ok"
	if !s.GetReloads().GetLastSucceeded() {
		last = "refused"
	}
	fmt.Fprintf(tw, "reloads\t%d, %d refused; last %s; in force since %s\n", s.GetReloads().GetSucceeded(), s.GetReloads().GetFailed(), last,
		s.GetReloads().GetLastSuccessTime().AsTime().Local().Format(time.DateTime))
	memory := fmt.Sprintf("%d MiB", s.GetMemoryBytes()>>20)
	if s.GetMemoryLimitBytes() > 0 {
		memory += fmt.Sprintf(" of %d MiB", s.GetMemoryLimitBytes()>>20)
	}
	fmt.Fprintf(tw, "memory\t%s, %d goroutines\n", memory, s.GetGoroutines())
	for _, l := range s.GetListeners() {
		speaks := "h1, h2c"
		if l.GetTls() {
			speaks = "h1, h2 over TLS"
		}
		if l.GetHttp3() {
			speaks += ", h3"
		}
		fmt.Fprintf(tw, "listener %s\t%s; %d connections, %d WebSockets", l.GetAddress(), speaks, l.GetConnections(), l.GetWebsockets())
		if t := l.GetCertificateExpireTime(); t != nil {
			fmt.Fprintf(tw, "; certificate until %s", t.AsTime().Local().Format(time.DateTime))
		}
		fmt.Fprintln(tw)
		for _, n := range l.GetIssued() {
			fmt.Fprintf(tw, "  %s\t", n.GetName())
			if t := n.GetExpireTime(); t != nil {
				fmt.Fprintf(tw, "certificate until %s", t.AsTime().Local().Format(time.DateTime))
			} else {
				fmt.Fprint(tw, "no certificate yet")
			}
			if n.GetFault() != "" {
				fmt.Fprintf(tw, "; last attempt: %s", n.GetFault())
			}
			fmt.Fprintln(tw)
		}
	}
	return tw.Flush()
}

func clustersCommand() *cobra.Command {
	return adminCommand("clusters", "Show the clusters of a running transom and each of their endpoints",
		func(ctx context.Context, c adminv1.AdminClient) (*adminv1.ListClustersResponse, error) {
			return c.ListClusters(ctx, &adminv1.ListClustersRequest{})
		}, writeClusters)
}

func writeClusters(w io.Writer, r *adminv1.ListClustersResponse) error {
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for i, c := range r.GetClusters() {
		if i > 0 {
			fmt.Fprintln(tw)
		}
		fmt.Fprintf(tw, "%s: %s, %d of at most %d calls in flight, %d queued\n", c.GetName(), strings.ToLower(c.GetState()), c.GetInFlight(), c.GetLimit(), c.GetQueued())
		fmt.Fprintln(tw, "ENDPOINT\tSTATE\tWEIGHT\tIN FLIGHT\tCALLS\tUTILIZATION\tLATENCY\tHEALTH\tAGE\tNOTES")
		for _, e := range c.GetEndpoints() {
			utilization := "-"
			if e.GetReportAge() != nil {
				utilization = fmt.Sprintf("%.2f", e.GetUtilization())
			}
			var notes []string
			for _, n := range []struct {
				on   bool
				text string
			}{{e.GetDraining(), "draining"}, {e.GetEjected(), "ejected"}, {e.GetProbation(), "probation"}, {e.GetWarmingUp(), "warming up"}, {e.GetZone() != "", "zone " + e.GetZone()}, {e.GetPriority() > 0, fmt.Sprint("priority ", e.GetPriority())}, {e.GetFailure() != "", e.GetFailure()}} {
				if n.on {
					notes = append(notes, n.text)
				}
			}
			fmt.Fprintf(tw, "%s\t%s\t%g\t%d\t%d\t%s\t%v\t%.2f\t%v\t%s\n", e.GetAddress(), strings.ToLower(e.GetState()), e.GetWeight(), e.GetInFlight(), e.GetCalls(),
				utilization, e.GetLatency().AsDuration().Round(10*time.Microsecond), e.GetHealth(), e.GetAge().AsDuration().Round(time.Second), strings.Join(notes, ", "))
		}
	}
	return tw.Flush()
}

func limitsCommand() *cobra.Command {
	var req adminv1.ListLimitsRequest
	cmd := adminCommand("limits", "Show the limits of a running transom, and what a caller has left of them",
		func(ctx context.Context, c adminv1.AdminClient) (*adminv1.ListLimitsResponse, error) {
			return c.ListLimits(ctx, &req)
		}, writeLimits)
	cmd.Flags().StringVar(&req.Consumer, "consumer", "", "what is left for this `CONSUMER`")
	cmd.Flags().StringVar(&req.Address, "address", "", "what is left for clients at this `IP` address")
	cmd.Flags().StringVar(&req.Method, "method", "", "of limits that count methods apart, for this `METHOD`, by its full name")
	return cmd
}

func writeLimits(w io.Writer, r *adminv1.ListLimitsResponse) error {
	if len(r.GetLimits()) == 0 {
		_, err := fmt.Fprintln(w, "no policy has a limit")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(tw, "LIMIT\tKIND\tAMOUNT\tPER\tCOUNTED\tLEFT\tFULL IN\tNOTES")
	for _, l := range r.GetLimits() {
		per, left, reset := strings.Join(l.GetPer(), " "), "-", "-"
		if per == "" {
			per = "everybody"
		}
		if l.Remaining != nil {
			left = strconv.FormatUint(l.GetRemaining(), 10)
		}
		if l.GetFullIn() != nil {
			reset = l.GetFullIn().AsDuration().Round(time.Millisecond).String()
		}
		var notes []string
		if l.GetKind() == "rate" {
			notes = append(notes, fmt.Sprintf("burst %d", l.GetBurst()))
		}
		if l.GetPlan() != "" {
			notes = append(notes, "plan "+l.GetPlan())
		}
		if l.GetMessages() {
			notes = append(notes, "messages")
		}
		if l.GetShared() {
			notes = append(notes, "in Redis")
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", l.GetName(), l.GetKind(), l.GetAmount(), per, l.GetCounted(), left, reset, strings.Join(notes, ", "))
	}
	return tw.Flush()
}

func purgeCommand() *cobra.Command {
	var req adminv1.PurgeCacheRequest
	cmd := adminCommand("purge", "Drop cached answers of a running transom, and of all that share them in Redis",
		func(ctx context.Context, c adminv1.AdminClient) (*adminv1.PurgeCacheResponse, error) {
			return c.PurgeCache(ctx, &req)
		},
		func(w io.Writer, r *adminv1.PurgeCacheResponse) error {
			where := "in memory"
			if r.GetShared() {
				where += ", and those in Redis"
			}
			_, err := fmt.Fprintf(w, "purged: %d answers %s\n", r.GetPurged(), where)
			return err
		})
	cmd.Flags().StringVar(&req.Method, "method", "", "only of this `METHOD`, by its full name")
	cmd.Flags().StringVar(&req.Consumer, "consumer", "", "only of this `CONSUMER`")
	cmd.Flags().StringVar(&req.Tag, "tag", "", "only with this `TAG`")
	return cmd
}

func reloadCommand() *cobra.Command {
	return adminCommand("reload", "Make a running transom read its configuration, certificates and descriptors again",
		func(ctx context.Context, c adminv1.AdminClient) (*adminv1.Status, error) {
			return c.Reload(ctx, &adminv1.ReloadRequest{})
		}, writeStatus)
}

func logLevelCommand() *cobra.Command {
	var req adminv1.SetLogLevelRequest
	cmd := adminCommand("log-level [LEVEL]", "Show or set how much a running transom logs: debug, info, warn or error",
		func(ctx context.Context, c adminv1.AdminClient) (*adminv1.SetLogLevelResponse, error) {
			return c.SetLogLevel(ctx, &req)
		}, func(w io.Writer, r *adminv1.SetLogLevelResponse) error {
			_, err := fmt.Fprintln(w, r.GetLevel())
			return err
		})
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		req.Level = args[0]
		return noArgs(cmd, args[1:])
	}
	return cmd
}

func drainCommand() *cobra.Command {
	return adminCommand("drain", "Make a running transom finish its calls and end",
		func(ctx context.Context, c adminv1.AdminClient) (*adminv1.DrainResponse, error) {
			return c.Drain(ctx, &adminv1.DrainRequest{})
		}, func(w io.Writer, _ *adminv1.DrainResponse) error {
			_, err := fmt.Fprintln(w, "draining")
			return err
		})
}

// errNotReady is what healthcheck says of a transom that is up and not ready.
var errNotReady = errors.New("not ready")

func healthcheckCommand() *cobra.Command {
	return adminCommand("healthcheck", "Exit with 0 if a running transom is ready, else with 1",
		func(ctx context.Context, c adminv1.AdminClient) (*adminv1.Status, error) {
			s, err := c.GetStatus(ctx, &adminv1.GetStatusRequest{})
			if err == nil && !s.GetReady() {
				err = errNotReady
			}
			return s, err
		}, func(w io.Writer, _ *adminv1.Status) error {
			_, err := fmt.Fprintln(w, "ready")
			return err
		})
}
