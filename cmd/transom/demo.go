package main

import (
	"log/slog"

	"github.com/spf13/cobra"

	"transom/cmd/transom/demo"
)

func demoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Run three example servers behind the proxy, with a page to click and commands to try",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return demo.Run(cmd.Context(), demo.Config{Out: cmd.OutOrStdout(), Log: logger(slog.LevelWarn)})
		},
	}
}
