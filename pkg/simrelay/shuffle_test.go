package simrelay_test

import (
	"fmt"
	"slices"
	"testing"

	"slipstream/pkg/simrelay"
)

// Two relays of one network send the same events, each repo's in the same order, in different
// orders and under different numbers.
func TestShuffle(t *testing.T) {
	const total = 3000
	var all [2][]string
	for i := range all {
		relay, url := start(t, simrelay.Config{Seed: 3, Accounts: 50, Total: total, FirstSeq: first + int64(i)*1e9, Shuffle: uint64(i + 1)})
		collect(t, url, total)
		for seq := first + int64(i)*1e9; seq <= relay.LastSeq(); seq++ {
			for _, e := range relay.Expected(seq) {
				if e.Seq != seq {
					t.Fatalf("frame %d says %d", seq, e.Seq)
				}
				e.Seq = 0
				all[i] = append(all[i], fmt.Sprint(e))
			}
		}
	}
	if len(all[0]) < total || slices.Equal(all[0], all[1]) {
		t.Fatalf("%d events, in the same order", len(all[0]))
	}
	byRepo := func(events []string) []string {
		slices.SortStableFunc(events, func(a, b string) int {
			repo := func(s string) (did string) {
				var kind string
				fmt.Sscanf(s, "{0 %s %s", &kind, &did)
				return did
			}
			if repo(a) < repo(b) {
				return -1
			} else if repo(a) > repo(b) {
				return 1
			}
			return 0
		})
		return events
	}
	if !slices.Equal(byRepo(all[0]), byRepo(all[1])) {
		t.Error("the events of a repo differ, or their order")
	}
}
