// Package firehose is the upstream end: one websocket connection to a relay's (or a
// PDS's) com.atproto.sync.subscribeRepos, kept up for as long as Run runs.
//
// It reads messages, takes the two things out of each that it needs itself (the
// header's type and the body's seq) and hands the message on; it knows neither
// records nor JSON. Messages that follow each other share slabs of memory, which go back
// to a pool when the last frame in them has been given back with [Frame.Release]: gorilla's
// copy out of its read buffer is the only one.
//
// # Order and sequence
//
// Frames come in the relay's order. After a lost connection Run resumes after the last
// seq that it handed on. Relays may say nothing when a cursor cannot be honoured, so
// it looks at the numbers: a first seq above cursor+1 is a possible gap (counted, said
// once per connection); a first seq below the cursor, or a FutureCursor error, means
// that the relay counts anew: Run then takes the new sequence from its oldest frame and
// raises [Frame.Epoch], by which the receiver knows that seqs of before do not compare
// and that the same events may come again.
//
// # Hostile input
//
// A message that cannot be read as a frame is counted by reason and skipped. One that
// is larger than Config.MaxMessage is read to its end and dropped, not answered with
// a close: after a reconnect the relay would only send it again. Connections that
// fail, for whatever reason, are followed by another after a growing, jittered pause.
package firehose
