// Package bank is the demo's backend: bank.v1 in memory.
package bank
