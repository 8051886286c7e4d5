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
// A reader's position is a cursor, and [Log.Next] is the way to read: it returns
// the chunk that holds the first event after that position, from the window in
// memory if it is there, from Pebble if it is older ([Log.NextUnless] passes over what the
// reader has no use for). There is no replay mode. A
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
//	"FORMAT"                    the version of this layout, one byte: 4
//	'e' <cursor, 8 bytes> part  where the cursor is that of a chunk's last event:
//	                      'f'   a fresh chunk, as it came, in one record: see batch.fresh
//	                            or a block, which is what readers find:
//	                      'h'   head: the summary at the front of the index, see chunk.go, and
//	                            an excerpt, see excerpt.go
//	                      'i'   the rest of the index
//	                      'j'   json: v1 text frames, back to back, packed as one zstd frame
//	                      'x'   extra: payloads that v1 does not have
//	                      'z'   zstd: v1 binary frames, back to back
//	                            and beside or without either
//	                      '~'   the state when this was the last event: see state.encode
//
// Keyed by its last event, a block is found by one SeekGE of position+1, which finds its head: a
// filter that wants nothing of a block reads that, some 9 KB, and no more. An empty payload has
// no key. The newest state counts, be it a key of its own or in the last fresh record. The
// greatest cursor ever given out is the last key's, since retention leaves the state that stands
// there.
//
// A store of format 3 is taken over as it is: its blocks have no heads, and the whole index at
// 'i'. What is written from then on has heads, and the store is one of format 4.
//
// # Excerpts
//
// On the v1 wire identity and account events pass every filter of collections. They are a
// hundredth of all, so that there is hardly a block without one, and for a collection that is as
// rare the whole zstd payload of each block was read, 200 KB, for the sake of ten events. Now
// the head has these events, and those of the block's rarest collections, a second time: up to a
// sixteenth of the payload, which costs some 8 bytes an event. Who wants nothing else reads heads
// only: two shared cores pass 22 million events a second for one rare collection plain, and 39
// compressed, where it was 5.6 and 5.4. One repo's events are not looked for in excerpts: most
// blocks have nothing of it.
//
// What lost, reckoned: the zstd payload in pieces, of which each of ten events would still have
// needed another one; and an index of rare collections over many blocks, which spares nothing
// where every block has something.
//
// # Blocks
//
// Twenty milliseconds of a quiet network are ten events, which neither compress well nor
// are read fast. So small chunks are first stored as they came, and when a thousand events
// have gathered (or 512 KiB of JSON, or a twenty-fourth of the retention) the append that
// completes them writes one block of them all and deletes what it is made of, in the same
// batch. Chunks that are as large as half a block are stored as blocks at once: nothing is
// merged while the log catches up. What is in no block yet is always in the window, so
// readers of the store find only blocks, and no key that they hold disappears but by
// retention.
//
// Merging is done by Append, every other second at 500 events/s, and takes a few
// milliseconds. A background goroutine would have to be kept in step with appends and with
// retention, and would save one commit in a hundred those milliseconds.
//
// # What is written, and how often
//
// Every append writes behind all keys there are. What Pebble flushes therefore overlaps
// nothing older and is moved to the bottom of its tree as it is, not read and written again:
// a large chunk is written to disk twice, into the WAL and into a table. (Where events come
// faster than Pebble moves tables, it merges a few that wait.) A small one is written a
// third time, when it is merged, but only into the WAL: its fresh record and the deletion of
// that meet in the same memtable, and nothing of either reaches a table. For that, the log
// ends memtables itself, where nothing fresh is left, and deletes by SingleDelete, which
// leaves no tombstone. TestWrittenTwice holds it to 2 and 3.
//
// What lost: a range of keys for each part, or a key that every append overwrites, makes
// each flush overlap the whole store (a quarter of all CPU went into compaction). Deleting
// fresh records by DeleteRange leaves a tombstone in every table, and Pebble rewrites a table
// to be rid of it. Ends of memtables left to Pebble leave fresh records in tables.
//
// # What Pebble's settings bought
//
// Measured one by one, catching up with a million events and replaying them (two cores, what
// is read in the page cache; bench-replay.sh):
//
//   - No compression of tables, since payloads are compressed before: the JSON of a block
//     once, to a quarter in 0.8 µs an event. Snappy in the tables on top of it saves a tenth
//     of the disk, and takes a seventh of the speed of plain replays. Higher levels of zstd for
//     the JSON do not make it smaller.
//   - Memtables of 8 MiB, tables of 6.5. With 4 MiB nothing is slower, and 9 MB less
//     resident, but a day has twice as many tables. Pebble keeps 0.5 KB of memory for each:
//     2.5 MB for a day of 500 events/s.
//   - Blocks in tables stay at 4 KiB, which every value exceeds: each has one of its own. 64
//     KiB made no difference.
//   - A block cache of 8 MiB. It only needs to hold the blocks that say where others are,
//     since what is read for a replay is kept by this package's cache: 1 MiB made none, 64
//     MiB made filtered replays a tenth faster. (Both before heads and excerpts.)
//   - L0CompactionThreshold 2 made no difference to Pebble's 4 as long as tables do not
//     overlap; it keeps the few that wait few.
//   - Separators between the blocks of a table that are not shortened, and a limit for each seek
//     forward: see comparer and store.each. Pebble's way from one head to the next would
//     otherwise lead through the payloads between them, and did: one repo is found at 93 M
//     events/s, where it was 11.
//   - Values in files of their own (value separation) would leave the heads side by side. Not
//     taken: that much faster it could not be, and Pebble's space accounting, its Excise and our
//     checks for damage would have to be trusted with a second kind of file.
//
// # Lending
//
// What is read for a replay is shared by those who replay the same, and used again for the
// next block when the cache and the last of them have let go of it (loan.go). Allocating half
// a megabyte for every thousand events, clearing and collecting it was a third of what a plain
// replay cost, and two fifths of a compressed one. Borrow and Return must therefore pair;
// under the race detector what is returned is overwritten, so that who reads on is seen. A
// larger GOGC lost: it buys a part of that with memory. A pool that the collector empties
// (sync.Pool) would not know when the last reader has gone, either.
//
// # Retention
//
// Three things remove the oldest events: their age, the size of the store, and the free
// space of the disk. What a stretch of log takes is known from two indexes, since each has
// the sum of all before it; the disk is not asked, because space comes back later. A cut
// is one edit of Pebble's manifest (Excise) and a record of how far it went. What limits the
// age is in ageLimit. A clock of retention's own, that follows the machine's slowly, lost:
// after a week away it would have kept four days of new events.
//
// # The store's faults
//
// A full disk is a state, not a fault. Below a floor of free space Append waits, saying so
// once, until there is room again. And because others can fill a disk between the look at
// it and the write, Pebble never hears of ENOSPC, its answer to which is fatal to the
// handle: the file system below it lets the write wait, and has a ballast to throw off. (A
// handle that is closed and opened again lost: what was under way would have to be undone
// beside a handle that cannot be closed, since the fault leaves its locks held.)
// Any other fault of Pebble's, its Fatalf included, comes out of [Log.Run] as an error.
package eventlog
