package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	adminv1 "transom/proto/transom/admin/v1"
)

func usageCommand() *cobra.Command {
	var req adminv1.GetUsageRequest
	cmd := adminCommand("usage", "Show what consumers use of a running transom",
		func(ctx context.Context, c adminv1.AdminClient) (*adminv1.Usage, error) { return usage(ctx, c, &req) }, writeUsage)
	cmd.Flags().StringVar(&req.Consumer, "consumer", "", "only of this `CONSUMER`")
	cmd.Flags().StringVar(&req.Api, "api", "", "only of this `API`")
	cmd.Flags().BoolVar(&req.Previous, "previous", false, "of the period that ended last, not of the one under way")
	return cmd
}

// usage asks for all pages.
func usage(ctx context.Context, c adminv1.AdminClient, req *adminv1.GetUsageRequest) (*adminv1.Usage, error) {
	var all *adminv1.Usage
	for {
		page, err := c.GetUsage(ctx, req)
		if err != nil {
			return nil, err
		}
		if all == nil {
			all = page
		} else {
			all.Rows, all.EndTime = append(all.Rows, page.GetRows()...), page.GetEndTime()
		}
		if req.PageToken = page.GetNextPageToken(); req.GetPageToken() == "" {
			all.NextPageToken = ""
			return all, nil
		}
	}
}

func writeUsage(w io.Writer, u *adminv1.Usage) error {
	if u.GetStartTime() == nil {
		_, err := fmt.Fprintln(w, "no period has ended yet")
		return err
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(tw, "from %s to %s\n", u.GetStartTime().AsTime().UTC().Format(time.DateTime), u.GetEndTime().AsTime().UTC().Format(time.DateTime))
	fmt.Fprintln(tw, "CONSUMER\tPLAN\tAPI\tCALLS\tERRORS\tREFUSED\tBYTES IN\tBYTES OUT\tTIME\tP50\tP95\tP99")
	for _, r := range u.GetRows() {
		plan := r.GetPlan()
		if plan == "" {
			plan = "-"
		}
		const tenth = 100 * time.Microsecond
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%d\t%d\t%d\t%d\t%v\t%v\t%v\t%v\n", printable(r.GetConsumer()), printable(plan), r.GetApi(), r.GetCalls(), r.GetErrors(), r.GetRefused(),
			r.GetBytesIn(), r.GetBytesOut(), r.GetTime().AsDuration().Round(time.Millisecond),
			r.GetP50().AsDuration().Round(tenth), r.GetP95().AsDuration().Round(tenth), r.GetP99().AsDuration().Round(tenth))
	}
	return tw.Flush()
}

// printable is s without what could move a terminal's cursor, or the table's columns.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '?'
		}
		return r
	}, s)
}
