//go:build race

package loadaware

const raceEnabled = true
