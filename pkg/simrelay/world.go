package simrelay

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/repo/mst"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	blockstore "github.com/ipfs/go-ipfs-blockstore"
)

// A world is the network that the relay pretends to crawl: accounts with repositories, and a
// source of chance. It is a pure function of its seed: next must be called with growing seqs and
// times, by one goroutine.
type world struct {
	seed        uint64
	seedRecords int
	rng         *rand.Rand
	accounts    []*account
	born        uint64 // accounts made so far; numbers the next one
	posts       []postRef
	postNext    int

	// Accounts that are not active, oldest first, and how many events took one away.
	inactive []*account
	taken    int
}

type account struct {
	number  uint64
	did     string
	web     bool // a did:web, whose length the loop mode cannot keep
	handle  string
	key     atcrypto.PrivateKey
	clockID uint
	active  bool

	// The repository. rev is empty until the first commit.
	tree    mst.Tree
	rev     string
	root    cidBytes
	records []recordRef
}

// A recordRef is a record that can still be updated or deleted.
type recordRef struct {
	collection string
	rkey       string
}

func (r recordRef) path() string { return r.collection + "/" + r.rkey }

type postRef struct {
	did, rkey string
	cid       cidBytes
}

const (
	recentPosts = 4096
	// maxRecords bounds the memory of an endless run: a repository of this size deletes as
	// often as it creates.
	maxRecords = 4000
)

func newWorld(seed uint64, accounts, seedRecords int) *world {
	return &world{
		seed:        seed,
		seedRecords: seedRecords,
		rng:         rand.New(rand.NewPCG(seed, 0x51b5_7ea3)),
		accounts:    make([]*account, accounts),
	}
}

