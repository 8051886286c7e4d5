package subscribe_test

import (
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"slipstream/pkg/subscribe"
)

func TestClient(t *testing.T) {
	a := subscribe.NewAdmission(0, 0, 0,
		netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("2001:db8:1::/48"))
	for _, c := range []struct {
		name, peer string
		forwarded  []string
		want       string
	}{
		{"direct", "192.0.2.1:4000", nil, "192.0.2.1"},
		{"direct, IPv6", "[2001:db8::7]:4000", nil, "2001:db8::7"},
		{"direct, mapped", "[::ffff:192.0.2.1]:4000", nil, "192.0.2.1"},
		{"direct, with a zone", "[fe80::1%eth0]:4000", nil, "fe80::1"},
		{"not to be believed", "192.0.2.1:4000", []string{"198.51.100.9"}, "192.0.2.1"},
		{"loopback is not trusted unless declared", "[::1]:4000", []string{"198.51.100.9"}, "::1"},
		{"one proxy", "10.0.0.1:80", []string{"198.51.100.9"}, "198.51.100.9"},
		{"mapped proxy", "[::ffff:10.0.0.1]:80", []string{"198.51.100.9"}, "198.51.100.9"},
		{"IPv6 proxy", "[2001:db8:1::1]:80", []string{"2001:db8:2::9"}, "2001:db8:2::9"},
		{"mapped client", "10.0.0.1:80", []string{"::ffff:198.51.100.9"}, "198.51.100.9"},
		{"two proxies", "127.0.0.1:80", []string{"198.51.100.9, 10.1.2.3"}, "198.51.100.9"},
		{"what the client made up", "10.0.0.1:80", []string{"1.1.1.1, 10.0.0.2, 198.51.100.9"}, "198.51.100.9"},
		{"made up, with a proxy after", "10.0.0.1:80", []string{"1.1.1.1,198.51.100.9,10.0.0.2"}, "198.51.100.9"},
		{"several lines", "10.0.0.1:80", []string{"1.1.1.1", "198.51.100.9", "10.0.0.3, 10.0.0.2"}, "198.51.100.9"},
		{"all trusted", "10.0.0.1:80", []string{"10.0.0.3", "10.0.0.2"}, "10.0.0.3"},
		{"no header", "10.0.0.1:80", nil, "10.0.0.1"},
		{"empty header", "10.0.0.1:80", []string{""}, "10.0.0.1"},
		{"empty elements", "10.0.0.1:80", []string{"198.51.100.9,, ", ","}, "198.51.100.9"},
		{"no address", "10.0.0.1:80", []string{"198.51.100.9, unknown"}, "10.0.0.1"},
		{"no address, after a proxy", "10.0.0.1:80", []string{"198.51.100.9, unknown", "10.0.0.2"}, "10.0.0.2"},
		{"no address, left of the client", "10.0.0.1:80", []string{"<script>, 198.51.100.9"}, "198.51.100.9"},
		{"too many numbers", "10.0.0.1:80", []string{"198.51.100.9.1"}, "10.0.0.1"},
		{"with a port", "10.0.0.1:80", []string{"198.51.100.9:1234"}, "198.51.100.9"},
		{"IPv6 with a port", "10.0.0.1:80", []string{"[2001:db8::9]:1234"}, "2001:db8::9"},
		{"IPv6 in brackets", "10.0.0.1:80", []string{"[2001:db8::9]"}, "2001:db8::9"},
		{"half a bracket", "10.0.0.1:80", []string{"[2001:db8::9"}, "10.0.0.1"},
		{"no IP", "@", []string{"198.51.100.9"}, "invalid IP"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/subscribe", nil)
			r.RemoteAddr = c.peer
			r.Header["X-Forwarded-For"] = c.forwarded
			r.Header.Set("X-Real-IP", "203.0.113.1")
			r.Header.Set("Forwarded", "for=203.0.113.1")
			if got := a.Client(r).String(); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

// refusal checks that err refuses with a status, a label and a sentence that names what
// is wanted.
func refusal(t *testing.T, err error, status int, label string, names ...string) {
	t.Helper()
	w := httptest.NewRecorder()
	if got := subscribe.Refuse(w, err); got != label || w.Code != status {
		t.Fatalf("%v: refused as %q with %d, want %q with %d", err, got, w.Code, label, status)
	}
	if !slices.Contains(subscribe.Refusals(), label) {
		t.Errorf("%q is not among the labels", label)
	}
	if after := w.Header().Get("Retry-After"); after != "30" {
		t.Errorf("%s: Retry-After %q", label, after)
	}
	for _, name := range names {
		if body := w.Body.String(); !strings.Contains(body, name) || strings.Count(body, "\n") != 1 {
			t.Errorf("%s: the answer is %q, want a sentence with %q", label, body, name)
		}
	}
}

func enter(t *testing.T, a subscribe.Admission, addr string) *subscribe.Place {
	t.Helper()
	p, err := a.Enter(netip.MustParseAddr(addr))
	if err != nil {
		t.Fatalf("%s: %v", addr, err)
	}
	return p
}

func TestPlaces(t *testing.T) {
	a := subscribe.NewAdmission(3, 0, 0)
	var places []*subscribe.Place
	for range 3 {
		places = append(places, enter(t, a, "192.0.2.1"))
	}
	_, err := a.Enter(netip.MustParseAddr("192.0.2.2"))
	refusal(t, err, http.StatusServiceUnavailable, "server_full", "at most 3 consumers")
	places[0].Leave()
	places[0].Leave()
	enter(t, a, "192.0.2.2").Leave()
	places[0] = enter(t, a, "192.0.2.2")
	if _, err = a.Enter(netip.Addr{}); err == nil {
		t.Error("a place that was left twice counts twice")
	}
	for _, p := range places {
		p.Leave()
	}
	if got := a.Held(); got != [3]int{} {
		t.Errorf("held at the end: %v", got)
	}
	new(subscribe.Place).Leave() // of who was refused
}

func TestPlacesPerAddress(t *testing.T) {
	a := subscribe.NewAdmission(40, 2, 0, netip.MustParsePrefix("203.0.113.0/24"))
	for _, c := range []struct{ first, second, third, other string }{
		{"192.0.2.1", "192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"},
		{"2001:db8::1", "2001:db8::2:0:0:1", "2001:db8:0:0:ffff::", "2001:db8:0:1::1"},
	} {
		enter(t, a, c.first)
		second := enter(t, a, c.second)
		_, err := a.Enter(netip.MustParseAddr(c.third))
		refusal(t, err, http.StatusTooManyRequests, "address_full", "at most 2 connections", "100 collections")
		enter(t, a, c.other).Leave()
		second.Leave()
		enter(t, a, c.third)
	}
	if got, want := a.Held(), [3]int{4, 2, 0}; got != want {
		t.Errorf("held: %v, want %v: addresses without places are kept", got, want)
	}
	// These stand for anyone.
	for _, addr := range []string{"127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "172.17.0.1", "192.168.1.1", "fd00::1", "169.254.1.1", "fe80::1", "203.0.113.5"} {
		for range 3 {
			enter(t, a, addr)
		}
	}
	for range 3 {
		if _, err := a.Enter(netip.Addr{}); err != nil {
			t.Error(err)
		}
	}
	if got, want := a.Held(), [3]int{37, 2, 0}; got != want {
		t.Errorf("held: %v, want %v", got, want)
	}
	for range 3 {
		enter(t, a, "127.0.0.1")
	}
	_, err := a.Enter(netip.MustParseAddr("127.0.0.1"))
	refusal(t, err, http.StatusServiceUnavailable, "server_full")
	// What the consumer can do something about comes first.
	_, err = a.Enter(netip.MustParseAddr("192.0.2.1"))
	refusal(t, err, http.StatusTooManyRequests, "address_full")
}

func TestFilterBudget(t *testing.T) {
	a := subscribe.NewAdmission(0, 0, 100)
	p, q := enter(t, a, "192.0.2.1"), enter(t, a, "192.0.2.1")
	want := func(p *subscribe.Place, n int, ok bool, held int) {
		t.Helper()
		err := p.Want(n)
		if ok && err != nil {
			t.Fatalf("%d: %v", n, err)
		}
		if !ok {
			refusal(t, err, http.StatusServiceUnavailable, "filter_budget", "at most 100 DIDs")
		}
		if got := a.Held()[2]; got != held {
			t.Fatalf("%d DIDs are held, want %d", got, held)
		}
	}
	want(p, 60, true, 60)
	want(q, 41, false, 60)
	want(q, 40, true, 100)
	want(q, 40, true, 100)
	want(p, 61, false, 100)
	want(p, 10, true, 50)
	want(q, 90, true, 100)
	p.Leave()
	p.Leave()
	want(p, 5, true, 90) // it has left: nothing
	want(q, 0, true, 0)
	q.Leave()
	if got := a.Held(); got != [3]int{} {
		t.Errorf("held at the end: %v", got)
	}
	if n := len(subscribe.FilterBudgetReason); n > 123 {
		t.Errorf("the reason has %d bytes, more than a close frame holds", n)
	}
	r := enter(t, subscribe.NewAdmission(0, 0, 0), "192.0.2.1")
	if err := r.Want(2_000_000); err != nil {
		t.Error(err)
	}
	refusal(t, r.Want(2_000_001), http.StatusServiceUnavailable, "filter_budget", "2000000")
}

// Whoever comes and goes at once, no limit is ever exceeded and nothing stays.
func TestAdmissionRace(t *testing.T) {
	const places, perAddress, dids, addresses = 8, 3, 200, 4
	a := subscribe.NewAdmission(places, perAddress, dids)
	var inside, wanted atomic.Int64
	var by [addresses]atomic.Int64
	refused := map[string]*atomic.Int64{"server_full": {}, "address_full": {}, "filter_budget": {}}
	var group sync.WaitGroup
	for g := range 16 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(1, uint64(g)))
			for range 2_000 {
				i := random.IntN(addresses)
				p, err := a.Enter(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
				if err != nil {
					refused[subscribe.Refuse(httptest.NewRecorder(), err)].Add(1)
					continue
				}
				if n := inside.Add(1); n > places {
					t.Errorf("%d places", n)
				}
				if n := by[i].Add(1); n > perAddress {
					t.Errorf("%d places for an address", n)
				}
				held := 0
				for range 3 {
					n := random.IntN(120)
					if n < held {
						wanted.Add(int64(n - held)) // before it can be another's
					}
					if err := p.Want(n); err != nil {
						refused[subscribe.Refuse(httptest.NewRecorder(), err)].Add(1)
						continue
					}
					if n > held {
						if sum := wanted.Add(int64(n - held)); sum > dids {
							t.Errorf("%d DIDs", sum)
						}
					}
					held = n
				}
				runtime.Gosched() // let others meet it
				wanted.Add(int64(-held))
				by[i].Add(-1)
				inside.Add(-1)
				var both sync.WaitGroup
				both.Go(p.Leave)
				p.Leave()
				both.Wait()
			}
		})
	}
	group.Wait()
	if got := a.Held(); got != [3]int{} {
		t.Errorf("held at the end: %v", got)
	}
	for reason, n := range refused {
		if n.Load() == 0 {
			t.Errorf("nobody was refused by %s: the test does not test much", reason)
		}
	}
}
