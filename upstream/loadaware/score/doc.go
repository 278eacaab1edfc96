// Package score is the arithmetic of the balancer: which of several endpoints gets the next call, from what is known of
// them. It reads no clock, starts no goroutine and knows nothing of gRPC; every function takes the time and the
// statistics, so that the balancer and the simulator run the same code.
//
// A [Node] holds the statistics of one endpoint and outlives connections and address lists. A [Fleet] holds what is
// computed over all nodes of one cluster. A [Table] is an immutable list of nodes a call may go to now; it chooses by one
// of the policies of [Policy]. A caller does
//
//	i := table.Choose(now, &rnd, pick)          // an index into the table's nodes, or -1
//	queue := table.Node(i).Begin(now)
//	... the call ...
//	table.Node(i).End(now, Sample{...})
//	table.Node(i).Observe(now, Report{...})     // if the server said how loaded it is
//
// # The adaptive policy
// The cost of giving a node one more call is an estimate of how long that call will take there, as a multiple of what it
// takes on a typical node of the fleet:
//
//	queue = in flight from here + in flight from others + 1
//	load  = queue / (concurrency · weight)
//	cost  = slowness · wait(load) + penalties
//
// "In flight from others" is the server's own count of requests in flight, less ours when it counted; it is drawn towards
// the fleet's mean as it gets old. Thus queue is what the server reported, plus what was sent since, less what was
// finished since. Concurrency is how many calls the server works at without waiting: its requests in flight divided by its
// utilization, if the two go together from report to report. Where they do not, as at a server that is bound by CPU and reports 1 while
// calls queue, it is the fleet's geometric mean. Slowness is the node's time per call without waiting relative to the fleet's median, shrunk towards 1 while
// few calls were seen, never below the time since a busy node last finished anything: that is what makes a hung node
// expensive before a single call to it has failed. An error rate above the fleet's is charged as time.
//
// Before costs are compared, nodes are filtered: ejected, hung, in probation or on trial with a call in flight, full.
// Where the filter leaves nothing, the least bad node serves (best effort).
//
// # Concurrency
// All methods may be called concurrently. Choosing takes no lock and allocates nothing; learning from a finished call
// gives up its sample rather than wait for another goroutine that is just learning. Floating point numbers are stored in
// atomics, so that readers see old or new values, never halves.
package score
