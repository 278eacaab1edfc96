package gateway

import (
	"maps"
	"runtime/metrics"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/connectivity"

	"transom/upstream"
)

// sortedClusters are the Snapshot's clusters by name.
func (s *Snapshot) sortedClusters() []*upstream.Cluster {
	return slices.SortedFunc(maps.Values(s.clusters), func(a, b *upstream.Cluster) int { return strings.Compare(a.Name(), b.Name()) })
}

// debugStats are readings of the runtime.
type debugStats struct{ used uint64 }

// read takes what GOMEMLIMIT is about: all memory of the Go runtime but what was given back.
func (d *debugStats) read() {
	s := []metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s)
	d.used = s[0].Value.Uint64() - s[1].Value.Uint64()
}

// state are the metrics that are read off the gateway when they are asked for.
type state struct {
	g *Gateway

	build, ready, draining                                 *prometheus.Desc
	reloadOK, reloadAt, reloads, hash                      *prometheus.Desc
	connections, websockets, notAfter                      *prometheus.Desc
	clusterInFlight, clusterQueued, endpoints              *prometheus.Desc
	endpointHealthy, endpointInFlight, endpointUtilization *prometheus.Desc
	memoryUsed, memoryLimit, shed, refused                 *prometheus.Desc
	mirrored, mirrorsInFlight, acmeOrders                  *prometheus.Desc
}

var _ prometheus.Collector = (*state)(nil)

func newState(g *Gateway) *state {
	d := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &state{
		g:                   g,
		build:               d("transom_build_info", "Always 1; the version is a label.", "version"),
		ready:               d("transom_ready", "1 while clients should come."),
		draining:            d("transom_draining", "1 from the start of a drain."),
		reloadOK:            d("transom_config_last_reload_successful", "1 unless configuration or descriptors, as they were last read, are refused."),
		reloadAt:            d("transom_config_last_reload_success_timestamp_seconds", "When the last successful reload was."),
		reloads:             d("transom_config_reloads_total", "Reloads of configuration or descriptors; the start is one.", "result"),
		hash:                d("transom_config_hash_info", "Always 1; the labels tell the configuration in force, but for its secrets, and the schema: equal ones have equal hashes.", "config_hash", "schema_hash"),
		connections:         d("transom_connections", "Open connections by the HTTP that they speak; those that have said nothing yet count as 1.1, and so do WebSockets.", "listener", "network_protocol_version"),
		websockets:          d("transom_websocket_connections", "Open WebSockets.", "listener"),
		notAfter:            d("transom_tls_certificate_not_after_seconds", "When the listener's first certificate expires.", "listener", "subject"),
		clusterInFlight:     d("transom_cluster_calls_in_flight", "Calls under way at the cluster.", "transom_cluster"),
		clusterQueued:       d("transom_cluster_calls_queued", "Calls that wait for their turn.", "transom_cluster"),
		endpoints:           d("transom_cluster_endpoints", "Endpoints by state.", "transom_cluster", "state"),
		endpointHealthy:     d("transom_cluster_endpoint_healthy", "1 if the endpoint is connected and not ejected; only of clusters with up to 100 endpoints.", "transom_cluster", "endpoint"),
		endpointInFlight:    d("transom_cluster_endpoint_calls_in_flight", "Calls under way at the endpoint; only of clusters with up to 100 endpoints.", "transom_cluster", "endpoint"),
		endpointUtilization: d("transom_cluster_endpoint_utilization", "What the endpoint last reported; only of clusters with up to 100 endpoints.", "transom_cluster", "endpoint"),
		memoryUsed:          d("transom_memory_used_bytes", "Memory that counts towards the limit."),
		shed:                d("transom_calls_shed_total", "Calls turned away because of overload.", "reason"),
		refused:             d("transom_connections_refused_total", "Connections closed, or not taken, because there were too many.", "listener"),
		mirrored:            d("transom_mirrored_calls_total", "Copies of calls by the cluster that they went to: sent and ended well (ok) or not (failed), or never sent because there were too many at a time (dropped).", "transom_cluster", "result"),
		mirrorsInFlight:     d("transom_mirrored_calls_in_flight", "Copies of calls under way.", "transom_cluster"),
		acmeOrders:          d("transom_acme_orders_total", "Certificates asked for from an authority (tls.acme), and got or not; of the configuration in force.", "result"),
		memoryLimit:         d("transom_memory_limit_bytes", "The limit (GOMEMLIMIT), 0 for none."),
	}
}

