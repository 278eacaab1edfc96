package main

import (
	"github.com/spf13/cobra"

	"transom/gateway/configfile"
)

func schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration file, by which editors complete and check it",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := cmd.OutOrStdout().Write(configfile.Schema())
			return err
		},
	}
}
