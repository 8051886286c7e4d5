// Package repo reads the messages of com.atproto.sync.subscribeRepos: what a commit did to
// which records, and the plain fields of the others.
//
// It stands between firehose, which hands it the body of a frame, and ingest. It is pure:
// bytes in, byte slices into the same bytes out, and no allocation once a Commit has been
// used a few times. What it returns is valid for as long as the body is left alone.
//
// A message that cannot be understood at all is an *Error. A commit that can be is
// delivered op by op: an op at fault carries its Fault, and its siblings do not suffer. A
// record is taken from the CAR in the message by the CID the op names, and its SHA-256 is
// checked. A CAR that is damaged serves the blocks before the damage.
//
// DIDs, collections, record keys and revs are checked to be ASCII that JSON need not
// escape, and bounded. Other text (time, handle, status, info) is bounded and valid UTF-8,
// no more: who writes it into JSON escapes it. Fields that are not needed are skipped,
// whatever they hold.
//
// Not checked: the signature of a commit, that the record tree in the CAR has the ops
// (prev and prevData, the "inductive firehose"), and that the commit block agrees with the
// message. All that is the relay's duty, and this daemon trusts its relay as every
// Jetstream does.
package repo
