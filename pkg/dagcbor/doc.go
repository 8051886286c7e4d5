// Package dagcbor turns the DAG-CBOR of atproto into JSON, bytes to bytes.
//
// Records make up nearly all that we pass on, and each becomes JSON once. Going through
// map[string]any costs some twenty times what reading a record costs, so AppendJSON walks
// the input once and appends as it goes: no maps, no allocation where dst has room. Package
// repo reads the messages around the records with the Scanner. All is pure.
//
// The JSON is that of the atproto data model, https://atproto.com/specs/data-model: a link
// is {"$link": CID}, a byte string {"$bytes": base64 without padding}, an integer itself.
// Keys keep the order they have, and text the characters it has.
//
// # What is taken, and what is not
//
// indigo's atproto/atdata is the yardstick, one-sided: it takes what we take, with the same
// JSON value, and FuzzTranscode sees to that. (Its JSON encoder chokes on the empty bytes
// that its decoder takes; we write "".) These are the classes where there is something to
// say, with the Reason by which the caller counts what is refused. TestClasses has a case or
// more for each, which asserts what atdata does, too.
//
//	class                                      atdata     we
//	keys out of order                          takes      take, not canonical: means one thing
//	integer, length or tag in long form        takes      take, not canonical: means one thing
//	empty key, empty bytes                     takes      take: nothing is wrong with them
//	integral float                             takes      refuse: not in the data model                          float
//	other float                                refuses    refuse: not in the data model                          float
//	invalid UTF-8                              U+FFFD     refuse: replacing it changes the record                invalid_utf8
//	bytes after the item                       ignores    refuse: a block is one item                            trailing_bytes
//	indefinite length                          takes      refuse: has no one encoding                            indefinite_length
//	break out of place                         refuses    refuse: not CBOR                                       indefinite_length
//	undefined                                  null       refuse: not in the data model                          undefined
//	false in two bytes, other simple value     refuses    refuse: not in the data model                          simple_value
//	reserved head                              refuses    refuse: not CBOR                                       reserved_head
//	integer above int64                        wraps      refuse: wrapped, it is another number                  integer_range
//	integer below int64                        refuses    refuse: not in the data model                          integer_range
//	tag other than 42                          refuses    refuse: not in the data model                          tag
//	link of dag-pb, BLAKE3, version 0, ...     takes      refuse: atproto has only v1, sha-256, dag-cbor or raw  invalid_cid
//	link that is no CID                        refuses    refuse                                                 invalid_cid
//	key that is not text                       refuses    refuse                                                 map_key
//	same key twice                             refuses    refuse: means two things                               duplicate_key
//	deeper than MaxDepth                       takes      refuse: stops parsers of our clients                   too_deep
//	over 1 MiB, 131072 entries, key over 8192  refuses    refuse                                                 too_large
//	cut off                                    refuses    refuse                                                 truncated
//	record that is no map                      null only  refuse                                                 not_a_map
//
// Some maps mean something by their shape, and a client will take them for it, whether they
// came as such or were written out. They are taken where they read the same to everyone:
//
//	shape                          atdata              we                                      otherwise
//	{"$link": text}                any CID, rewritten  take a CID as we write it, alone        invalid_link
//	{"$bytes": text}               base64, loosely     take base64 as we write it, alone       invalid_bytes
//	{"$type": ...}                 text, not empty     take text, not empty                    invalid_type
//	{"$type": "blob", ...}         any size            take ref, mimeType, size >= 0, no more  invalid_blob
//	{"cid": ..., "mimeType": ...}  any CID, rewritten  take two texts, a CID as we write it    invalid_blob
//
// A record itself may not be a link, bytes or a blob; both sides refuse that.
package dagcbor
