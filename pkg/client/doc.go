// Package client is the Go client of a Jetstream, of Slipstream's or anybody's: what a bot imports.
//
//	c, err := client.New(client.Config{
//		URL:    "wss://jetstream.example",
//		Filter: client.Filter{Collections: []string{"app.bsky.feed.post"}},
//		Store:  client.FileCursor("bot.cursor"),
//	})
//	...
//	for ev, err := range c.Events(ctx) {
//		if err != nil {
//			return err // final: everything that may pass has been tried again
//		}
//		post, err := client.Record[bsky.FeedPost](ev)
//		...
//		c.Ack(ev.Cursor)
//	}
//
// It speaks both wires, v1 and v2, and knows no server package.
//
// # What is delivered
//
// Every event that the filter wants, at least once, in the server's order. A cursor is inclusive, so
// the server sends the event at the cursor again; the client knows it and leaves it out. In one run of
// a program nothing comes twice. In the next, what was handed out and not acknowledged does. Who
// keeps data in a database keeps the cursor there, in the same transaction, and then has each
// event exactly once: see the feed indexer among the examples.
//
// That holds as long as the server's buffer reaches back to the cursor, which with a filter that
// matches rarely can be a long time ago. A v1 server then begins at its oldest event and says
// nothing; a v2 server refuses, which is ErrCursorTooOld.
//
// # What is tried again
//
// A connection that cannot be made, breaks, is closed by the server or is silent, and status 408,
// 425, 429 and 5xx, with waits that double up to MaxBackoff. Final are all other refusals (400 for a
// parameter, 404, CursorTooOld, UnknownZstdDictionary, a redirect), a filter that is refused, an address
// that is no Jetstream's, a dictionary that is not to be had or is damaged, a message that is too large
// or cannot be decompressed, and a Store that fails. A message that is no event is left out, counted
// and told to OnInfo.
//
// # What it costs
//
// One goroutine for pings and, with a Store, one that saves; reading and decoding is done by the loop
// itself. Memory is that of one message, at most MaxMessage, and of what the loop keeps.
package client
