package subscribe

import (
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
)

// defaultFilterDIDs is how many DIDs the filters of all consumers may name together: at some 160
// bytes each they are the one thing of a consumer's that is not small. A wanted collection
// counts as one too, and a name of more than 64 bytes as several: see Filter.cost.
const defaultFilterDIDs = 2_000_000

// retryAfter is what a refused consumer is told to wait, in seconds: long enough that a
// crowd of them costs nothing, short enough for who reconnects after a restart.
const retryAfter = 30

// refusal says why a request to subscribe was refused.
type refusal uint8

const (
	refusedRequest refusal = iota // a parameter that makes no sense
	refusedServerFull
	refusedAddressFull
	refusedFilterBudget
	refusals
)

// String returns the metric's label.
func (r refusal) String() string {
	return [refusals]string{"bad_request", "server_full", "address_full", "filter_budget"}[r]
}

// refusedError refuses a consumer that did nothing wrong. Its text is meant for the
// consumer.
type refusedError struct {
	reason   refusal
	status   int  // of HTTP
	retry    bool // the answer says when to come again
	sentence string
}

// Error returns the sentence.
func (e *refusedError) Error() string { return e.sentence }

// answer refuses a handshake of the v1 wire.
func (e *refusedError) answer(w http.ResponseWriter) {
	if e.retry {
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	}
	http.Error(w, e.sentence, e.status)
}

// errShuttingDown refuses who comes too late.
var errShuttingDown = &refusedError{status: http.StatusServiceUnavailable, sentence: "the server is shutting down"}

// filterBudgetReason is why an options_update that exceeds the budget of DIDs ends its
// connection, with status 1013 (Try Again Later). A close frame has room for 123 bytes.
const filterBudgetReason = "wantedDids: the filters of all consumers together are full; ask for fewer, or try again later"

// admission decides who may subscribe. Its memory is bounded by the consumers that are
// there: an address without any leaves nothing behind.
type admission struct {
	rules atomic.Pointer[rules] // what is there by other rules than these stays

	mu        sync.Mutex // guards everything below, and every place
	places    int
	addresses map[netip.Addr]int // places by address; only what counted returns, never 0
	dids      int
}

// rules are limits, and what is said to those who are beyond them. They are immutable.
type rules struct {
	*Limits
	serverFull, addressFull, budgetFull *refusedError
}

// set makes these the limits.
func (a *admission) set(l *Limits) {
	r := &rules{Limits: l}
	r.serverFull = &refusedError{refusedServerFull, http.StatusServiceUnavailable, true, fmt.Sprintf(
		"the server is full: it serves at most %d consumers at a time; try again later, or at another server", l.MaxSubscribers)}
	r.addressFull = &refusedError{refusedAddressFull, http.StatusTooManyRequests, true, fmt.Sprintf(
		"an address (of IPv6: a /64 network) may have at most %d connections here, and yours has as many; close one before you open another: one connection takes %d collections and %d DIDs",
		l.MaxSubscribersPerIP, maxCollections, maxDIDs)}
	r.budgetFull = &refusedError{refusedFilterBudget, http.StatusServiceUnavailable, true, fmt.Sprintf(
		"the filters of all consumers together may name at most %d DIDs, which yours would exceed; ask for fewer, or try again later", l.MaxFilterDIDs)}
	a.rules.Store(r)
}

// client returns who is connecting: the peer, or, if that is a trusted proxy, whom the
// proxies name: the rightmost address in X-Forwarded-For that is no trusted proxy itself.
// An entry that is no address ends the search: the proxy that passed it on counts. What
// any other peer claims is ignored, and so are Forwarded (RFC 7239) and X-Real-IP: proxies
// pass on those that they do not set, so that a client could set them. The result is not
// valid if the peer has no IP address.
func (a *admission) client(r *http.Request) netip.Addr {
	rules := a.rules.Load()
	var at netip.Addr
	if peer, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		at = plain(peer.Addr())
	}
	lines := r.Header["X-Forwarded-For"]
	for i := len(lines) - 1; i >= 0; i-- {
		for rest, more := lines[i], true; more; {
			if !rules.trusts(at) {
				return at
			}
			comma := strings.LastIndexByte(rest, ',')
			entry := strings.TrimSpace(rest[comma+1:])
			if more = comma >= 0; more {
				rest = rest[:comma]
			}
			if entry == "" {
				continue // by RFC 9110, section 5.6.1, an empty element is none
			}
			hop, ok := parseHop(entry)
			if !ok {
				return at
			}
			at = hop
		}
	}
	return at
}