// mix64 is the finalizer of SplitMix64: a cheap bijection that looks random.
func mix64(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// putPLC writes the 24 characters of the n-th did:plc.
func putPLC(dst []byte, seed, n uint64) {
	h := mix64(seed ^ n*2)
	putBase32(dst[:12], h)
	putBase32(dst[12:24], mix64(h^n))
}

func handleOf(n uint64) string {
	return fmt.Sprintf("%s-%d.example.com", names[n%uint64(len(names))], n)
}

// didOf names the n-th account. One in two hundred is a did:web.
func didOf(seed, n uint64) (did string, web bool) {
	if n%200 == 7 {
		return "did:web:" + handleOf(n), true
	}
	b := []byte("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa")
	putPLC(b[len(plcPrefix):], seed, n)
	return string(b), false
}

// putBase32 fills dst, at most 12 bytes, with base32 characters from the low bits of h.
func putBase32(dst []byte, h uint64) {
	for i := range dst {
		dst[i] = base32Chars[h&31]
		h >>= 5
	}
}

// account returns the account in a slot and makes it when first asked.
func (w *world) account(slot int, at time.Time) (*account, error) {
	if a := w.accounts[slot]; a != nil {
		return a, nil
	}
	a, err := w.newAccount(w.seedRecords, at)
	if err != nil {
		return nil, err
	}
	w.accounts[slot] = a
	return a, nil
}

func (w *world) newAccount(records int, at time.Time) (*account, error) {
	n := w.born
	w.born++
	a := &account{
		number:  n,
		handle:  handleOf(n),
		clockID: uint(mix64(n) & 0x3ff),
		active:  true,
		tree:    mst.NewEmptyTree(),
	}
	a.did, a.web = didOf(w.seed, n)
	var err error
	if a.key, err = newKey(w.seed, n); err != nil {
		return nil, err
	}
	if records > 0 {
		if err := w.fillRepo(a, records, at); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// fillRepo gives an account a past: records that were committed before the stream began. Only
// their CIDs exist, which is all that a proof needs.
func (w *world) fillRepo(a *account, records int, at time.Time) error {
	past := []string{"app.bsky.feed.like", "app.bsky.feed.like", "app.bsky.feed.like", "app.bsky.feed.post", "app.bsky.feed.repost", "app.bsky.graph.follow"}
	micros := at.UnixMicro() - int64(24*time.Hour/time.Microsecond)
	for i := range records {
		ref := recordRef{pick(w, past), newTID(micros-int64(records-i)*7_777_777-w.rng.Int64N(5_000_000), a.clockID)}
		if _, err := a.tree.Insert([]byte(ref.path()), toCID(w.someCID(codecDagCBOR))); err != nil {
			return fmt.Errorf("fill repository: %w", err)
		}
		a.records = append(a.records, ref)
	}
	root, err := a.tree.RootCID()
	if err != nil {
		return fmt.Errorf("fill repository: %w", err)
	}
	a.root = cidBytes(root.Bytes())
	a.rev = newTID(micros, a.clockID)
	return nil
}

func toCID(c cidBytes) cid.Cid {
	out, err := cid.Cast(c[:])
	if err != nil {
		panic(fmt.Sprintf("simrelay: own CID refused: %v", err))
	}
	return out
}

func (w *world) someDID() string {
	if a := w.accounts[w.rng.IntN(len(w.accounts))]; a != nil && w.chance(50) {
		return a.did
	}
	b := []byte("did:plc:aaaaaaaaaaaaaaaaaaaaaaaa")
	putPLC(b[len(plcPrefix):], w.rng.Uint64(), 0)
	return string(b)
}

func (w *world) someTID(before time.Time) string {
	return newTID(before.UnixMicro()-w.rng.Int64N(int64(48*time.Hour/time.Microsecond)), uint(w.rng.IntN(1024)))
}

func (w *world) someCID(codec byte) cidBytes {
	c := cidBytes{0x01, codec, 0x12, 0x20}
	for i := digestAt; i < len(c); i += 8 {
		binary.BigEndian.PutUint64(c[i:], w.rng.Uint64())
	}
	return c
}

// somePost names a post of this stream, the newer the likelier, or one from elsewhere.
func (w *world) somePost() postRef {
	if n := len(w.posts); n > 0 && w.chance(70) {
		back := int(float64(n) * w.rng.Float64() * w.rng.Float64())
		return w.posts[(w.postNext-1-back+2*n)%n]
	}
	return postRef{w.someDID(), newTID(1_780_000_000_000_000+w.rng.Int64N(5_000_000_000_000), uint(w.rng.IntN(1024))), w.someCID(codecDagCBOR)}
}

func (w *world) remember(p postRef) {
	if len(w.posts) < recentPosts {
		w.posts = append(w.posts, p)
		w.postNext = len(w.posts) % recentPosts
		return
	}
	w.posts[w.postNext] = p
	w.postNext = (w.postNext + 1) % recentPosts
}

// someAccount prefers low slots, as a few accounts write most of what there is. It returns an
// active one.
func (w *world) someAccount(at time.Time) (*account, error) {
	for {
		u := w.rng.Float64()
		a, err := w.account(int(u*u*float64(len(w.accounts))), at)
		if err != nil {
			return nil, err
		}
		if a.active {
			return a, nil
		}
	}
}

// next makes the frame with the given seq at the given time.
func (w *world) next(seq int64, at time.Time) (*frame, error) {
	switch roll := w.rng.IntN(1000); {
	case roll < 4:
		a, err := w.someAccount(at)
		if err != nil {
			return nil, err
		}
		handle := a.handle
		switch w.rng.IntN(10) {
		case 0:
			handle = ""
		case 1:
			handle = "handle.invalid"
		}
		return identityFrame(a, seq, at, handle), nil
	case roll < 9:
		return w.accountEvent(seq, at)
	case roll < 11:
		a, err := w.someAccount(at)
		if err != nil {
			return nil, err
		}
		return w.sync(a, seq, at)
	}
	a, err := w.someAccount(at)
	if err != nil {
		return nil, err
	}
	return w.commit(a, seq, at)
}

var statuses = []string{"takendown", "suspended", "deleted", "deactivated", "desynchronized", "throttled"}

// accountEvent takes an account away for one reason after the other, and brings the oldest one
// back before too many are gone. Whoever was deleted comes back as somebody new.
func (w *world) accountEvent(seq int64, at time.Time) (*frame, error) {
	if len(w.inactive) > min(12, len(w.accounts)/4) {
		a := w.inactive[0]
		w.inactive = w.inactive[1:]
		a.active = true
		return accountFrame(a, seq, at, true, ""), nil
	}
	a, err := w.someAccount(at)
	if err != nil {
		return nil, err
	}
	if len(w.accounts) < 4 {
		return accountFrame(a, seq, at, true, ""), nil
	}
	status := statuses[w.taken%len(statuses)]
	w.taken++
	a.active = false
	if status != "deleted" {
		w.inactive = append(w.inactive, a)
		return accountFrame(a, seq, at, false, status), nil
	}
	for i := range w.accounts {
		if w.accounts[i] == a {
			if w.accounts[i], err = w.newAccount(0, at); err != nil {
				return nil, err
			}
		}
	}
	return accountFrame(a, seq, at, false, status), nil
}

// mutations decides what a commit changes: mostly one create, sometimes a delete, an update, or
// a handful of things at once.
func (w *world) mutations(a *account, at time.Time) ([]mutation, error) {
	n := 1
	switch roll := w.rng.IntN(1000); {
	case roll < 2:
		n = 10 + w.rng.IntN(40)
	case roll < 20:
		n = 2 + w.rng.IntN(4)
	}
	muts := make([]mutation, 0, n)
	used := make(map[string]bool, n)
	for i := range n {
		m, err := w.mutation(a, at.Add(time.Duration(i-n)*time.Millisecond), used)
		if err != nil {
			return nil, err
		}
		if m.path != "" {
			used[m.path] = true
			muts = append(muts, m)
		}
	}
	return muts, nil
}

// mutation returns none (an empty path) if chance picks a record that the commit already changes.
func (w *world) mutation(a *account, at time.Time, used map[string]bool) (mutation, error) {
	roll := w.rng.IntN(1000)
	// A few records stay, so that no tree ever runs empty.
	if spare := len(a.records) > 8; spare && (roll < 70 || len(a.records) > maxRecords && roll < 500) {
		i := w.rng.IntN(len(a.records))
		ref := a.records[i]
		if used[ref.path()] {
			return mutation{}, nil
		}
		a.records[i] = a.records[len(a.records)-1]
		a.records = a.records[:len(a.records)-1]
		return mutation{action: "delete", path: ref.path(), tidKey: len(ref.rkey) == revLen}, nil
	} else if spare && roll < 82 {
		ref := pick(w, a.records)
		if used[ref.path()] {
			return mutation{}, nil
		}
		return w.written("update", a, ref, w.contentFor(ref, a, at)), nil
	}
	r := w.createRecord(a, at)
	if r.rkey == "" {
		r.rkey = newTID(at.UnixMicro(), a.clockID)
	}
	ref := recordRef{r.collection, r.rkey}
	if used[ref.path()] {
		return mutation{}, nil
	}
	have, err := a.tree.Get([]byte(ref.path()))
	if err != nil {
		return mutation{}, fmt.Errorf("look up %s: %w", ref.path(), err)
	}
	if have != nil {
		return w.written("update", a, ref, r.content), nil
	}
	a.records = append(a.records, ref)
	return w.written("create", a, ref, r.content), nil
}

// contentFor makes new content for a record that exists.
func (w *world) contentFor(ref recordRef, a *account, at time.Time) obj {
	switch ref.collection {
	case "app.bsky.actor.profile":
		return w.profile(a, at).content
	case "app.bsky.feed.post":
		return w.post(a, at).content
	case "app.bsky.graph.list":
		return w.list(a, at).content
	case "app.bsky.feed.threadgate":
		return w.threadgate(a, at).content
	case "com.whtwnd.blog.entry":
		return w.blogEntry(a, at).content
	}
	return obj{{"$type", ref.collection}, {"updatedAt", clockText(at)}, {"note", pick(w, english.phrases)}}
}

func (w *world) written(action string, a *account, ref recordRef, content obj) mutation {
	var e encoder
	e.value(content)
	m := mutation{action: action, path: ref.path(), record: e.buf, spans: e.spans, cid: sumCID(codecDagCBOR, e.buf)}
	m.tidKey = len(ref.rkey) == revLen
	if ref.collection == "app.bsky.feed.post" {
		w.remember(postRef{a.did, ref.rkey, m.cid})
	}
	return m
}

// A nodeSink is the part of a blockstore that writing a tree uses: it keeps the nodes written,
// which are those that a diff and its proof need.
type nodeSink struct {
	blockstore.Blockstore
	nodes []carBlock
}

func (s *nodeSink) Put(_ context.Context, b blocks.Block) error {
	s.nodes = append(s.nodes, carBlock{cidBytes(b.Cid().Bytes()), b.RawData()})
	return nil
}

// apply changes the tree and returns its changed nodes.
func (a *account) apply(muts []mutation) ([]carBlock, cidBytes, error) {
	for i := range muts {
		m := &muts[i]
		var prev *cid.Cid
		var err error
		if m.record == nil {
			prev, err = a.tree.Remove([]byte(m.path))
		} else {
			prev, err = a.tree.Insert([]byte(m.path), toCID(m.cid))
		}
		if err != nil {
			return nil, cidBytes{}, fmt.Errorf("%s %s: %w", m.action, m.path, err)
		}
		if (prev != nil) != (m.action != "create") {
			return nil, cidBytes{}, fmt.Errorf("%s %s: tree and records disagree", m.action, m.path)
		}
		if prev != nil {
			p := cidBytes(prev.Bytes())
			m.prev = &p
		}
	}
	var sink nodeSink
	root, err := a.tree.WriteDiffBlocks(context.Background(), &sink)
	if err != nil {
		return nil, cidBytes{}, fmt.Errorf("write tree: %w", err)
	}
	return sink.nodes, cidBytes(root.Bytes()), nil
}

func (w *world) commit(a *account, seq int64, at time.Time) (*frame, error) {
	muts, err := w.mutations(a, at)
	if err != nil {
		return nil, err
	}
	c := commitFrame{account: a, seq: seq, time: at, rev: newTID(at.UnixMicro(), a.clockID), since: a.rev, muts: muts}
	if a.rev != "" {
		prev := a.root
		c.prevData = &prev
	}
	if c.nodes, a.root, err = a.apply(muts); err != nil {
		return nil, err
	}
	a.rev = c.rev
	if c.commit, err = signCommit(a, a.rev, a.root); err != nil {
		return nil, err
	}
	return c.encode(), nil
}

// sync changes a repository behind the consumer's back and announces only the new commit.
func (w *world) sync(a *account, seq int64, at time.Time) (*frame, error) {
	muts, err := w.mutations(a, at)
	if err != nil {
		return nil, err
	}
	_, root, err := a.apply(muts)
	if err != nil {
		return nil, err
	}
	a.root = root
	a.rev = newTID(at.UnixMicro(), a.clockID)
	commit, err := signCommit(a, a.rev, a.root)
	if err != nil {
		return nil, err
	}
	return syncFrame(a, seq, at, a.rev, commit), nil
}
