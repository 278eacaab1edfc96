// Command transom is an edge proxy that puts REST, WebSocket, gRPC-Web, Connect and gRPC clients in front of gRPC
// services, from their protobuf descriptors alone.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	_ "google.golang.org/grpc/xds" // xds:/// targets

	"transom/gateway"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		if errors.As(err, new(usageError)) {
			os.Exit(2) //nolint:gocritic // nothing is left to clean up
		}
		os.Exit(1)
	}
}

// usageError is a fault of the command line: exit code 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func command() *cobra.Command {
	root := &cobra.Command{
		Use:           "transom",
		Short:         "An edge proxy from REST, WebSocket, gRPC-Web, Connect and gRPC clients to gRPC services",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          knownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.SetHelpCommand(helpCommand(root))
	root.AddCommand(serveCommand(), checkCommand(), auditCommand(), routesCommand(), explainCommand(), diffCommand(), schemaCommand(), fmtCommand(), demoCommand(), versionCommand(),
		statusCommand(), clustersCommand(), limitsCommand(), usageCommand(), purgeCommand(), reloadCommand(), logLevelCommand(), drainCommand(), healthcheckCommand())
	// Cobra's own prints its help for a shell that it does not know, and is content.
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "completion" {
			cmd.Args = knownCommand
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
	return root
}

// helpCommand is cobra's, but that what is no command is a fault.
func helpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND]",
		Short: "Show how a command is used",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd := root
			for _, name := range args {
				i := slices.IndexFunc(cmd.Commands(), func(c *cobra.Command) bool { return c.Name() == name })
				if i < 0 {
					return knownCommand(cmd, []string{name})
				}
				cmd = cmd.Commands()[i]
			}
			cmd.InitDefaultHelpFlag()
			return cmd.Help()
		},
	}
}

// knownCommand refuses what is no command, with those that are spelt like it.
func knownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	text := fmt.Sprintf("unknown command %q", args[0])
	if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
		text += "; did you mean " + strings.Join(like, " or ") + "?"
	}
	return usageError{errors.New(text)}
}

// noArgs refuses arguments that are no flags.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version and how it was built",
		Args:  noArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			var settings []any
			if bi, ok := debug.ReadBuildInfo(); ok {
				settings = append(settings, bi.GoVersion)
				for _, s := range bi.Settings {
					if s.Key == "vcs.revision" || s.Key == "GOOS" || s.Key == "GOARCH" {
						settings = append(settings, s.Value)
					}
				}
			}
			fmt.Fprintln(cmd.OutOrStdout(), append([]any{"transom", gateway.Version()}, settings...)...)
		},
	}
}

// logger writes events to standard error, those of grpc-go too.
func logger(level slog.Leveler) *slog.Logger {
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	routeGRPCLog(log)
	return log
}
