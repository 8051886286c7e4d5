// Package compat runs clients that other people wrote, unchanged, against the real binary, and
// compares what they received with what was sent: `make compat`. All else in this repository is
// tested by consumers of our own making, which would share our misunderstandings.
//
// A simulated relay sends 150 frames a second. Two daemons follow it, one of which has Bluesky's
// dictionary. A plain consumer in the test keeps all that each of them sends on each wire; it is
// the reference, and is itself compared with the relay's own ledger, which indigo's consumer of
// the firehose confirms. Each client replays, goes on live for a second or more, prints a line
// for each event, and is ended; filters are those of the documentation, applied to the reference.
// At last one daemon is ended and started again while all clients consume.
//
// Clients are installed in the user's cache directory, in one directory for each language, named
// for its manifests, which pin every version; it is used again as long as they stay the same. A
// language whose tools are missing is skipped, by name; an installation that fails is a failure.
//
// What clients do that a server, or who compares, has to know:
//
//   - @atcute/jetstream sends requireHello=true, a cursor and an options_update always; without
//     a cursor of its user's it makes one of the clock. It validates every event, and rejects
//     identity events without a handle, which are valid and exist.
//   - @skyware/jetstream takes a cursor of 0 for none.
//   - rocketman rejects account events with a status that it does not know (desynchronized,
//     throttled), does not pass an account's active on, and after a server's close frame
//     connects twice, so that more than one event may come again: allowed for, but a matter of
//     chance, and the one thing here that no test insists on.
//   - The Python SDK (atproto), which speaks v2 only, ends with an exception when a #sync event
//     comes, because its model has no bytes as JSON spells them ({"$bytes": ...}): ask for the
//     other kinds. It takes a close frame of 1001 for the end of the stream and returns from
//     start; started again, it goes on from its cursor. It adds "$type" to nested objects whose
//     type the lexicons know.
//   - ws and websockets offer permessage-deflate, which is declined.
//   - eventsource, which comes without a websocket, resumes after the last event that it got, not
//     at it: nothing comes again.
//   - wscat prints its prompt, "> ", in front of the next event when a line has been typed.
//   - websocat without --exit-on-eof stays when the server has closed the connection, until
//     something is typed.
package compat
