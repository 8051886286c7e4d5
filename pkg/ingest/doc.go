// Package ingest is the pipeline from the relay's frames to the log.
//
//		firehose ─ queue ─ decode ×N ─ sequence ─ encode ×N ─ commit ─ eventlog
//		          frames    batches      runs       chunks
//
//	  - Decode workers take what the queue holds, a batch each: parse, check every
//	    record against its CID, render every event (package event) with a gap for its
//	    cursor. The frames' memory goes back as soon as they are rendered.
//	  - The sequencer, one goroutine, takes the batches in the relay's order, drops
//	    duplicates, gives every event its cursor and copies it to the end of the current
//	    run. It seals a run when the linger is over or the run is full, and lets it grow
//	    while every other run is still on its way to disk: that is the group commit.
//	  - Encode workers compress each event of a run and build the chunk.
//	  - The committer, one goroutine, appends chunks in order together with the
//	    checkpoint: the seq of the last frame that they cover.
//
// Order is kept without numbers: a worker that takes work also puts it on an ordered
// channel, under the same lock, and the next stage takes from that channel and waits
// for each piece to be done. Batches and runs are fixed in number, and
// a frame is bounded in what it may become, so memory is bounded and a slow stage holds up
// the ones before it, down to the socket. Nothing here ever waits for a consumer.
//
// # What becomes of bad input
//
// An op that cannot be delivered is dropped and counted by reason, its siblings go
// out. A frame that cannot be parsed is dropped and counted; neither stops the stream.
//
// # Duplicates
//
// Within one sequence of the relay's numbers (one firehose.Frame.Epoch) a seq that is
// not greater than the last is a duplicate. Across a change of sequence or of relays, or when
// the operator overrides the cursor, exact (kind, DID, rev) is looked up among a bounded
// number of the most recent frames, read from the log's tail at start: 65,536, and 262,144
// where there are several upstreams, four minutes of 1,000 frames/s. A lower rev is no
// duplicate: repos are restored from backups. Identity and account events have no rev
// and may come twice.
//
// What is known of the upstreams, and up to which time they were taken in, is stored in the
// checkpoint ([Checkpoint]) with the events. That time is the median of what the last frames say,
// since single clocks may be anywhere.
//
// Order within a repo holds across a switch, because each relay has it and what was sent is
// dropped. Only a stream that began live could grow backwards at its first failover, by what the
// other relay sends late: for its first minutes the rev that each repo began with is remembered.
//
// # What is left out
//
// Ops of collections that Config.Filter excludes are dropped while the commit is read: their
// records are neither looked for in the CAR nor hashed. Such a frame costs what its envelope
// takes to read, 0.4 of decoding, and nothing after that; it moves the position like any other.
//
// # What it costs, and what lost
//
// Memory is copied on purpose at three places: out of gorilla's buffer into a slab, out
// of a batch into the run (only the sequencer knows which events go out, and in which
// chunk), and out of scratch into the chunk, which lives on and must be exact in size.
// Nothing that outlives a frame points into it. Names that repeat are not interned: a
// chunk has each collection once and each run of one DID once, and whatever reads it
// uses their numbers.
//
//   - Batches of 64 frames and runs of 256 KiB are where handing over stops to show in a
//     profile. Runs are twice that, because each becomes a block of the log as it is, and
//     what a replay does for each block it then does half as often. Six of them bridge the
//     time that one is synced; four did not, and twelve held 25 MB more for 3 % of speed.
//   - One goroutine for each stage would be simpler, but compressing alone is half of
//     all the work. One for each frame from decode to chunk would not keep order.
//   - A cgo call that compresses a whole run would save crossings into C and need C of our
//     own. gozstd's calls keep their contexts; that was the large part.
//   - The clock is read once a batch: cursors within one grow by a microsecond each.
//
// # Shutdown
//
// When Run's context ends the upstream stops first; everything that was read is then
// decoded, sequenced, encoded and committed before Run returns.
package ingest
