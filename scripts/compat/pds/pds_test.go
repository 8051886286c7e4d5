//go:build compat

// Package pds tests the daemon against the PDS that people host themselves, @atproto/pds
// from npm: what accounts do there arrives at consumers as the PDS itself tells it.
package pds

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"slices"
	"slipstream/pkg/testproc"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The daemon on a PDS: everything that can be done there, a pause, and restarts of both. The
// parts go on from each other, and what is received is always compared from the start.
func TestPDS(t *testing.T) {
	modules := install(t)
	u := &upstream{modules: modules, dir: t.TempDir(), plc: testproc.FreeAddr(t), addr: testproc.FreeAddr(t), life: t}
	u.start(t)
	d := &daemon{testproc.Serve(t, testproc.Build(t, "slipstream", ""), "ws://"+u.addr, t.TempDir())}
	d.waitReady(t)
	w := &world{pds: u, witnesses: witnesses(t, d.Addr)}
	ctx, cancel := context.WithCancel(context.Background())
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	for _, x := range w.witnesses {
		group.Go(func() { x.run(ctx) })
		eventually(t, 10*time.Second, func() string {
			if n, _ := x.state(); n == 0 {
				return x.name + " cannot connect"
			}
			return ""
		})
	}

	var alice *account
	steps := []struct {
		name string
		f    func(*testing.T)
	}{
		{"Writes", func(t *testing.T) {
			alice = writes(t, w)
			w.settle(t)
			noAlarm(t, d)
		}},
		{"Idle", func(t *testing.T) { idle(t, w, d, alice) }},
		{"PDSRestarts", func(t *testing.T) { pdsRestarts(t, w, d, alice) }},
		{"DaemonRestarts", func(t *testing.T) { daemonRestarts(t, w, d, alice) }},
		{"AccountDeleted", func(t *testing.T) { accountDeleted(t, w, d, alice) }},
		{"IdleForDays", func(t *testing.T) { idleForDays(t, w, d, alice) }},
		{"OddRecords", func(t *testing.T) { oddRecords(t, w, d, alice) }},
		{"Replay", func(t *testing.T) { replay(t, w) }},
	}
	for _, s := range steps {
		if !t.Run(s.name, s.f) {
			t.Fatalf("the PDS said:\n%s\nthe daemon said:\n%s", u.Output, d.Output)
		}
	}
	d.End(t)
	u.End(t)
	count := map[string]int{}
	for _, e := range w.want {
		count[strings.TrimSpace(e.kind+" "+e.operation)]++
	}
	t.Logf("%d events compared on each of %d wires (sync only on v2): %v", len(w.want), len(w.witnesses), count)
}

func noAlarm(t *testing.T, d *daemon, expected ...string) {
	t.Helper()
	if alarms := d.alarms(t, expected...); alarms != nil {
		t.Errorf("false alarms:\n%s", strings.Join(alarms, "\n"))
	}
}

