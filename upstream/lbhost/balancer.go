package lbhost

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc/balancer"
	"google.golang.org/grpc/serviceconfig"
)

// ParseBalancer reads the loadBalancingConfig of gRPC service config, [{"policy": {…}}, …], and returns the first policy
// that is registered, with its settings. Policies must be registered with grpc-go's package balancer.
func ParseBalancer(config []byte) (balancer.Builder, serviceconfig.LoadBalancingConfig, error) {
	var list []map[string]json.RawMessage
	if err := json.Unmarshal(config, &list); err != nil {
		return nil, nil, fmt.Errorf("load balancing config: %w", err)
	}
	for _, entry := range list {
		if len(entry) != 1 {
			return nil, nil, fmt.Errorf("load balancing config: each entry must name one policy, not %d", len(entry))
		}
		name := slices.Collect(maps.Keys(entry))[0]
		b := balancer.Get(name)
		if b == nil || b.Name() != name {
			continue
		}
		parser, ok := b.(balancer.ConfigParser)
		if !ok {
			return b, nil, nil
		}
		settings, err := parser.ParseConfig(entry[name])
		if err != nil {
			return nil, nil, fmt.Errorf("load balancing config: %s: %w", name, err)
		}
		return b, settings, nil
	}
	return nil, nil, errors.New("load balancing config: no policy in it is known")
}
