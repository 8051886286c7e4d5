package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"testing"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/atdata"
	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/bluesky-social/indigo/events"
	"github.com/bluesky-social/indigo/events/schedulers/sequential"
	"github.com/gorilla/websocket"

	"slipstream/pkg/simrelay"
)

// tryIndigo runs indigo's consumer of the firehose against our simulated relay: what makes the
// truth of all other tests is itself proved by somebody else's code.
func tryIndigo(t *testing.T, n *network, _ *client, f feature) {
	const frames = 600
	first := int64(simrelay.DefaultFirstSeq)
	var got []string
	switch f {
	case plain:
		got = indigo(t, n.upstream, 0, first+frames-1)
	case resume:
		got = indigo(t, n.upstream, 0, first+frames/2)
		got = append(got, indigo(t, n.upstream, first+frames/2, first+frames-1)...)
	}
	var want []string
	for seq := first; seq < first+frames; seq++ {
		for _, e := range n.relay.Expected(seq) {
			want = append(want, expectedLine(e))
		}
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("event %d of %d, %d were sent\n got %s\nwant %s", i, len(got), len(want),
				append(got, "nothing")[min(i, len(got))], append(want, "nothing")[min(i, len(want))])
		}
	}
	t.Logf("%d events, all right", len(got))
}

var errEnough = errors.New("that is enough")

// indigo consumes the frames after cursor, up to a seq, and returns their events.
func indigo(t *testing.T, endpoint string, cursor, last int64) (lines []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ws, _, err := websocket.DefaultDialer.Dial(fmt.Sprintf("%s/xrpc/com.atproto.sync.subscribeRepos?cursor=%d", endpoint, cursor), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	text := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	add := func(x simrelay.Expected) error {
		lines = append(lines, expectedLine(x))
		return nil
	}
	callbacks := &events.RepoStreamCallbacks{
		RepoCommit: func(m *comatproto.SyncSubscribeRepos_Commit) error {
			verified, err := repo.VerifyCommitMessage(ctx, m)
			if err != nil {
				return fmt.Errorf("commit %d: %w", m.Seq, err)
			}
			for _, op := range m.Ops {
				x := simrelay.Expected{Seq: m.Seq, Kind: "commit", DID: m.Repo, Rev: m.Rev, Action: op.Action}
				x.Collection, x.RKey, _ = strings.Cut(op.Path, "/")
				if op.Cid != nil {
					x.CID = op.Cid.String()
					if x.RecordJSON, err = recordJSON(ctx, verified, x.Collection, x.RKey); err != nil {
						return fmt.Errorf("commit %d: %w", m.Seq, err)
					}
				}
				add(x)
			}
			return nil
		},
		RepoSync: func(m *comatproto.SyncSubscribeRepos_Sync) error {
			if _, _, err := repo.LoadCommitFromCAR(ctx, bytes.NewReader(m.Blocks)); err != nil {
				return fmt.Errorf("sync %d: %w", m.Seq, err)
			}
			return add(simrelay.Expected{Seq: m.Seq, Kind: "sync", DID: m.Did, Rev: m.Rev, Time: m.Time})
		},
		RepoIdentity: func(m *comatproto.SyncSubscribeRepos_Identity) error {
			return add(simrelay.Expected{Seq: m.Seq, Kind: "identity", DID: m.Did, Time: m.Time, Handle: text(m.Handle)})
		},
		RepoAccount: func(m *comatproto.SyncSubscribeRepos_Account) error {
			return add(simrelay.Expected{Seq: m.Seq, Kind: "account", DID: m.Did, Time: m.Time, Active: m.Active, Status: text(m.Status)})
		},
		Error: func(m *events.ErrorFrame) error { return fmt.Errorf("%s: %s", m.Error, m.Message) },
	}
	schedule := sequential.NewScheduler("compat", func(ctx context.Context, e *events.XRPCStreamEvent) error {
		if err := callbacks.EventHandler(ctx, e); err != nil {
			return err
		}
		if e.Sequence() >= last {
			return errEnough
		}
		return nil
	})
	if err := events.HandleRepoStream(ctx, ws, schedule, slog.New(slog.NewTextHandler(io.Discard, nil))); !errors.Is(err, errEnough) {
		t.Fatal(err)
	}
	return lines
}

func recordJSON(ctx context.Context, r *repo.Repo, collection, rkey string) ([]byte, error) {
	b, _, err := r.GetRecordBytes(ctx, syntax.NSID(collection), syntax.RecordKey(rkey))
	if err != nil {
		return nil, err
	}
	record, err := atdata.UnmarshalCBOR(b)
	if err != nil {
		return nil, err
	}
	return json.Marshal(record)
}
