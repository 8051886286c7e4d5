// Package status answers GET /status: what the daemon carries, for whom and how late, for a
// page, a monitor or a person. It is public, so that nothing in it says who connects, from
// where or what for, nor what the upstream is called.
//
// A goroutine of its own follows the event log and counts what the chunks' indexes say of
// kinds and collections; what was sent comes from counters that there are anyway. Figures are
// made once a second and their JSON at most once for that, so that a request costs a copy of
// some KB, however many consumers there are. Measured on two vCPUs: counting takes 14 ns an event
// in chunks of ten, 3 ns in those of 2,000 that there are when the daemon catches up
// (BenchmarkCount); a request 6 µs (BenchmarkAnswer); the figures with as many collections as are
// ever counted, and the longer JSON of them, 0.4 ms a second (BenchmarkTick).
//
// Names of collections come from the network: no more than maxTracked are known at a time,
// between two looks at them twice as many, and the busiest stay; the rest is one sum.
package status
