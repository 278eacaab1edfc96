package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"transom/gateway/configfile"
)

// errNotFormatted is what fmt --check says of files that it would change.
var errNotFormatted = errors.New("not in canonical form: transom fmt FILE")

func fmtCommand() *cobra.Command {
	var check bool
	cmd := &cobra.Command{
		Use:   "fmt [FILE...]",
		Short: "Write configuration files in their canonical form; without a file, standard input to standard output",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				data, err := io.ReadAll(cmd.InOrStdin())
				if err != nil {
					return err
				}
				out, err := configfile.Format("standard input", data)
				if err != nil {
					return err
				}
				if check {
					if !bytes.Equal(out, data) {
						return errNotFormatted
					}
					return nil
				}
				_, err = cmd.OutOrStdout().Write(out)
				return err
			}
			var errs []error
			changed := false
			for _, path := range args {
				did, err := format(path, check)
				if err != nil {
					errs = append(errs, err)
				}
				if did {
					changed = true
					fmt.Fprintln(cmd.OutOrStdout(), path)
				}
			}
			if check && changed {
				errs = append(errs, errNotFormatted)
			}
			return errors.Join(errs...)
		},
	}
	cmd.Flags().BoolVar(&check, "check", false, "change nothing; name the files that are not in canonical form, and exit with 1 if there are any")
	return cmd
}

// format formats a file, unless it is only to be looked at, and reports whether it is another then. The file is replaced in one
// step: a transom that runs may be reading it.
func format(path string, check bool) (changed bool, err error) {
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return false, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	out, err := configfile.Format(path, data)
	if err != nil || bytes.Equal(out, data) || check {
		return err == nil && !bytes.Equal(out, data), err
	}
	info, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".fmt-*")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.Remove(tmp.Name()) }() // unless it was renamed
	_, err = tmp.Write(out)
	err = errors.Join(err, tmp.Chmod(info.Mode().Perm()), tmp.Close())
	if err != nil {
		return false, err
	}
	return true, os.Rename(tmp.Name(), path)
}
