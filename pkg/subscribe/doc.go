// Package subscribe is the downstream end: the HTTP endpoints, and one pull loop per
// subscriber over the event log.
//
// # A subscriber
//
// is a position in the log, a filter, and two goroutines: a reader (control frames,
// options updates) and a writer, which asks the log for the next chunk, picks the runs
// of events that the filter wants, and writes them straight from the chunk's shared
// bytes, as many as fit into one write of at most 256 KiB. There is no queue: a slow
// subscriber's position simply stays behind, is served from disk when it has left the
// window, and delays nobody.
//
// Replay and live are the same loop. A cursor is inclusive; one that is greater than
// the newest event means live, whatever the clock says; one older than the buffer
// means the buffer's start. With requireHello the cursor is looked at when the first
// options_update arrives, so that nothing is lost while it is on its way.
//
// # Who writes to the socket
//
// Only the writer. gorilla makes the handshake and reads; what it writes by itself
// (pongs, the close frames of its error paths) is caught by a wrapper that is put under
// it when the connection is hijacked, and goes out through the writer, between two
// writes, never in the middle of a message. The wrapper also ignores gorilla's write
// deadlines: one second for a control frame would break a blocked data write.
//
// # Who is ended
//
// Progress is bytes that the peer acknowledged, not writes that returned. It comes in
// steps: a kernel opens a full receive buffer again when a good part of it has been
// read, 64 KiB on loopback, and until then a slow reader looks like one that has
// stopped. So StallTimeout sets the slowest pace that is served: with 120 s and such a
// step some 550 bytes per second. A subscriber
// is ended when it makes none for StallTimeout while there is something to send, when
// retention passes its position, when it is silent to pings for as long although
// nothing is unsent, when it breaks the protocol, or sends an options_update that makes
// no sense. Where the socket takes it, a close frame says why.
//
// # What v1 clients do
//
// They send lists as repeated parameters, one joins them with commas: both work. Some
// connect with requireHello=true and a cursor of now, then send an options_update whose
// payload may be {}. Some send filters in the query and come back with the last time_us
// they saw, which they get again: a cursor is inclusive. permessage-deflate is offered
// by many and never accepted: compressing per consumer is what the shared zstd form is
// there to avoid.
package subscribe
