package simrelay

import (
	"fmt"
	"strings"
	"time"
)

// A record is the content of one record before encoding, and where it goes.
type record struct {
	collection string
	rkey       string // empty: a fresh TID
	content    obj
}

// The collections that get created, by weight in a thousand. The first four are measured on the
// live network; the tail is guessed, and deliberately full of shapes a consumer seldom sees.
var creates = []struct {
	weight int
	make   func(w *world, a *account, at time.Time) record
}{
	{700, (*world).like},
	{120, (*world).post},
	{100, (*world).repost},
	{60, (*world).follow},
	{5, (*world).block},
	{3, (*world).profile},
	{1, (*world).list},
	{2, (*world).listItem},
	{2, (*world).threadgate},
	{3, (*world).play},
	{1, (*world).tangledStar},
	{1, (*world).tangledRef},
	{1, (*world).blogEntry},
	{1, (*world).opaque},
}

func (w *world) createRecord(a *account, at time.Time) record {
	roll := w.rng.IntN(1000)
	for _, c := range creates {
		if roll -= c.weight; roll < 0 {
			return c.make(w, a, at)
		}
	}
	panic("simrelay: weights of creates do not add up to 1000")
}

func pick[T any](w *world, from []T) T { return from[w.rng.IntN(len(from))] }

func (w *world) chance(percent int) bool { return w.rng.IntN(100) < percent }

// didText is a DID whose characters the loop mode may rewrite.
func didText(did string) text { return uriText(did, "") }

// uriText is an at:// URI (or a bare DID, without collection) whose DID and record key the loop
// mode may rewrite. A TID keeps its first character, which carries a restriction.
func uriText(did, path string) text {
	var t text
	at := 0
	if path == "" {
		t.s = did
	} else {
		at = len("at://")
		t.s = "at://" + did + "/" + path
		if i := strings.LastIndexByte(path, '/'); len(path)-i-1 == revLen {
			t.spans = append(t.spans, span{len(t.s) - revLen + 1, revLen - 1, spanRandom})
		}
	}
	if len(did) == didLen && strings.HasPrefix(did, plcPrefix) {
		t.spans = append(t.spans, span{at + len(plcPrefix), didLen - len(plcPrefix), spanRandom})
	}
	return t
}

// cidText is a CID as a string: all but its constant start and its last character, some of
// whose bits are padding, may be rewritten.
func cidText(c cidBytes) text {
	s := c.String()
	return text{s, []span{{8, len(s) - 9, spanRandom}}}
}

func strongRef(r postRef) obj {
	return obj{{"uri", uriText(r.did, "app.bsky.feed.post/"+r.rkey)}, {"cid", cidText(r.cid)}}
}

func (w *world) like(_ *account, at time.Time) record {
	content := obj{{"$type", "app.bsky.feed.like"}, {"subject", strongRef(w.somePost())}, {"createdAt", clockText(at)}}
	if w.chance(15) {
		content = append(content, field{"via", obj{
			{"uri", uriText(w.someDID(), "app.bsky.feed.repost/"+w.someTID(at))}, {"cid", cidText(w.someCID(codecDagCBOR))},
		}})
	}
	return record{"app.bsky.feed.like", "", content}
}

func (w *world) repost(_ *account, at time.Time) record {
	return record{"app.bsky.feed.repost", "", obj{
		{"$type", "app.bsky.feed.repost"}, {"subject", strongRef(w.somePost())}, {"createdAt", clockText(at)},
	}}
}

func (w *world) follow(_ *account, at time.Time) record {
	return record{"app.bsky.graph.follow", "", obj{
		{"$type", "app.bsky.graph.follow"}, {"subject", didText(w.someDID())}, {"createdAt", clockText(at)},
	}}
}

func (w *world) block(_ *account, at time.Time) record {
	return record{"app.bsky.graph.block", "", obj{
		{"$type", "app.bsky.graph.block"}, {"subject", didText(w.someDID())}, {"createdAt", clockText(at)},
	}}
}

func (w *world) sentences() (string, language) {
	l := pick(w, languages)
	var b strings.Builder
	for i, n := 0, 1+w.rng.IntN(4); i < n; i++ {
		if i > 0 {
			b.WriteString(l.join)
		}
		b.WriteString(pick(w, l.phrases))
		if w.chance(20) {
			b.WriteString(pick(w, emoji))
		}
	}
	return b.String(), l
}