// parseHop reads an entry of X-Forwarded-For: an address, with a port from some proxies.
func parseHop(s string) (netip.Addr, bool) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return plain(addr), true
	}
	if addr, err := netip.ParseAddrPort(s); err == nil {
		return plain(addr.Addr()), true
	}
	if bare, ok := strings.CutPrefix(s, "["); ok {
		if bare, ok = strings.CutSuffix(bare, "]"); ok {
			addr, err := netip.ParseAddr(bare)
			return plain(addr), err == nil
		}
	}
	return netip.Addr{}, false
}

// plain returns an address in the one form in which it is compared.
func plain(addr netip.Addr) netip.Addr { return addr.Unmap().WithZone("") }

func (r *rules) trusts(addr netip.Addr) bool {
	for _, p := range r.TrustedProxies {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// counted returns what of an address the limit per address counts: of IPv6 the /64, which
// is what one customer gets. A proxy's address stands for everyone behind it, and so may
// one of this host or of a private network, which is what a proxy that was not declared
// and the gateway of a container have: neither counts, since a limit that locks out all
// consumers of a forgotten proxy is worse than none for those who share the network. Places are
// counted whatever the limit is, since it may be changed.
func (r *rules) counted(addr netip.Addr) (netip.Addr, bool) {
	addr = plain(addr)
	if !addr.IsValid() || addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast() || r.trusts(addr) {
		return addr, false
	}
	if addr.Is6() {
		addr = netip.PrefixFrom(addr, 64).Masked().Addr()
	}
	return addr, true
}

// enter reserves a place for a consumer at addr whose filter names so many DIDs. Every
// place that is given must be left.
func (a *admission) enter(addr netip.Addr, dids int) (place, *refusedError) {
	r := a.rules.Load()
	key, counts := r.counted(addr)
	a.mu.Lock()
	defer a.mu.Unlock()
	if refused := a.refuseLocked(r, key, counts, dids); refused != nil {
		return place{}, refused
	}
	a.places++
	a.dids += dids
	p := place{admission: a, dids: dids}
	if counts {
		a.addresses[key]++
		p.address = key
	}
	return p, nil
}

// full returns how a consumer at addr would be refused now whatever it asked for, or nil.
func (a *admission) full(addr netip.Addr) *refusedError {
	r := a.rules.Load()
	key, counts := r.counted(addr)
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.refuseLocked(r, key, counts, 0)
}

func (a *admission) refuseLocked(r *rules, key netip.Addr, counts bool, dids int) *refusedError {
	switch {
	case counts && r.MaxSubscribersPerIP > 0 && a.addresses[key] >= r.MaxSubscribersPerIP:
		return r.addressFull // first: it is what this consumer can do something about
	case r.MaxSubscribers > 0 && a.places >= r.MaxSubscribers:
		return r.serverFull
	case dids > 0 && dids > r.MaxFilterDIDs-a.dids: // which a lowered limit makes negative
		return r.budgetFull
	}
	return nil
}

// place is a consumer's share of the server. The zero value is one that has been left. It
// must not be copied once it is in use.
type place struct {
	admission *admission // nil: the zero value

	// Guarded by admission.mu.
	address netip.Addr // as counted; not valid: it is not
	dids    int
	left    bool
}

// want makes the consumer's filter name n DIDs instead of what it named before. Where that
// is refused everything stays as it is.
func (p *place) want(n int) (ok bool) {
	a := p.admission
	if a == nil {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.left {
		return true
	}
	// Who asks for no more than before is never refused.
	if n > p.dids && n-p.dids > a.rules.Load().MaxFilterDIDs-a.dids {
		return false
	}
	a.dids += n - p.dids
	p.dids = n
	return true
}

// leave gives the place back, and its DIDs. All calls but the first do nothing.
func (p *place) leave() {
	a := p.admission
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if p.left {
		return
	}
	p.left = true
	a.places--
	a.dids -= p.dids
	if !p.address.IsValid() {
		return
	}
	if a.addresses[p.address]--; a.addresses[p.address] == 0 {
		delete(a.addresses, p.address)
	}
}

// wantedDIDs returns how many DIDs all filters name together.
func (a *admission) wantedDIDs() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dids
}
