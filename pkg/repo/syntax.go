package repo

import "bytes"

// Lengths of the identifiers, by the atproto specs where they say; a rev is a TID of 13
// characters today, and may grow.
const (
	maxDIDLen        = 2048
	maxCollectionLen = 317
	maxRKeyLen       = 512
	maxRevLen        = 64
	maxTimeLen       = 64
	maxHandleLen     = 253
	maxStatusLen     = 128
	maxInfoLen       = 4096
)

// A byte's class is the set of identifiers it may be in.
const (
	inMethod = 1 << iota
	inDID
	inCollection
	inRKey
)

var classes = func() (t [256]uint8) {
	add := func(class uint8, chars string) {
		for i := range len(chars) {
			t[chars[i]] |= class
		}
	}
	const lower, upper, digits = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
	add(inMethod|inDID|inCollection|inRKey, lower)
	add(inDID|inCollection|inRKey, upper+digits)
	add(inDID, "._:%-")
	add(inCollection, ".-")
	add(inRKey, "._:~-")
	return t
}()

// all reports whether b is not empty, at most limit bytes long, and made of the class.
func all(b []byte, class uint8, limit int) bool {
	if len(b) == 0 || len(b) > limit {
		return false
	}
	for _, c := range b {
		if classes[c]&class == 0 {
			return false
		}
	}
	return true
}

func validDID(b []byte) bool {
	if len(b) > maxDIDLen || !bytes.HasPrefix(b, []byte("did:")) {
		return false
	}
	method, id, _ := bytes.Cut(b[len("did:"):], []byte{':'})
	return all(method, inMethod, maxDIDLen) && all(id, inDID, maxDIDLen) &&
		id[len(id)-1] != ':' && id[len(id)-1] != '%'
}

// validRev takes the characters of a record key, of which a TID uses a few.
func validRev(b []byte) bool { return all(b, inRKey, maxRevLen) }

// splitPath cuts a path into collection and record key. The collection is checked to be
// made of the characters of an NSID, not to be one: a wrong number of dots harms nobody.
func splitPath(path []byte) (collection, rkey []byte, ok bool) {
	collection, rkey, _ = bytes.Cut(path, []byte{'/'})
	if !all(collection, inCollection, maxCollectionLen) || !all(rkey, inRKey, maxRKeyLen) ||
		string(rkey) == "." || string(rkey) == ".." {
		return nil, nil, false
	}
	return collection, rkey, true
}