// writes does everything that an account can do.
func writes(t *testing.T, w *world) (alice *account) {
	alice = w.createAccount(t, "alice")
	bob := w.createAccount(t, "bob")
	carol := w.createAccount(t, "carol")

	// Posts of all kinds.
	hello := w.create(t, alice, "app.bsky.feed.post", "", post("こんにちは、世界。吾輩は猫である。𠮷野家"))
	w.create(t, bob, "app.bsky.feed.post", "", post("👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \u202eright to left\u202c <b>&amp;</b> \"\\/\" \u2028\u2029 \u0000\u0001\u001f\u007f\ufeff\uffff"))
	w.create(t, bob, "app.bsky.feed.post", "", object{"text": json.RawMessage(`"half a surrogate: \ud83d"`), "createdAt": now()})
	facet := func(text, part string, feature object) object {
		at := strings.Index(text, part)
		return object{"index": object{"byteStart": at, "byteEnd": at + len(part)}, "features": []object{feature}}
	}
	text := "やあ @bob.test さん 🎉 https://example.com/見る #猫"
	rich := post(text)
	rich["facets"] = []object{
		facet(text, "@bob.test", object{"$type": "app.bsky.richtext.facet#mention", "did": bob.did}),
		facet(text, "https://example.com/見る", object{"$type": "app.bsky.richtext.facet#link", "uri": "https://example.com/%E8%A6%8B%E3%82%8B"}),
		facet(text, "#猫", object{"$type": "app.bsky.richtext.facet#tag", "tag": "猫"}),
	}
	w.create(t, alice, "app.bsky.feed.post", "", rich)
	picture := w.uploadBlob(t, alice, "image/png", pngImage(t, 64))
	illustrated := post("絵")
	illustrated["embed"] = object{"$type": "app.bsky.embed.images", "images": []object{
		{"image": picture, "alt": "四角い", "aspectRatio": object{"width": 64, "height": 64}}}}
	w.create(t, alice, "app.bsky.feed.post", "", illustrated)
	answer := post("返事")
	answer["reply"] = object{"root": hello, "parent": hello}
	reply := w.create(t, bob, "app.bsky.feed.post", "", answer)
	w.create(t, carol, "app.bsky.feed.post", "3jzfcijpj2z2a", post("under a key of its own"))

	// Likes, reposts, follows, blocks, lists.
	like := w.create(t, bob, "app.bsky.feed.like", "", object{"subject": hello, "createdAt": now()})
	w.create(t, carol, "app.bsky.feed.like", "", object{"subject": reply, "createdAt": now()})
	w.create(t, carol, "app.bsky.feed.repost", "", object{"subject": hello, "createdAt": now()})
	follow := w.create(t, bob, "app.bsky.graph.follow", "", object{"subject": alice.did, "createdAt": now()})
	w.create(t, alice, "app.bsky.graph.follow", "", object{"subject": bob.did, "createdAt": now()})
	w.create(t, carol, "app.bsky.graph.block", "", object{"subject": bob.did, "createdAt": now()})
	list := w.create(t, alice, "app.bsky.graph.list", "", object{"name": "友達", "purpose": "app.bsky.graph.defs#curatelist", "createdAt": now()})
	w.create(t, alice, "app.bsky.graph.listitem", "", object{"list": list.URI, "subject": bob.did, "createdAt": now()})

	// Profiles: made, changed, put again as they are, which is no change.
	profile := object{"displayName": "アリス 🐈", "description": "一行目\n二行目"}
	w.put(t, alice, "create", "app.bsky.actor.profile", "self", profile)
	profile["avatar"] = w.uploadBlob(t, alice, "image/png", pngImage(t, 32))
	w.put(t, alice, "update", "app.bsky.actor.profile", "self", profile)
	w.put(t, alice, "", "app.bsky.actor.profile", "self", profile)
	w.put(t, bob, "create", "app.bsky.actor.profile", "self", object{})

	// Records that the PDS has no lexicon for.
	custom := object{
		"bytes": object{"$bytes": "AAECAwQFBgcICfv8/f7/"}, "padding": object{"$bytes": "+/8"}, "none": object{"$bytes": ""},
		"link": object{"$link": hello.CID}, "links": []any{object{"$link": hello.CID}, object{"$link": like.CID}},
		"blob":  w.uploadBlob(t, bob, "application/octet-stream", []byte("\x00not a picture\xff")),
		"yes":   true,
		"no":    false,
		"null":  nil,
		"zero":  0,
		"large": int64(1)<<53 - 1, "small": -(int64(1)<<53 - 1), "byte": []int{-1, 23, 24, 255, 256, -24, -25, -256, -257, 65535, 65536, 4294967295, 4294967296},
		"empty": object{}, "list": []any{}, "": "an empty key", "鍵": "値", "a\"b\\c\n": "\t", "nested": []any{[]any{[]any{object{"a": []any{nil, ""}}}}},
		"$unknown": "a dollar", "uri": hello.URI, "z": 1, "aa": 2, "Z": 3, "é": 4, "😀": 5,
	}
	thing := w.create(t, bob, "com.example.thing", "", custom)
	w.put(t, bob, "update", "com.example.thing", thing.rkey(), object{"$type": "com.example.thing", "bytes": object{"$bytes": "/w"}})
	w.put(t, bob, "create", "com.example.thing", "a:B~c_d-e.f", object{"n": 1})
	w.put(t, bob, "create", "com.example.thing", strings.Repeat("k", 512), object{"n": 2})
	w.create(t, bob, "com.example.deep.er.thing", "", object{"text": strings.Repeat("大きい ", 10_000)})
	var deep any = "here"
	for range 30 {
		deep = object{"deeper": []any{deep}}
	}
	w.create(t, bob, "com.example.thing", "", object{"deep": deep})

	// Several writes in one commit.
	var many []write
	for i := range 200 {
		many = append(many, write{"create", "com.example.many", fmt.Sprintf("n%d", (i*71)%200), object{"n": i, "text": "数"}})
	}
	w.apply(t, carol, many)
	many = nil
	for i := range 60 {
		switch rkey := fmt.Sprintf("n%d", i); i % 3 {
		case 0:
			many = append(many, write{"delete", "com.example.many", rkey, nil})
		case 1:
			many = append(many, write{"update", "com.example.many", rkey, object{"n": -i, "link": object{"$link": hello.CID}}})
		case 2:
			many = append(many, write{"create", "com.example.more", rkey, object{"b": object{"$bytes": "AAA"}}})
		}
	}
	w.apply(t, carol, many)

	// Deletions; of what is not there, nothing is to be seen.
	w.delete(t, bob, "app.bsky.feed.like", like.rkey())
	w.delete(t, bob, "app.bsky.feed.like", like.rkey())
	w.delete(t, bob, "app.bsky.graph.follow", follow.rkey())
	w.delete(t, bob, "com.example.thing", thing.rkey())
	w.delete(t, alice, "app.bsky.actor.profile", "self")
	w.put(t, alice, "create", "app.bsky.actor.profile", "self", object{"displayName": "戻った"})

	// Accounts.
	w.updateHandle(t, alice, "alice2.test")
	w.updateHandle(t, alice, "alice-no-neko.test")
	w.deactivate(t, bob)
	w.refused(t, bob)
	w.activate(t, bob)
	w.create(t, bob, "app.bsky.feed.post", "", post("ただいま"))
	w.takeDown(t, carol, true)
	w.refused(t, carol)
	w.takeDown(t, carol, false)
	w.create(t, carol, "app.bsky.feed.post", "", post("まだいる"))
	return alice
}

