package client_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"time"

	"github.com/bluesky-social/indigo/api/bsky"

	"slipstream/pkg/client"
)

// countFollowers tells how many followers somebody has won or lost since a time, whenever that changes.
func countFollowers(ctx context.Context, url string, since client.Cursor, tell func(did string, change int)) error {
	c, err := client.New(client.Config{
		URL:     url,
		Filter:  client.Filter{Collections: []string{"app.bsky.graph.follow"}, Kinds: []client.Kind{client.KindCommit}},
		Cursor:  since,
		OnRetry: func(err error, wait time.Duration) { log.Printf("%v; again in %s", err, wait) },
	})
	if err != nil {
		return err
	}
	follows := map[string]string{} // who is followed, by the record's URI: a delete does not say
	change := map[string]int{}
	for ev, err := range c.Events(ctx) {
		if err != nil {
			return err
		}
		followed, seen := follows[ev.URI()]
		if seen { // deleted, or replaced
			delete(follows, ev.URI())
			change[followed]--
			tell(followed, change[followed])
		}
		record, err := ev.Commit.Decode()
		if follow, ok := record.(*bsky.GraphFollow); ok && err == nil {
			follows[ev.URI()] = follow.Subject
			change[follow.Subject]++
			tell(follow.Subject, change[follow.Subject])
		}
	}
	return nil
}

// A counter of followers won and lost in the last hour, and from now on.
func Example_followerCounter() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := countFollowers(ctx, "localhost:6008", client.At(time.Now().Add(-time.Hour)), func(did string, change int) {
		fmt.Printf("%s %+d\n", did, change)
	})
	if err != nil {
		log.Fatal(err)
	}
}
