// Package train makes the zstd dictionaries that events are compressed with.
//
// An event is sent as a frame of its own, 550 bytes of JSON or so: what zstd knows before the
// first byte is nearly all that it can use. A [Source] gathers events, a [Trainer] makes
// dictionaries of them, and says what each makes of events that it has not learnt from.
//
//	events -> forms, by weight -> pieces -> content -> entropy tables, by libzstd -> dictionary
//
// A form is an event in which what differs from event to event is blanked at its width: DIDs,
// CIDs, TIDs, times, texts. An event of such a form is a chain of matches at one distance, which
// costs zstd a bit each, with what was blanked as literals between. The commonest forms are taken
// whole; of the others there is what is in no form before, so that 32 KB go a long way.
//
// Events are weighed as the live network has them, not as the material has: see live.
//
// # Where the bytes go
//
// A like of the live network, 539 bytes on the v1 wire (means of 34), becomes 200:
//
//	frame, block and literals header     17    of which the dictionary's id is 4
//	literals, 233 at 5.5 bits           160
//	sequences, 12                        23    a chain of matches costs 1.7 bytes a link
//
// The literals are what nobody can know: two DIDs of 24 characters, two CIDs of 52, three TIDs of
// 11, time_us and createdAt. Base32 is 5 bits a character; the half bit on top pays for digits,
// and for every byte of other texts having a code. So there is little left for likes: the first
// dictionary of forms had 201. These help:
//
//   - did:plc:, bafyrei, at:// and all else that is the same: nothing but matches, if they lie in the
//     form as in the event. Fillers keep the distance; they are x, which no identifier has many of.
//   - The first digits of what counts up are kept: the year of createdAt, 17 of time_us, 3n of a
//     TID. Each is a literal less until the era ends, in 2027, and costs nothing after.
//   - A rkey begins as the commit's rev does. zstd finds that by itself.
//   - The phase of each form. libzstd's double-fast search indexes every third position of a
//     dictionary first; at which of them a form begins is worth 0.5 % over all.
//   - Forms of the v2 wire for all that is common, in front of v1's: a like takes some 20 bytes more
//     there, for 91 more of JSON; it says the time twice, in 14 literals more. A dictionary without
//     them took 84 more.
//   - Tables in which each symbol has a code. libzstd takes those as they are; instead of others
//     it takes its defaults, or makes new ones for each event.
//
// # Nobody is in it
//
// A text is kept if five authors share it, and is printable ASCII without spaces, and no host or
// handle; a key or a lexicon's name, if two authors use it. Links are cut to https://. DIDs, CIDs
// and TIDs never stay. So a dictionary can be shipped, whatever it was trained on.
//
// # What lost
//
// Held-out events with a dictionary of 32 KB trained on everything else, v1, in the live network's
// proportions (scripts/train-dictionary.sh --compare), and 50 of the live network as they are:
//
//	                         real-50   calabro   dart     microcosm-little
//	forms                    0.377     0.3727    0.3795   0.3662
//	zstd --train-fastcover   0.385     0.3644    0.3813   0.3590
//	zstd --train-cover       -         0.3791    0.3982   0.3738
//	klauspost                -         0.4351    0.4561   0.4187
//
// So fastcover makes 2 % less of two of the repos, and 2 % more of the live network. In the repos
// are the dates and record keys of years, as they are in what it chose; a form has this year's
// only, as live events do. (Of simulated events, too, it makes less, but their made-up authors and posts
// come again in the parts that are held back.) And what it has chosen are posts and names of
// strangers. Of material whose days were those of real-50, it seemed to win by 3 %, by knowing
// the date: hence the days of read.go. klauspost's tables leave symbols out.
//
// Not tried: a Huffman table of ASCII alone. By reckoning it would save 3 bytes of a like, and lose 20
// of a delete, since libzstd takes a table that leaves symbols out for 64 literals and more only. An id
// of one byte would save 3 as well; a date is what people can read.
package train
