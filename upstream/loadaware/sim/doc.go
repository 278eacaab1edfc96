// Package sim runs the balancer's arithmetic, and published policies beside it, against simulated servers in virtual
// time: a discrete event simulation, seeded, without a clock and without goroutines. What it is for is deciding how the
// adaptive policy judges, and showing where it wins and where it loses; docs/balancing.md has the results.
//
// # The model
// Requests arrive in a Poisson process, whatever the servers do (open loop), each at one of several proxies that know
// nothing of one another. A proxy chooses a server at once; the request is there after the network's delay; the server has
// a number of slots and a queue in order of arrival. A request's need of service is drawn when it arrives, so that the
// k-th request of a seed is the same under every policy. Latency counts from the arrival at the proxy. A request that
// takes longer than the timeout is an error; its latency is the timeout.
//
// The set-ups that were published have servers of another kind: each has a part of a machine that it shares with others,
// serves all its requests at once, and drops those whose caller has given up. See [Machine].
//
// A server reports, in every answer, what transom/upstream/loadaware/report reports, by the same meter; on a machine, the use
// of its allocation over a second as its utilization. Policies of the literature get what they ask for: a utilization averaged
// over a second (kratos), or over ten as the rate is (A58), the median latency at the present number of requests in flight
// (Prequal).
//
// # Baselines
// They are written from the published descriptions, with the published constants: see baselines.go. The oracle knows the
// true remaining work of every server and sends each request where it will be done first.
package sim
