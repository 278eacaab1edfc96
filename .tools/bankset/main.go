// Command bankset writes the descriptor set of the demo's bank to the file that its argument names.
package main

import (
	"fmt"
	"os"

	"transom/cmd/transom/demo/bank"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: bankset FILE")
		os.Exit(2)
	}
	if err := os.WriteFile(os.Args[1], bank.DescriptorSet(), 0o644); err != nil {
		fmt.Fprintln(os.Stderr, "bankset:", err)
		os.Exit(1)
	}
}