func (w *world) post(a *account, at time.Time) record {
	body, l := w.sentences()
	content := obj{{"$type", "app.bsky.feed.post"}, {"createdAt", clockText(at)}}
	if !w.chance(8) {
		langs := arr{l.tag}
		if w.chance(5) {
			langs = append(langs, "en-GB")
		}
		content = append(content, field{"langs", langs})
	}
	var facets arr
	facet := func(s string, feature obj) {
		body += " "
		start := len(body)
		body += s
		facets = append(facets, obj{
			{"index", obj{{"byteStart", start}, {"byteEnd", len(body)}}},
			{"features", arr{feature}},
		})
	}
	if w.chance(15) {
		tag := pick(w, hashtags)
		facet("#"+tag, obj{{"$type", "app.bsky.richtext.facet#tag"}, {"tag", tag}})
	}
	if w.chance(8) {
		facet("@"+pick(w, names)+".example.com", obj{{"$type", "app.bsky.richtext.facet#mention"}, {"did", didText(w.someDID())}})
	}
	if w.chance(10) {
		uri := pick(w, sites)
		facet(uri[len("https://"):len("https://")+16]+"...", obj{{"$type", "app.bsky.richtext.facet#link"}, {"uri", uri}})
	}
	if facets != nil {
		content = append(content, field{"facets", facets})
	}
	if w.chance(45) {
		root, parent := w.somePost(), w.somePost()
		if w.chance(60) {
			parent = root
		}
		content = append(content, field{"reply", obj{{"root", strongRef(root)}, {"parent", strongRef(parent)}}})
	}
	if w.chance(40) {
		content = append(content, field{"embed", w.embed(l)})
	}
	if w.chance(2) {
		content = append(content, field{"labels", obj{
			{"$type", "com.atproto.label.defs#selfLabels"}, {"values", arr{obj{{"val", "graphic-media"}}}},
		}})
	}
	content = append(content, field{"text", body})
	return record{"app.bsky.feed.post", "", content}
}

func (w *world) blob(mime string, size int) obj {
	return obj{
		{"$type", "blob"}, {"ref", link(w.someCID(codecRaw))}, {"mimeType", mime}, {"size", size/2 + w.rng.IntN(size)},
	}
}

func (w *world) embed(l language) obj {
	switch roll := w.rng.IntN(100); {
	case roll < 50:
		var images arr
		for i, n := 0, 1+w.rng.IntN(4); i < n; i++ {
			images = append(images, obj{
				{"alt", pick(w, l.phrases)},
				{"image", w.blob("image/jpeg", 800_000)},
				{"aspectRatio", obj{{"width", 1000 + w.rng.IntN(2000)}, {"height", 1000 + w.rng.IntN(2000)}}},
			})
		}
		return obj{{"$type", "app.bsky.embed.images"}, {"images", images}}
	case roll < 72:
		external := obj{{"uri", pick(w, sites)}, {"title", pick(w, l.phrases)}, {"description", pick(w, l.phrases) + " · " + pick(w, l.phrases)}}
		if w.chance(70) {
			external = append(external, field{"thumb", w.blob("image/jpeg", 300_000)})
		}
		return obj{{"$type", "app.bsky.embed.external"}, {"external", external}}
	case roll < 90:
		return obj{{"$type", "app.bsky.embed.record"}, {"record", strongRef(w.somePost())}}
	default:
		return obj{
			{"$type", "app.bsky.embed.video"}, {"video", w.blob("video/mp4", 9_000_000)},
			{"aspectRatio", obj{{"width", 1080}, {"height", 1920}}}, {"alt", ""},
		}
	}
}

func (w *world) profile(a *account, at time.Time) record {
	l := pick(w, languages)
	return record{"app.bsky.actor.profile", "self", obj{
		{"$type", "app.bsky.actor.profile"},
		{"displayName", pick(w, l.phrases)},
		{"description", pick(w, l.phrases) + "\n" + pick(w, l.phrases) + " " + pick(w, emoji)},
		{"avatar", w.blob("image/png", 200_000)},
		{"createdAt", clockText(at)},
	}}
}

func (w *world) list(_ *account, at time.Time) record {
	return record{"app.bsky.graph.list", "", obj{
		{"$type", "app.bsky.graph.list"}, {"name", pick(w, names) + " friends"},
		{"purpose", "app.bsky.graph.defs#curatelist"}, {"createdAt", clockText(at)},
	}}
}

