package cases

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// lateLine checks two messages and an error, each a line: the last line has a member that no message's line has, and that no
// message can have, or all lines are in an envelope.
func lateLine(a Answer) error {
	ls := lines(a.Body)
	if len(ls) != 3 {
		return fmt.Errorf("%d lines, not 3", len(ls))
	}
	var keys []string
	for i, l := range ls {
		var m map[string]json.RawMessage
		if err := json.Unmarshal([]byte(l), &m); err != nil {
			return fmt.Errorf("line %d: %w", i+1, err)
		}
		if len(m) != 1 {
			return fmt.Errorf("line %d has %d members", i+1, len(m))
		}
		for k := range m {
			keys = append(keys, k)
		}
	}
	enveloped := keys[0] != "count"
	if keys[2] == keys[0] || !enveloped && !strings.HasPrefix(keys[2], "@") {
		return fmt.Errorf("the error is not told from a message: %q", keys)
	}
	if !strings.Contains(ls[2], "gone") {
		return errors.New("the last line has no error")
	}
	return nil
}

// lateArray checks that an array which failed is no array, but ends in the error.
func lateArray(a Answer) error {
	body := strings.TrimSpace(string(a.Body))
	if !strings.HasPrefix(body, "[") || json.Valid([]byte(body)) {
		return errors.New("no array, or one that looks complete")
	}
	if !strings.Contains(body, `"gone"`) {
		return errors.New("the array does not tell of the error")
	}
	return nil
}
