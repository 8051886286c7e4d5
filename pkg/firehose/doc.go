// Package firehose is the upstream end: one websocket connection to a relay's (or a
// PDS's) com.atproto.sync.subscribeRepos, kept up for as long as Run runs: a [Client]. Of
// several relays that carry the same network, [Upstreams] keep one connected at a time.
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
//
// # Idle is alive
//
// A PDS may have nothing to send for days. Pings decide: a connection that answers them stays,
// one that does not is dead after 65 s. Config.LivenessTTL limits silence for who wants that.
//
// # Several upstreams
//
// Numbers mean nothing at another relay, there is no cursor by time, and relays do not have one
// order. What they share is the time that each frame says it has. So each standby is looked at
// once a minute, without a cursor: the seq of its newest frame and the median time of nine, since
// single clocks may be anywhere. When the active relay has not worked for
// UpstreamsConfig.FailoverAfter (a connection works if a frame came or a ping was answered; to be
// let in is nothing), the first other one that answers is resumed from the newest sample that is
// older by Margin, two minutes, than the newest frames that were dealt with. All that the one
// had sent by then the other has sent before that sample, if it was not late by more than Margin,
// and what comes twice the receiver must recognise, for two to four minutes. A relay that was
// active before can also be resumed where it was left: whatever the others have sent meanwhile,
// nothing before that place is missing.
//
//   - No sample is resumed from that was taken after the active relay had failed: whatever time
//     its frames have, the relay may have sent much since then.
//   - Samples and places are stored with the events ([Resume]), so that kill -9 loses neither.
//     A start without samples of a standby waits for them up to 5 s before it takes the first frame: the first
//     failover may be a moment away. One taken before a live stream begins may be resumed from
//     whatever its age, since nothing older is owed.
//   - Where no sample serves (all are too new because the stream was behind, or so old that too
//     much would come twice), the place is searched for: one can connect with any cursor, look at
//     the time of what comes, and halve. A dozen short connections find a minute of three days.
//     Nothing is lost by it as long as the relay still has it; if not, that is a gap, counted and
//     said. Taking all that such a relay has would be safe too, and send three days of events
//     again; waiting for the old one may be for ever. If a standby is idle, so that there is not
//     even a newest number, all that it has is little, and is taken.
//   - A standby that is further behind than what can be recognised is not gone over to until it
//     has caught up.
//   - A preferred relay is gone back to when two samples in a row succeeded and one is old enough.
//     If it fails again soon (ten minutes), twice as many are asked of it, up to 32: half an hour.
//
// What lost: a merge of all relays at all times, which costs their traffic several times over
// and, their orders being different, still needs to know what was sent; and the time of arrival
// instead of that in the frame, which is wrong for a stream that is behind, as after every
// restart. The cost: clocks that are wrong in most of nine frames in a row spoil a sample, and one that
// is ahead those behind it, for minutes, in which a place is searched for instead; a relay that is late by more than two
// minutes against another, and fails, loses what it was late by.
package firehose