func pngImage(t *testing.T, size int) []byte {
	t.Helper()
	m := image.NewRGBA(image.Rect(0, 0, size, size))
	for i := range size {
		m.Set(i, i, color.White)
	}
	var b bytes.Buffer
	if err := png.Encode(&b, m); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// idleTime is longer than the daemon waits for a sign of life: two pings, 30 s apart, and 5 s.
const idleTime = 75 * time.Second

// A PDS on which nothing happens is a normal one.
func idle(t *testing.T, w *world, d *daemon, alice *account) {
	if testing.Short() {
		t.Skipf("takes %s", idleTime)
	}
	before, said := d.Metrics(t), d.Output.String()
	for end := time.Now().Add(idleTime); time.Now().Before(end); time.Sleep(time.Second) {
		if problem := d.notReady(); problem != "" {
			t.Fatalf("/readyz: %s", problem)
		}
	}
	after := d.Metrics(t)
	const frames = "slipstream_upstream_frames_total"
	if b, ok := before[frames]; !ok || after[frames] != b || reconnects(after) != reconnects(before) {
		t.Errorf("frames went from %v to %v, reconnects from %v to %v", b, after[frames], reconnects(before), reconnects(after))
	}
	if more := strings.TrimPrefix(d.Output.String(), said); more != "" {
		t.Errorf("the log of an idle daemon went on with:\n%s", more)
	}
	w.create(t, alice, "app.bsky.feed.post", "", post("静かだった"))
	w.settle(t)
	noAlarm(t, d)
	for _, x := range w.witnesses {
		if n, _ := x.state(); n != 1 {
			t.Errorf("%s has had %d connections", x.name, n)
		}
	}
}

// disconnected is what the log says of a PDS that goes away.
const disconnected = "connection to the relay ended, trying again"

// A PDS that is ended, in order or not, and starts again finds the daemon where it was.
func pdsRestarts(t *testing.T, w *world, d *daemon, alice *account) {
	for i, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		w.create(t, alice, "app.bsky.feed.post", "", post(fmt.Sprintf("%d: last one before", i)))
		begin := time.Now()
		w.pds.Signal(t, signal)
		if err := w.pds.Wait(t); err != nil && signal == syscall.SIGTERM {
			t.Errorf("the PDS's end: %v", err)
		}
		eventually(t, 10*time.Second, func() string {
			if strings.Count(d.Output.String(), disconnected) != i+1 {
				return fmt.Sprintf("%d lines of %q in\n%s", i+1, disconnected, d.Output)
			}
			return ""
		})
		if problem := d.notReady(); problem != "" {
			t.Errorf("/readyz, the PDS away for a moment: %s", problem)
		}
		w.pds.start(t)
		// Some come while the daemon is still away.
		for j := range 5 {
			w.create(t, alice, "app.bsky.feed.post", "", post(fmt.Sprintf("%d: %d. after", i, j)))
		}
		w.updateHandle(t, alice, fmt.Sprintf("alice-%d.test", i))
		w.settle(t)
		t.Logf("%v, start and all events: %s", signal, time.Since(begin).Round(time.Millisecond))
	}
	noAlarm(t, d, disconnected)
	if n := reconnects(d.Metrics(t)); n < 2 {
		t.Errorf("%v reconnects", n)
	}
}

