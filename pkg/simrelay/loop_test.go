package simrelay_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/ipfs/go-cid"

	"slipstream/pkg/simrelay"
)

// The loop mode sends, for any seq, what Expected says, under growing revs and with CIDs that
// fit: someone else's code finds every record in the CAR by the op's CID.
func TestLoop(t *testing.T) {
	const total, loop = 900, 300
	relay, url := start(t, simrelay.Config{Seed: 3, Accounts: 50, Loop: loop, Total: total})
	conn := dial(t, url+"?cursor=0")
	seen := map[string]bool{}
	lastRev := ""
	for range total {
		_, event, err := next(conn)
		if err != nil {
			t.Fatal(err)
		}
		seq, ok := event.GetSequence()
		if !ok {
			t.Fatal("a frame without seq")
		}
		expected := relay.Expected(seq)
		if event.RepoCommit == nil {
			if len(expected) != 1 {
				t.Fatalf("seq %d: %d expected events", seq, len(expected))
			}
			continue
		}
		msg := event.RepoCommit
		if msg.Rev <= lastRev {
			t.Fatalf("seq %d: rev %s after %s", seq, msg.Rev, lastRev)
		}
		lastRev = msg.Rev
		commit, r, err := repo.LoadRepoFromCAR(context.Background(), bytes.NewReader(msg.Blocks))
		if err != nil {
			t.Fatalf("seq %d: %v", seq, err)
		}
		if commit.DID != msg.Repo || commit.Rev != msg.Rev {
			t.Fatalf("seq %d: commit of %s at %s in a message of %s at %s", seq, commit.DID, commit.Rev, msg.Repo, msg.Rev)
		}
		if len(expected) != len(msg.Ops) {
			t.Fatalf("seq %d: %d ops, %d expected", seq, len(msg.Ops), len(expected))
		}
		for i, op := range msg.Ops {
			want := expected[i]
			if op.Path != want.Collection+"/"+want.RKey || op.Action != want.Action || msg.Repo != want.DID || msg.Rev != want.Rev {
				t.Fatalf("seq %d: got %s of %s at %s, want %+v", seq, op.Path, msg.Repo, msg.Rev, want)
			}
			if op.Cid == nil {
				continue
			}
			if op.Cid.String() != want.CID {
				t.Fatalf("seq %d: CID %s, want %s", seq, op.Cid, want.CID)
			}
			// The blockstore is filled by a CAR reader that checks every block's hash.
			if _, err := r.RecordStore.Get(context.Background(), cid.Cid(*op.Cid)); err != nil {
				t.Fatalf("seq %d: %v", seq, err)
			}
			if key := want.DID + want.CID; seen[key] && len(want.RecordJSON) > 200 {
				t.Errorf("seq %d: the record of %s came before", seq, op.Path)
			} else {
				seen[key] = true
			}
		}
	}
}
