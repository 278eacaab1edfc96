package main

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/spf13/cobra"

	"transom/gateway"
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
			where := func(string) string { return "flags" }
			if file != nil {
				where = func(path string) string {
					line, column := file.Position(path)
					return fmt.Sprintf("%s:%d:%d", file.Name, line, column)
				}
			}
			return gateway.Locate(gateway.Explain(cmd.Context(), cfg, args[0], where, cmd.OutOrStdout(), logger(slog.LevelError)), file)
		},
	}
	src.register(cmd)
	return cmd
}
