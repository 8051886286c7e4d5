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
//     behind, and makes frames a bounded lead ahead of the fastest reader, or at Config.Rate.
//     Config.Shuffle and FirstSeq make it another relay of the same network.
//   - Loop, for measuring: Config.Loop frames are made by New and sent over and over. What goes
//     out for a seq is a function of the seq: seq, time, DID, revs, record keys, and the times and
//     references in records are overwritten in a copy, at their old length; the CIDs of records and
//     of the commit object are computed again. Every block has its CID, but trees and signatures
//     are those of the first round: proofs do not verify. Post texts repeat with the loop. Every
//     cursor from the first seq on can be served.
//   - Replay: captured messages under the seqs that they carry.
//
// Size and speed, to one reader that discards, over loopback, reader and relay on the same two
// shared cores of a virtual machine (BenchmarkServe; CPU of `simrelay` alone, from
// /proc/PID/stat, the machine busy with other work):
//
//	             Records  frame    frames/s  MB/s   CPU per frame
//	Loop 3000          0  1.7 KB    420,000   720   2.1 µs
//	Loop 3000       1000  4.0 KB    256,000  1030   3.9 µs
//	Live               0  2.7 KB     11,800    28   73 µs
//
// The 50 captured frames of the live network have 5.4 KB in the mean; with Config.Records of 200
// the loop's have 3.1 KB, with 3000 4.5 KB. Without an allocation, making a frame of the loop takes
// 1.4 µs, most of it memory and SHA-256; the rest is the kernel's.
//
// What a correct consumer must deliver is known from making it, not from decoding it:
// [Relay.Expected] says it for any seq. Faults are deliberate: some break an op, which then is
// not expected any more; some put a bad message behind a good one; some belong to the
// connection.
package simrelay
