// Package event is the product's wire contract: what one event looks like to a
// consumer, byte for byte.
//
// An event is rendered once, while its firehose frame is decoded, into the form
// in which every v1 consumer receives it: a websocket text frame.
//
//	frame    = header payload
//	header   = 0x81 length            server frames are not masked, so these bytes
//	                                  are the same for every consumer
//	payload  = {"did":"<did>","time_us":<16 digits>,"kind":"<kind>",<body>}
//
//	commit   = "commit":{"rev":"…","operation":"create|update|delete",
//	           "collection":"…","rkey":"…"[,"record":{…},"cid":"…"]}
//	identity = "identity":{"did":"…"[,"handle":"…"],"seq":N,"time":"…"}
//	account  = "account":{"active":B,"did":"…","seq":N[,"status":"…"],"time":"…"}
//	sync     = "sync":{…the upstream object…}   not sent on v1, hence never framed
//
// time_us is not known before the sequencer has seen the event, but its width
// is: 16 digits from September 2001 to November 2286, and [Epoch] is the floor.
// So the payload is rendered with a gap and [SetCursor] fills it in. The order of
// keys is fixed: what stands before the record can be found by its length, which
// is how the second wire takes its parts out of a v1 frame without parsing JSON.
//
// # The v2 wire
//
// The message of an event on the v2 wire (network.bsky.jetstream.subscribeEvents, in the
// framing of xrpc.v1.json) is spliced out of the v1 payload, by [AppendMessage]:
//
//	{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#<kind>",
//	"seq":<time_us less Epoch>,"did":"<did>","time":"<RFC 3339, six decimals>",<body>}}
//
// where the body of a commit is what stands between the braces of "commit" above, and that
// of the others is "identity":{…}, "account":{…} or "sync":{…}, as above. Its length follows
// from that of the v1 payload, so a filter by size need not make it.
//
// # Characters and compression
//
// A DID, collection, rkey or rev that reaches this package has been checked by
// package repo against a character set that needs no escaping in JSON.
//
// [Compressor] makes the compressed form: one stand-alone zstd frame per payload,
// with a dictionary and its id. libzstd does it where cgo is available, klauspost's
// Go encoder where it is not; the two read each other's frames.
//
// The level, measured on 50 real events and on 3,730 made of real records, whose shapes the
// dictionary has learnt (make bench-dictionary on a busy machine, per event, share of the JSON):
//
//	                  real            of real records
//	libzstd 1     2.19 µs  0.3799     1.95 µs  0.3643
//	libzstd 3     2.94 µs  0.3771     3.03 µs  0.3612
//	klauspost    17.8  µs  0.4243    16.4  µs  0.4188
//
// It is 3. An event is compressed once and sent to many: at the 1,000 events/s of a busy
// network level 1 would save a thousandth of a core, and cost each consumer some 130 MB a day.
// What is not stored but made on demand, of the v2 wire or with another dictionary, is made
// again for every replay, and that at level 1.
package event
