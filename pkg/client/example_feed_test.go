package client_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strings"

	"github.com/bluesky-social/indigo/api/bsky"
	_ "github.com/ncruces/go-sqlite3/driver"

	"slipstream/pkg/client"
)

// schema is what a feed generator needs to answer, newest first, and where the stream goes on.
const schema = `
	PRAGMA journal_mode = WAL;
	PRAGMA synchronous = NORMAL; -- a loss of power takes the last transactions, cursor and all
	CREATE TABLE IF NOT EXISTS posts (uri TEXT PRIMARY KEY, cid TEXT NOT NULL, text TEXT NOT NULL, cursor INTEGER NOT NULL);
	CREATE INDEX IF NOT EXISTS newest ON posts (cursor DESC);
	CREATE TABLE IF NOT EXISTS stream (id INTEGER PRIMARY KEY CHECK (id = 1), cursor INTEGER NOT NULL);`

// indexFeed keeps the posts that belong to a feed in a database, from the oldest that the server has on.
func indexFeed(ctx context.Context, url string, db *sql.DB, belongs func(*bsky.FeedPost) bool) error {
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return err
	}
	cursor := client.Oldest
	err := db.QueryRowContext(ctx, "SELECT cursor FROM stream").Scan(&cursor)
	if err != nil && err != sql.ErrNoRows {
		return err
	}
	c, err := client.New(client.Config{
		URL:      url,
		Filter:   client.Filter{Collections: []string{"app.bsky.feed.post"}, Kinds: []client.Kind{client.KindCommit}},
		Compress: true,
		Cursor:   cursor,
	})
	if err != nil {
		return err
	}
	for ev, err := range c.Events(ctx) {
		if err != nil {
			return err
		}
		if err := indexPost(db, ev, belongs); err != nil {
			return err
		}
	}
	return nil
}

// indexPost keeps the cursor with the post, in one transaction: neither is ever ahead of the other.
func indexPost(db *sql.DB, ev *client.Event, belongs func(*bsky.FeedPost) bool) error {
	tx, err := db.Begin()
	if err != nil {
		return err
	}
	defer tx.Rollback() // of no effect after Commit
	// A post that is changed may come to belong, or cease to.
	post, err := client.Record[bsky.FeedPost](ev)
	if err == nil && belongs(post) {
		_, err = tx.Exec("INSERT OR REPLACE INTO posts VALUES (?, ?, ?, ?)", ev.URI(), ev.Commit.CID, post.Text, ev.Cursor)
	} else {
		_, err = tx.Exec("DELETE FROM posts WHERE uri = ?", ev.URI())
	}
	if err != nil {
		return err
	}
	if _, err := tx.Exec("INSERT OR REPLACE INTO stream VALUES (1, ?)", ev.Cursor); err != nil {
		return err
	}
	return tx.Commit()
}

// An index for a feed generator of posts about gardens.
func Example_feedIndexer() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	db, err := sql.Open("sqlite3", "file:feed.db")
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()
	err = indexFeed(ctx, "localhost:6008", db, func(p *bsky.FeedPost) bool {
		return p.Reply == nil && strings.Contains(strings.ToLower(p.Text), "garden")
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("done")
}