// The daemon is ended, in order or not, while the PDS is written to, and has everything.
func daemonRestarts(t *testing.T, w *world, d *daemon, alice *account) {
	before, _ := w.witnesses[0].state()
	for i := range 60 {
		switch i {
		case 10:
			d.Signal(t, syscall.SIGTERM)
		case 20:
			if err := d.Wait(t); err != nil {
				t.Errorf("the daemon's end: %v", err)
			}
		case 30, 50:
			d.Start(t)
		case 40:
			d.waitReady(t)
			d.Kill(t)
		}
		w.create(t, alice, "app.bsky.feed.post", "", post(fmt.Sprintf("%d本目", i)))
	}
	d.waitReady(t)
	w.settle(t)
	noAlarm(t, d)
	if after, _ := w.witnesses[0].state(); after-before < 2 {
		t.Errorf("the first witness has connected %d times", after-before)
	}
}

// An account that is deleted: the PDS forgets all of its events but the last. To a daemon
// that has been away meanwhile this is a jump in the numbers, which it calls a possible gap.
func accountDeleted(t *testing.T, w *world, d *daemon, alice *account) {
	dave := w.createAccount(t, "dave")
	w.create(t, dave, "app.bsky.feed.post", "", post("ここにいた"))
	w.settle(t)
	w.admin(t, "com.atproto.admin.deleteAccount", object{"did": dave.did})
	w.expect(event{kind: "account", did: dave.did, status: "deleted"})
	w.create(t, alice, "app.bsky.feed.post", "", post("さようなら"))
	w.settle(t)
	noAlarm(t, d)

	d.End(t)
	seen := len(w.want)
	erin := w.createAccount(t, "erin")
	w.create(t, erin, "app.bsky.feed.post", "", post("誰も見ていない"))
	w.admin(t, "com.atproto.admin.deleteAccount", object{"did": erin.did})
	w.want = append(w.want[:seen], event{kind: "account", did: erin.did, status: "deleted"})
	w.create(t, alice, "app.bsky.feed.post", "", post("また一人"))
	d.Start(t)
	d.waitReady(t)
	w.settle(t)
	t.Logf("what the daemon says of it: %q", d.alarms(t))
}

// reconnects counts those of the daemon.
func reconnects(m map[string]float64) (n float64) {
	for name, v := range m {
		if strings.HasPrefix(name, "slipstream_upstream_reconnects_total{") {
			n += v
		}
	}
	return n
}

// A PDS keeps its events for a day. Where nothing has happened for longer, nothing is missing.
func idleForDays(t *testing.T, w *world, d *daemon, alice *account) {
	before, alarms := reconnects(d.Metrics(t)), d.alarms(t, disconnected)
	w.pds.End(t)
	w.pds.kept = time.Second
	w.pds.start(t)
	eventually(t, time.Minute, func() string {
		if d.Metrics(t)["slipstream_upstream_connected"] != 1 || reconnects(d.Metrics(t)) == before {
			return "the daemon does not connect again"
		}
		return ""
	})
	time.Sleep(w.pds.kept)
	w.create(t, alice, "app.bsky.feed.post", "", post("久しぶり"))
	w.settle(t)
	if now := d.alarms(t, disconnected); !slices.Equal(now, alarms) {
		t.Errorf("false alarms, beside %q:\n%s", alarms, strings.Join(now, "\n"))
	}
}