// Describe implements prometheus.Collector. What is collected depends on the configuration.
func (s *state) Describe(chan<- *prometheus.Desc) {}

// maxEndpointSeries is the size of a cluster above which its endpoints are counted, not listed.
const maxEndpointSeries = 100

// Collect implements prometheus.Collector.
func (s *state) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	if s.g.view.Load() == nil { // nothing is in force yet
		return
	}
	bit := map[bool]float64{true: 1}
	gauge(s.build, 1, Version())
	gauge(s.ready, bit[s.g.Ready()])
	gauge(s.draining, bit[s.g.draining.Load()])
	gauge(s.reloadOK, bit[s.g.loads.ok.Load()])
	gauge(s.reloadAt, float64(s.g.loads.at.Load())/1e9)
	v := s.g.view.Load()
	gauge(s.hash, 1, v.configHash, v.schemaHash)
	out <- prometheus.MustNewConstMetric(s.reloads, prometheus.CounterValue, float64(s.g.loads.good.Load()), "success")
	out <- prometheus.MustNewConstMetric(s.reloads, prometheus.CounterValue, float64(s.g.loads.bad.Load()), "failure")
	out <- prometheus.MustNewConstMetric(s.shed, prometheus.CounterValue, float64(s.g.overload.byCalls.Load()), "calls")
	out <- prometheus.MustNewConstMetric(s.shed, prometheus.CounterValue, float64(s.g.overload.byMemory.Load()), "memory")
	used, limit := memory()
	gauge(s.memoryUsed, float64(used))
	gauge(s.memoryLimit, float64(limit))
	var issued, failed int64
	for _, i := range v.issuers {
		good, bad := i.Orders()
		issued, failed = issued+good, failed+bad
	}
	out <- prometheus.MustNewConstMetric(s.acmeOrders, prometheus.CounterValue, float64(issued), "success")
	out <- prometheus.MustNewConstMetric(s.acmeOrders, prometheus.CounterValue, float64(failed), "failure")
	seen := map[string]bool{}
	for _, l := range v.servers {
		name := l.server.Name()
		if seen[name] { // two listeners may be given one name
			continue
		}
		seen[name] = true
		open := l.server.Connections()
		gauge(s.connections, float64(open.HTTP1), name, "1.1")
		gauge(s.connections, float64(open.HTTP2), name, "2")
		if l.cfg.HTTP3 {
			gauge(s.connections, float64(open.HTTP3), name, "3")
		}
		out <- prometheus.MustNewConstMetric(s.refused, prometheus.CounterValue, float64(l.server.Refused()), name)
		gauge(s.websockets, float64(open.WebSockets), name)
		if l.certs != nil {
			if at, subject := l.certs.notAfter(); !at.IsZero() {
				gauge(s.notAfter, float64(at.Unix()), name, subject)
			}
		}
	}
	for _, c := range s.g.mirrors.Counts() {
		for result, n := range map[string]int64{"ok": c.OK, "failed": c.Failed, "dropped": c.Dropped} {
			out <- prometheus.MustNewConstMetric(s.mirrored, prometheus.CounterValue, float64(n), c.Cluster, result)
		}
		gauge(s.mirrorsInFlight, float64(c.InFlight), c.Cluster)
	}
	s.g.Snapshot(func(snap *Snapshot) {
		for _, c := range snap.sortedClusters() {
			gauge(s.clusterInFlight, float64(c.InFlight()), c.Name())
			gauge(s.clusterQueued, float64(c.Queued()), c.Name())
			endpoints := c.Endpoints()
			states := map[connectivity.State]int{connectivity.Ready: 0}
			listed := map[string]bool{}
			for _, e := range endpoints {
				states[e.State]++
				if len(endpoints) > maxEndpointSeries || e.Vanished != 0 || listed[e.Address] {
					continue
				}
				listed[e.Address] = true
				gauge(s.endpointHealthy, bit[e.State == connectivity.Ready && !e.Ejected], c.Name(), e.Address)
				gauge(s.endpointInFlight, float64(e.InFlight), c.Name(), e.Address)
				gauge(s.endpointUtilization, e.Utilization, c.Name(), e.Address)
			}
			for st, n := range states {
				gauge(s.endpoints, float64(n), c.Name(), strings.ToLower(st.String()))
			}
		}
	})
}
