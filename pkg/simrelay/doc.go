// Package simrelay is a simulated relay: it serves com.atproto.sync.subscribeRepos over a real
// websocket, with real repositories behind it, for tests, demonstrations and benchmarks.
//
// Everything comes from a seed: accounts, keys, records, times. The same Config gives the same
// stream, byte for byte; signatures too, since the keys take their nonce from the message
// (RFC 6979). Records are shaped and weighted like the live network's; their content is made up.
//
// There are three sources of frames:
//
//   - Live, the default: every frame changes a repository, its tree grows, the commit is signed
//     and carries the proofs of sync 1.1. It keeps Config.History frames for readers that are
//     behind.
//   - Loop, for measuring: Config.Loop frames are made by New and sent over and over. What goes
//     out for a seq is a function of the seq: time, rev, DID, record keys and marked bytes of the
//     records are rewritten, the CIDs of records and of the commit object computed again. The
//     trees and signatures are those of the first round, so that proofs no longer verify. Every
//     cursor can be served. BenchmarkLoop: 338,000 frames/s of 1.3 KB to one reader, on two
//     cores of a virtual machine, which it shares with the reader.
//   - Replay: captured messages under the seqs that they carry.
//
// What a correct consumer must deliver is known from making it, not from decoding it:
// [Relay.Expected] says it for any seq. Faults are deliberate: some break an op, which then is
// not expected any more; some put a bad message behind a good one; some belong to the
// connection.
package simrelay
