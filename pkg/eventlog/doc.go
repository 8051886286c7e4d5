// Package eventlog is the heart of Slipstream: the ordered log of the last day's
// events, in memory and on disk, that ingest appends to and every consumer reads.
//
// # One idea
//
// A [Chunk] is a short run of consecutive events, sealed once, and the unit of
// everything: committed in one batch, broadcast by reference, replayed as it is. The
// log neither looks into payloads nor makes them; it knows each event's [Entry]:
// cursor, kind, DID, collection, and where the event ends in each payload.
//
// # One reader
//
// A reader's position is a cursor, and [Log.Next] is the only way to read: it returns
// the chunk that holds the first event after that position, from the window in
// memory if it is there, from Pebble if it is older. There is no replay mode. A
// reader that is caught up gets a channel that closes at the next append.
//
// # Durable before visible
//
// [Log.Append] writes chunks and the upstream checkpoint in one synced batch and only
// then shows them to readers. So what anyone has seen stays on disk under the same
// cursor until retention takes it, and the checkpoint is never ahead of the events.
// A crash between the two loses nothing: the relay is asked again from the checkpoint.
//
// # Layout
//
// Keys, all big-endian so that Pebble's order is the log's:
//
//	"FORMAT"                    the version of this layout, one byte
//	'e' <cursor, 8 bytes> part  where the cursor is that of a chunk's last event:
//	                      'i'   header and index, see chunk.go
//	                      'j'   json: v1 text frames, back to back, packed as one zstd frame
//	                      'x'   extra: payloads that v1 does not have
//	                      'z'   zstd: v1 binary frames, back to back
//	                            and beside or without a chunk
//	                      't'   retention has removed everything up to here; no value
//	                      'u'   the checkpoint when this was the last event; the newest counts
//
// Keyed by its last event, a chunk is found by one SeekGE of position+1, and several
// small ones can later be merged into the last one's key without moving a cursor. The
// index has a key of its own, so that a filter that wants nothing of a chunk costs no
// read of its payloads. An empty payload has no key. The greatest cursor ever given out
// is the last key's, since retention leaves one.
//
// Why so: every append writes behind all keys there are. What Pebble flushes therefore
// overlaps nothing older and is moved to the bottom of its tree as it is, not read and
// written again: an event is written to disk twice, into the WAL and into a table. (Where
// events come faster than Pebble moves tables, it merges a few that wait.) With a range of
// keys for each part, or a key that every append overwrites, each flush overlaps the whole
// store (measured: a quarter of all CPU went into compaction). And because hardly a table
// is rewritten, compressing is worth doing once, before: the JSON of a few hundred events
// shrinks to a quarter in 0.8 µs each, and the tables stay uncompressed. That beat Snappy
// in the tables, which leaves the JSON at two fifths.
//
// # The store's faults
//
// Too little free space is a state: Append waits, saying so once, until there is room
// again, because Pebble's answer to ENOSPC in its WAL is fatal to the handle. Any
// other fault of Pebble's, its Fatalf included, comes out of [Log.Run] as an error.
package eventlog
