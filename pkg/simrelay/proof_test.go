package simrelay_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/ipfs/go-cid"

	"slipstream/pkg/simrelay"
)

// Each commit must verify by indigo's own code: structure, records in the tree, the inversion of
// the ops down to prevData, the signature; and follow the repository's commit before it.
func TestProofsVerify(t *testing.T) {
	const total = 2000
	relay, url := start(t, simrelay.Config{Seed: 7, Accounts: 40, Records: 30, Total: total})
	conn := dial(t, url+"?cursor=0")
	type head struct {
		rev  string
		data cid.Cid
	}
	heads := map[string]head{}
	commits, syncs := 0, 0
	for range total {
		_, event, err := next(conn)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case event.RepoSync != nil:
			msg := event.RepoSync
			commit, _, err := repo.LoadCommitFromCAR(context.Background(), bytes.NewReader(msg.Blocks))
			if err != nil {
				t.Fatalf("sync %d: %v", msg.Seq, err)
			}
			if err := commit.VerifySignature(relay.PublicKey(msg.Did)); err != nil {
				t.Fatalf("sync %d: %v", msg.Seq, err)
			}
			if commit.Rev != msg.Rev || commit.DID != msg.Did {
				t.Fatalf("sync %d does not match its commit", msg.Seq)
			}
			heads[msg.Did] = head{msg.Rev, commit.Data}
			syncs++
		case event.RepoCommit != nil:
			msg := event.RepoCommit
			if _, err := repo.VerifyCommitMessage(context.Background(), msg); err != nil {
				t.Fatalf("commit %d: %v", msg.Seq, err)
			}
			commit, root, err := repo.LoadCommitFromCAR(context.Background(), bytes.NewReader(msg.Blocks))
			if err != nil {
				t.Fatalf("commit %d: %v", msg.Seq, err)
			}
			if *root != cid.Cid(msg.Commit) {
				t.Fatalf("commit %d is not the root of its CAR", msg.Seq)
			}
			if err := commit.VerifySignature(relay.PublicKey(msg.Repo)); err != nil {
				t.Fatalf("commit %d: %v", msg.Seq, err)
			}
			if before, ok := heads[msg.Repo]; ok {
				if msg.Since == nil || *msg.Since != before.rev || msg.PrevData == nil || cid.Cid(*msg.PrevData) != before.data {
					t.Fatalf("commit %d does not follow %s", msg.Seq, before.rev)
				}
				if msg.Rev <= before.rev {
					t.Fatalf("commit %d: rev %s after %s", msg.Seq, msg.Rev, before.rev)
				}
			}
			heads[msg.Repo] = head{msg.Rev, commit.Data}
			commits++
		}
	}
	if commits < total*9/10 || syncs == 0 {
		t.Errorf("%d commits, %d syncs", commits, syncs)
	}
}
