package sim

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"transom/upstream/loadaware/score"
)

// tune changes parameters by name: "WaitPower=3,Warmup=10s".
func tune(p score.Params, change string) (score.Params, error) {
	v := reflect.ValueOf(&p).Elem()
	for kv := range strings.SplitSeq(change, ",") {
		if kv == "" {
			continue
		}
		name, text, _ := strings.Cut(kv, "=")
		f := v.FieldByName(name)
		if !f.IsValid() {
			return p, fmt.Errorf("parameter %q is not known", name)
		}
		if f.Type() == reflect.TypeFor[time.Duration]() {
			d, err := time.ParseDuration(text)
			if err != nil {
				return p, fmt.Errorf("parameter %s: %w", name, err)
			}
			f.SetInt(int64(d))
			continue
		}
		x, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return p, fmt.Errorf("parameter %s: %w", name, err)
		}
		switch f.Kind() {
		case reflect.Int:
			f.SetInt(int64(x))
		case reflect.Float64:
			f.SetFloat(x)
		default:
			return p, fmt.Errorf("parameter %s cannot be set", name)
		}
	}
	return p, nil
}
