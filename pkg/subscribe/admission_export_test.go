package subscribe

import (
	"errors"
	"net/http"
	"net/netip"
)

// Admission decides who may subscribe.
type Admission struct{ a *admission }

// NewAdmission makes one with these limits; 0: none, or the default.
func NewAdmission(subscribers, perAddress, filterDIDs int, trusted ...netip.Prefix) Admission {
	a := Admission{&admission{addresses: map[netip.Addr]int{}}}
	a.SetLimits(Limits{MaxSubscribers: subscribers, MaxSubscribersPerIP: perAddress, MaxFilterDIDs: filterDIDs, TrustedProxies: trusted})
	return a
}

// SetLimits is admission's set.
func (a Admission) SetLimits(l Limits) { a.a.set(l.withDefaults()) }

// Client is admission's.
func (a Admission) Client(r *http.Request) netip.Addr { return a.a.client(r) }

// Enter is admission's.
func (a Admission) Enter(addr netip.Addr) (*Place, error) {
	p, refused := a.a.enter(addr, 0)
	if refused != nil {
		return nil, refused
	}
	return &Place{p}, nil
}

// Held returns what is reserved: places, addresses with places that count, and DIDs.
func (a Admission) Held() [3]int {
	dids := a.a.wantedDIDs()
	a.a.mu.Lock()
	defer a.a.mu.Unlock()
	return [3]int{a.a.places, len(a.a.addresses), dids}
}

// Place is a consumer's share.
type Place struct{ place }

// Want and Leave are place's.
func (p *Place) Want(n int) error {
	if !p.want(n) {
		return p.admission.rules.Load().budgetFull
	}
	return nil
}
func (p *Place) Leave() { p.leave() }

// Refuse answers a request with what err, a refusal, asks for and returns the metric's
// label.
func Refuse(w http.ResponseWriter, err error) string {
	var refused *refusedError
	if !errors.As(err, &refused) {
		return ""
	}
	refused.answer(w)
	return refused.reason.String()
}

// FilterBudgetReason is what a close frame says.
const FilterBudgetReason = filterBudgetReason

// Refusals returns every label.
func Refusals() (labels []string) {
	for r := range refusals {
		labels = append(labels, r.String())
	}
	return labels
}
