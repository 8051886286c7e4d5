// Package subscribe is the downstream end: the HTTP endpoints, and who gets what of the
// event log, when.
//
// # A subscriber
//
// is a position in the log and a filter. There is no queue: what it gets are runs of
// wanted events, written straight from the shared bytes of chunks, as many as fit into one
// write of at most 256 KiB. A slow subscriber's position simply stays behind, is served
// from disk when it has left the window, and delays nobody.
//
// Replay and live are the same loop. A cursor is inclusive; one that is greater than
// the newest event means live, whatever the clock says; one older than the buffer
// means the buffer's start. With requireHello the cursor is looked at when the first
// options_update arrives, so that nothing is lost while it is on its way.
//
// # Two wires
//
// What differs between them is where a consumer comes in (options.go, xrpc.go), the bytes of
// an event (encoding.go), and a few words of farewell; in between there is one path. The
// index of a chunk says all that filters of either wire ask for, the length of a v2 message
// included.
//
// A chunk holds the v1 text and its compression with the primary dictionary. Every other
// pair of wire and dictionary is derived from those: for a whole chunk, once, into the event
// log's cache, where everybody finds it as long as it is in use; or, where a replay wants
// little of a block on disk, for its own events only. A v2 message is spliced out of the v1
// text and costs a tenth of a microsecond, its compression as much as in ingest; nothing is
// done, or kept, as long as nobody asks. Storing a third form lost: half as much disk again,
// for a few consumers.
//
// The v2 wire is strict where v1 is lenient: a parameter that is none, or makes no sense, is
// refused, in the XRPC envelope, with 400 for what is final and 503 for what may pass. A seq
// that retention has passed is refused, since its consumer counts on having everything; a
// time, which says from when on and not which, is moved to the buffer's start and told so in
// the first frame.
//
// # Who is woken
//
// Who has got everything parks. The fan-out follows the log; for each chunk it asks the
// interest index, which knows every subscriber by what its filter wants, and writes to those
// whom the chunk concerns, in rounds that carry more events the more there is to do. What
// a chunk costs those who do not want it is a few lookups for all of them together.
//
// # Who writes to the socket
//
// One goroutine at a time: writing to a subscriber is a role that is taken from a resting
// state by compare-and-swap (writer.go). Whoever has it never waits for the socket: for a
// subscriber that is caught up that is one of the fan-out's workers, and the whole write is
// over before it turns to the next. Where a socket is full, or there is a replay to do, the
// role goes to a goroutine that lasts as long as that. What it has yet to write while it
// waits for room comes out of a budget; when that is used up it keeps nothing but what is
// left of one message, and looks the rest up again. To read from disk it takes one of a few
// turns, and of what is there only as much as its filter needs (Filter.need): nothing of a
// block, its excerpt, or all. An excerpt is good for the filter that it was read for, so that an
// options update in the middle of one has the block read again. So memory does not grow with how many are slow or replay. A subscriber at rest is
// one goroutine, which reads, and some 8 KB.
//
// The obvious way, a goroutine for each subscriber's writes that a channel wakes, costs as
// much per write, since that is nearly all the kernel's, but 4 KB more for each subscriber
// and the payloads that each blocked write holds.
//
// TLS knows no write that does not wait, so there a write is copied, 32 KiB at most, and
// a goroutine waits for it.
//
// gorilla makes the handshake and reads; what it writes by itself (pongs, the close frames
// of its error paths) is caught by a wrapper that is put under it when the connection is
// hijacked, and goes out through the role, never in the middle of a message. The wrapper
// also ignores gorilla's write deadlines: one second for a control frame would break a
// blocked data write.
//
// # Without a websocket
//
// GET /subscribe without an upgrade is answered with a stream: server-sent events for who
// accepts text/event-stream, and otherwise NDJSON. It is the same subscriber. What differs is
// the framing of its encoding, which is derived once per chunk for everybody, and its socket,
// which is the response (response.go): the handler waits, and whoever has the writing role
// writes to it, 32 KiB at most, and flushes. Where the kernel has nothing left of what was
// written before, and the connection is not shared, that is over at once and done on the spot;
// else it is copied, and a goroutine waits, as on TLS. A delivery takes 1.7 times the CPU of
// one by websocket (BenchmarkFanoutStreams): net/http writes what is larger than 4 KB in two
// pieces. A subscriber at rest is two goroutines and 35 to 40 KB, most of it net/http's,
// measured with 1,000 on HTTP/1.1.
//
// The id of an event is its cursor. Last-Event-ID is what a consumer has got, so it gets what
// follows, and it counts more than the cursor in the URL, which an EventSource sends again
// whenever it comes back. When to come back is said first, each time another.
//
// What only a websocket can do is refused and not passed over: requireHello, which waits for
// a message, and compression, since who asked for it would take the text for a fault. A
// handshake that has lost its Upgrade on the way, which is what a proxy does that was not told
// of websockets, gets 426 instead of a stream that no websocket client reads.
//
// Content-Encoding is never used. A stored compressed event has no end of line, and its
// dictionary is one that no browser has; any other form would be made for each consumer, which
// is what the shared form is there to avoid. Who wants fewer bytes takes a websocket.
//
// Where nothing was written for PingInterval a blank line goes out, or a comment. It is not
// answered, but acknowledged, or not. So nobody is ended for being silent; who is gone has
// something unsent from then on.
//
// At shutdown a stream just ends, which an EventSource takes as a reason to come back. Why the
// server ends it otherwise, server-sent events say in an event of the type error. Among lines
// there is no place for that which a program would not take for an event of the network, and
// a trailer is what nearly nobody looks at; so such a stream breaks off without its proper
// end, which clients report (curl as error 18 or 92), and the reason is counted.
//
// On HTTP/2 streams share a connection, so what that takes is not what a stream takes. As long
// as a write of a stream's waits, its progress is its own bytes, which are taken as the peer
// opens the stream's window and the connection has room: one stream that is read does not keep
// another that is not. Its steps are then those in which the client opens the window, which
// some do by megabytes. Who stalls has its stream reset. If that does not end it, since
// nothing passes through the connection at all, the connection is ended after StallTimeout
// more. Where no write waits, the connection's own acknowledgements count, as for everybody.
//
// net/http does not tell which of its connections carries a subscriber; Config.Streaming does.
//
// # Who is ended
//
// Progress is bytes that the peer acknowledged, not writes that returned. It comes in
// steps: a kernel opens a full receive buffer again when a good part of it has been
// read, 64 KiB on loopback, and until then a slow reader looks like one that has
// stopped. So StallTimeout sets the slowest pace that is served: with 120 s and such a
// step some 550 bytes per second. A subscriber
// is ended when it makes none for StallTimeout while there is something to send, when
// retention passes its position, when it is silent to a websocket's pings for as long
// although nothing is unsent, when it breaks the protocol, sends an options_update that makes
// no sense, or one for which the filters of all together have no room. Where the socket takes
// it, a close frame says why.
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
