package client_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"

	"github.com/bluesky-social/indigo/api/bsky"

	"slipstream/pkg/client"
)

// keywordBot tells of every new post that has the word in it. When it is started again it goes on
// where it was, by the cursor in the file.
func keywordBot(ctx context.Context, url, file, word string, tell func(uri, text string)) error {
	c, err := client.New(client.Config{
		URL:      url,
		Filter:   client.Filter{Collections: []string{"app.bsky.feed.post"}, Kinds: []client.Kind{client.KindCommit}},
		Compress: true,
		Store:    client.FileCursor(file),
		Cursor:   client.Oldest, // the first time
	})
	if err != nil {
		return err
	}
	for ev, err := range c.Events(ctx) {
		if err != nil {
			return err
		}
		if ev.Commit.Operation == client.Create {
			// A record that is not what its lexicon says is nothing to stop for.
			post, err := client.Record[bsky.FeedPost](ev)
			if err == nil && strings.Contains(strings.ToLower(post.Text), word) {
				tell(ev.URI(), post.Text)
			}
		}
		c.Ack(ev.Cursor) // from here on the event does not come again
	}
	return nil
}

// A bot that waits for a word.
func Example_keywordBot() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := keywordBot(ctx, "localhost:6008", "keyword-bot.cursor", "slipstream", func(uri, text string) {
		fmt.Printf("%s\n  %q\n", uri, text)
	})
	if err != nil {
		log.Fatal(err)
	}
}