// The PDS takes records for which it has no lexicon nearly as they come. Where a map has the
// shape of a link, of bytes or of a blob and is none, its record is left out and counted, as
// package dagcbor says; whatever else is odd arrives.
func oddRecords(t *testing.T, w *world, d *daemon, alice *account) {
	const link = "bafyreigeljriqb37rbvcwfezx4npxn3huqvq3n5w63oc62kqpvn7s4r77m"
	before, dropped := d.Metrics(t), map[string]float64{}
	for _, c := range []struct{ record, reason string }{
		{`{"a": 1, "a": 2}`, ""},
		{`{"a": -0, "b": 1e3}`, ""},
		{`{"\ud800": "\udc00"}`, ""},
		{`{"a": {"$bytes": "AB"}, "b": {"$bytes": "AA=="}, "c": {"$bytes": "_-8"}}`, ""},
		{`{"a": {"cid": "none", "mimeType": "image/png", "more": 1}}`, ""},
		{`{"a": {"$link": "none"}}`, "invalid_link"},
		{`{"a": {"$link": "` + link + `", "more": 1}}`, "invalid_link"},
		{`{"a": {"$link": "QmbWqxBEKC3P8tqsKc98xmWNzrzDtRLMiMPL8wBuTGsMnR"}}`, "invalid_cid"},
		{`{"a": {"$bytes": 1}}`, "invalid_bytes"},
		{`{"a": {"$bytes": "none!"}}`, "invalid_bytes"},
		{`{"a": {"$type": 1}}`, "invalid_type"},
		{`{"a": {"$type": ""}}`, "invalid_type"},
		{`{"a": {"$type": "blob", "ref": "none"}}`, "invalid_blob"},
		{`{"a": {"cid": "none", "mimeType": "image/png"}}`, "invalid_blob"},
		{`{"` + strings.Repeat("k", 8193) + `": 1}`, "too_large"},
		{`{"a": ` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`, "too_deep"},
	} {
		if c.reason == "" {
			w.create(t, alice, "com.example.odd", "", json.RawMessage(c.record))
			continue
		}
		w.procedure(t, "com.atproto.repo.createRecord", alice.auth(),
			object{"repo": alice.did, "collection": "com.example.odd", "record": json.RawMessage(c.record)}, nil)
		dropped[`slipstream_ops_dropped_total{reason="record_`+c.reason+`"}`]++
	}
	w.create(t, alice, "app.bsky.feed.post", "", post("それだけ"))
	w.settle(t)
	after := d.Metrics(t)
	for name, v := range after {
		if strings.HasPrefix(name, "slipstream_ops_dropped_total") && v-before[name] != dropped[name] {
			t.Errorf("%s went from %v to %v, want %v more", name, before[name], v, dropped[name])
		}
	}
	for name := range dropped {
		if _, ok := after[name]; !ok {
			t.Errorf("no metric %s", name)
		}
	}
}

// What is replayed is what came live, byte for byte.
func replay(t *testing.T, w *world) {
	for _, x := range w.witnesses {
		_, events := x.state()
		again := &witness{name: x.name, url: fmt.Sprintf("%s&cursor=%d", x.url, events[0].cursor), parse: x.parse, plain: x.plain, sync: x.sync}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { again.connect(ctx); close(done) }()
		eventually(t, 20*time.Second, func() string {
			if missing, err := again.check(w.want); missing > 0 || err != nil {
				return fmt.Sprintf("%s: %d of %d events are missing, %v", x.name, missing, len(events), err)
			}
			return ""
		})
		cancel()
		<-done
		_, replayed := again.state()
		if !slices.EqualFunc(events, replayed, func(a, b received) bool { return bytes.Equal(a.message, b.message) }) {
			t.Errorf("%s: the replay differs", x.name)
		}
	}
}