func (w *world) listItem(a *account, at time.Time) record {
	return record{"app.bsky.graph.listitem", "", obj{
		{"$type", "app.bsky.graph.listitem"}, {"subject", didText(w.someDID())},
		{"list", uriText(a.did, "app.bsky.graph.list/"+w.someTID(at))}, {"createdAt", clockText(at)},
	}}
}

func (w *world) threadgate(a *account, at time.Time) record {
	tid := w.someTID(at)
	return record{"app.bsky.feed.threadgate", tid, obj{
		{"$type", "app.bsky.feed.threadgate"}, {"post", uriText(a.did, "app.bsky.feed.post/"+tid)},
		{"allow", arr{obj{{"$type", "app.bsky.feed.threadgate#mentionRule"}}}}, {"hiddenReplies", arr{}}, {"createdAt", clockText(at)},
	}}
}

// play, tangledStar, tangledRef and blogEntry wear the names of other people's lexicons; their
// content is made up.
func (w *world) play(_ *account, at time.Time) record {
	return record{"fm.teal.alpha.feed.play", "", obj{
		{"$type", "fm.teal.alpha.feed.play"}, {"trackName", "Song of the " + pick(w, names)},
		{"artists", arr{obj{{"artistName", "The " + pick(w, names) + "s"}}}}, {"duration", 120 + w.rng.IntN(300)},
		{"playedTime", clockText(at)}, {"submissionClientAgent", "simulated/v0"},
	}}
}

func (w *world) tangledStar(_ *account, at time.Time) record {
	return record{"sh.tangled.feed.star", "", obj{
		{"$type", "sh.tangled.feed.star"}, {"subject", uriText(w.someDID(), "sh.tangled.repo/"+w.someTID(at))}, {"createdAt", clockText(at)},
	}}
}

func (w *world) tangledRef(a *account, at time.Time) record {
	return record{"sh.tangled.git.refUpdate", "", obj{
		{"$type", "sh.tangled.git.refUpdate"}, {"ref", "refs/heads/" + pick(w, names)}, {"repoDid", didText(a.did)},
		{"oldSha", fmt.Sprintf("%040x", w.rng.Uint64())}, {"newSha", fmt.Sprintf("%040x", w.rng.Uint64())},
		{"meta", obj{{"isDefaultRef", true}, {"commitCount", obj{{"byEmail", arr{obj{{"count", 1}, {"email", "someone@example.com"}}}}}}}},
		{"createdAt", clockText(at)},
	}}
}

func (w *world) blogEntry(_ *account, at time.Time) record {
	var b strings.Builder
	for i, n := 0, 5+w.rng.IntN(60); i < n; i++ {
		s, _ := w.sentences()
		b.WriteString("## " + pick(w, names) + "\n\n" + s + "\n\n")
	}
	return record{"com.whtwnd.blog.entry", "", obj{
		{"$type", "com.whtwnd.blog.entry"}, {"title", "On " + pick(w, names)}, {"content", b.String()},
		{"visibility", "public"}, {"createdAt", clockText(at)},
	}}
}

// opaque exercises the whole data model: $bytes, $link, null, nesting, integers at the ends of
// their range, empty and odd keys.
func (w *world) opaque(_ *account, at time.Time) record {
	raw := make([]byte, 1+w.rng.IntN(70))
	for i := range raw {
		raw[i] = byte(w.rng.Uint32())
	}
	var deep any = "leaf"
	for range w.rng.IntN(12) {
		deep = obj{{"down", arr{deep}}}
	}
	return record{"org.example.sample.opaque", fmt.Sprintf("key:%s_%d", pick(w, names), w.rng.Uint32()), obj{
		{"$type", "org.example.sample.opaque"}, {"bytes", raw}, {"link", link(w.someCID(codecDagCBOR))},
		{"nothing", nil}, {"flags", arr{true, false, nil}}, {"empty", obj{}}, {"none", arr{}}, {"deep", deep},
		{"numbers", arr{0, -1, 23, 24, 255, 256, 65535, 65536, int64(1)<<53 - 1, -(int64(1)<<53 - 1)}},
		{"", "empty key"}, {"ключ", "non-ASCII key"}, {"with \"quote\"", "\u0000\u001f\u007f\u2028 \\ /"},
		{"createdAt", clockText(at)},
	}}
}
