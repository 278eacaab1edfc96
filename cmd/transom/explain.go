package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"transom/gateway"
	"transom/gateway/configfile"
)

func explainCommand() *cobra.Command {
	var src sourceFlags
	cmd := &cobra.Command{
		Use:     "explain METHOD",
		Short:   "Show what is in force for a method, and where in the configuration each setting comes from",
		Example: `  transom explain --config transom.yaml bank.v1.Accounts.Transfer`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usageError{errors.New("name one method: transom explain --config FILE bank.v1.Accounts.Transfer")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, file, err := src.load()
			if err != nil {
				return err
			}
			return gateway.Locate(gateway.Explain(cmd.Context(), cfg, args[0], places(file), cmd.OutOrStdout(), logger(slog.LevelError)), file)
		},
	}
	src.register(cmd)
	return cmd
}

// places tells where in a configuration file a field is, by its path; "flags" without a file.
func places(file *configfile.File) func(path string) string {
	if file == nil {
		return func(string) string { return "flags" }
	}
	return func(path string) string {
		line, column := file.Position(path)
		return fmt.Sprintf("%s:%d:%d", file.Name, line, column)
	}
}

func auditCommand() *cobra.Command {
	var src sourceFlags
	cmd := &cobra.Command{
		Use:     "audit",
		Short:   "List what a configuration allows and may be unsafe; exit code 1 if something of it is of high severity",
		Example: `  transom audit --config transom.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, file, err := src.load()
			if err != nil {
				return err
			}
			return gateway.Locate(gateway.Audit(cmd.Context(), cfg, places(file), cmd.OutOrStdout(), logger(slog.LevelError)), file)
		},
	}
	src.register(cmd)
	return cmd
}
