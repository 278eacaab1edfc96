package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"transom/gateway"
)

// diffCommand compares files, where check --against asks a running transom.
func diffCommand() *cobra.Command {
	var serviceConfig string
	cmd := &cobra.Command{
		Use:     "diff OLD NEW",
		Short:   "List what a descriptor set changes for clients against an older one; exit code 1 if something of it breaks them",
		Example: `  transom diff bank-v1.binpb bank.binpb`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usageError{errors.New("name two descriptor sets: transom diff OLD NEW")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			changes, err := gateway.DiffFiles(args[0], args[1], serviceConfig)
			if err != nil {
				return err
			}
			breaking := 0
			for _, c := range changes {
				fmt.Fprintln(cmd.OutOrStdout(), c)
				if c.Breaking {
					breaking++
				}
			}
			if breaking > 0 {
				return fmt.Errorf("%d of %d changes break clients", breaking, len(changes))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "ok; %d changes, none of which breaks clients\n", len(changes))
			return nil
		},
	}
	cmd.Flags().StringVar(&serviceConfig, "service-config", "", "service config `FILE` with the HTTP rules of both, as http_rules.service_config has it")
	return cmd
}
