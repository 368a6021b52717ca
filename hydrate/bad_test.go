package hydrate

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ublk-clone/ublk-clone/bitmap"
)

// TestBadRanges compares badRanges with the obvious: a table by region, and a look at all of it.
func TestBadRanges(t *testing.T) {
	const regions, limit = 24, 4
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 3))
		now := time.Unix(0, 0)
		b := badRanges{now: func() time.Time { return now }, limit: limit}
		bad := map[uint64]*badRegion{}
		for step := range 200 {
			now = now.Add(time.Duration(rng.Int64N(int64(firstBackoff))))
			switch r := rng.Uint64N(regions); rng.IntN(8) {
			case 0, 1, 2, 3:
				b.failed(r)
				if bad[r] == nil {
					bad[r] = &badRegion{region: r}
				}
				bad[r].again = now.Add(min(lastBackoff, firstBackoff<<bad[r].attempts))
				bad[r].attempts++
			case 4:
				end := r + 1 + rng.Uint64N(3)
				b.succeeded(r, end)
				for ; r < end; r++ {
					delete(bad, r)
				}
			case 5:
				users := bitmap.New(regions, make([]bitmap.Page, 1))
				users.Mark(bitmap.PlaneHydrated, r, r+1, bitmap.NewDelta(1, 1))
				b.prune(users)
				delete(bad, r)
			default:
				got, ok := b.due()
				want, found := uint64(regions), false
				for r, x := range bad {
					if x.attempts < limit && !now.Before(x.again) && r < want {
						want, found = r, true
					}
				}
				if ok != found || ok && got != want {
					t.Fatalf("seed %d, step %d: due %d %t, expected %d %t", seed, step, got, ok, want, found)
				}
				if found {
					bad[want].again = now.Add(lastBackoff)
				}
			}
			compareBad(t, &b, bad, now)
			if t.Failed() {
				t.Fatalf("seed %d, step %d", seed, step)
			}
		}
	}
}

func compareBad(t *testing.T, b *badRanges, bad map[uint64]*badRegion, now time.Time) {
	t.Helper()
	var ranges []BadRange
	wait, tries := time.Duration(0), false
	for r := range uint64(30) {
		behind, before := r, uint64(40)
		for bad[behind] != nil {
			behind++
		}
		for x := r + 1; x < 40; x++ {
			if bad[x] != nil {
				before = x
				break
			}
		}
		if got := b.behind(r); got != behind {
			t.Errorf("behind %d is %d, expected %d", r, got, behind)
		}
		for _, stop := range []uint64{r + 1, r + 3, 40} {
			if got := b.before(r, stop); got != min(stop, before) {
				t.Errorf("before %d in (%d, %d], expected %d", got, r, stop, min(stop, before))
			}
		}
		x := bad[r]
		if x == nil {
			continue
		}
		if n := len(ranges); n > 0 && ranges[n-1].End == r {
			ranges[n-1].End, ranges[n-1].Attempts = r+1, max(ranges[n-1].Attempts, x.attempts)
		} else {
			ranges = append(ranges, BadRange{r, r + 1, x.attempts})
		}
		if d := max(0, x.again.Sub(now)); x.attempts < b.limit && (!tries || d < wait) {
			wait, tries = d, true
		}
	}
	if got := b.list(); !slices.Equal(got, ranges) || b.empty() != (len(bad) == 0) {
		t.Errorf("list %v, empty %t, expected %v", got, b.empty(), ranges)
	}
	if got, ok := b.nextTry(); got != wait || ok != tries {
		t.Errorf("next try in %v %t, expected %v %t", got, ok, wait, tries)
	}
}
