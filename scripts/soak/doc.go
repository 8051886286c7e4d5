// Package soak leaves the real daemon alone with everything at once, for as long as SLIPSTREAM_SOAK
// says (`make soak`: an hour): consumers of both protocols, plain and compressed, filtered and
// not, that come and go, resume, change their filters, read slowly or not at all and break rules;
// a relay that cuts, stalls and sends what is broken; restarts, orderly and by kill -9, each with
// another build of the program; and retention, which removes events every second.
//
// The first and the last quarter are made of short lives. The half between them is one life, in
// which everybody but some faithful consumers leaves now and then, and goroutines, descriptors
// and memory are looked at. Nothing may have grown since the early looks in the late ones.
//
// What everybody receives is held against the relay's own ledger, event by event, over all
// connections: nothing lost, nothing twice but the event that a cursor names, in one order,
// under one time_us and with the same bytes for ever. Who falls off the buffer must be told so, and
// may lose no event that is younger than --event-ttl.
//
// --max-disk has a lower limit that an hour at this rate does not reach: the disk is held against
// it, but it is age that events are removed for.
package soak
