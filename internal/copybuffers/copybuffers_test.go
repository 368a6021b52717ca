package copybuffers

import (
	"math/rand/v2"
	"slices"
	"testing"
)

const size = 8 * 4096

// rig is a stock with sets that take of it.
type rig struct {
	*testing.T
	stock *Stock
	wants int
	woken []int
	sets  []*Set
}

func newRig(t *testing.T, configs ...Config) *rig {
	r := &rig{T: t, woken: make([]int, len(configs)), sets: make([]*Set, len(configs))}
	r.stock = NewStock(size, func() { r.wants++ })
	for i, cfg := range configs {
		cfg.Stock = r.stock
		r.sets[i] = &Set{}
		r.sets[i].Init(&cfg, func() { r.woken[i]++ })
	}
	return r
}

func buffersOf(n int) (list [][]byte) {
	for range n {
		list = append(list, make([]byte, size))
	}
	return list
}

// take takes a buffer, which must be there or not, of at least the size that was asked for.
func (r *rig) take(set int, need int64, there bool) []byte {
	r.Helper()
	b := r.sets[set].Take(need)
	if (b != nil) != there || there && int64(len(b)) < min(need, size) {
		r.Fatalf("a buffer of %d bytes: %d", need, len(b))
	}
	return b
}

// TestOwnSuffice: a lane that is given nothing goes on with its own: with pieces, with whole ones,
// and neither takes the other's.
func TestOwnSuffice(t *testing.T) {
	r := newRig(t, Config{Own: buffersOf(2), Most: 4, Cut: true})
	var all [][]byte
	for range pieces {
		all = append(all, r.take(0, size/pieces, true))
	}
	r.take(0, 1, false)
	whole := r.take(0, size, true)
	r.take(0, size/pieces+1, false)
	if r.wants == 0 {
		t.Error("nobody was told that there are no more")
	}
	for i, b := range all {
		for j := range b {
			b[j] = byte(i)
		}
	}
	for i, b := range all {
		if b[0] != byte(i) || b[len(b)-1] != byte(i) || &b[0] == &whole[0] {
			t.Fatalf("piece %d is another's too", i)
		}
		r.sets[0].Give(b)
	}
	r.sets[0].Give(whole)
	if n := r.sets[0].InUse(); n != 0 || len(r.stock.Idle()) != 0 {
		t.Errorf("%d in use", n)
	}
}

// TestOwnStaysOwn: while a lane has a borrowed buffer cut, it keeps the whole one of its own.
func TestOwnStaysOwn(t *testing.T) {
	r := newRig(t, Config{Own: buffersOf(2), Most: 4, Cut: true}, Config{Own: buffersOf(1), Most: 9})
	r.stock.Add(make([]byte, size))
	whole := r.take(0, size, true)
	for range pieces + 1 {
		r.take(0, 1, true)
	}
	r.sets[0].Give(whole)
	r.take(1, size, true)
	r.take(1, size, false)
	r.take(0, size, true)
}

// TestStock: a lane takes up to its most, gives back what is not its own, and is woken when it
// waits. What nobody has needed between two looks is idle.
func TestStock(t *testing.T) {
	r := newRig(t, Config{Own: buffersOf(1), Most: 3}, Config{Own: buffersOf(1), Most: 3})
	for range 3 {
		r.stock.Add(make([]byte, size))
	}
	a := [][]byte{r.take(0, 1, true), r.take(0, size, true), r.take(0, size, true)}
	r.take(0, size, false) // it has its most
	if r.wants != 0 {
		t.Error("more was wanted for a lane that has its most")
	}
	b := [][]byte{r.take(1, size, true), r.take(1, size, true)}
	r.take(1, size, false)
	if r.wants != 1 || !r.stock.Hungry() || r.woken[1] != 0 {
		t.Errorf("wanted %d times, woken %v", r.wants, r.woken)
	}
	r.sets[0].Give(a[0])
	if r.woken[1] != 1 || r.stock.Hungry() {
		t.Error("the lane that waits was not woken")
	}
	r.sets[0].Give(a[1])
	r.sets[0].Give(a[2])
	r.sets[1].Give(b[0])
	r.sets[1].Give(b[1])
	if n := len(r.stock.Idle()); n != 0 {
		t.Errorf("%d are idle that were just in use", n)
	}
	r.sets[0].Give(r.take(0, size, true)) // its own
	both := [][]byte{r.take(0, size, true), r.take(0, size, true)}
	r.sets[0].Give(both[0])
	r.sets[0].Give(both[1])
	if n := len(r.stock.Idle()); n != 2 {
		t.Errorf("%d are idle, expected 2: one has been in use", n)
	}
	if n := len(r.stock.Idle()); n != 1 {
		t.Errorf("%d are idle, expected 1", n)
	}
}

// TestRest: lanes of a complete clone keep what they are to keep, and give up what is in use when
// it comes back.
func TestRest(t *testing.T) {
	for rest := range 2 {
		r := newRig(t, Config{Own: buffersOf(3), Most: 4, Cut: true, Rest: rest})
		whole, piece := r.take(0, size, true), r.take(0, 1, true)
		r.sets[0].Rest()
		r.sets[0].Rest()
		r.sets[0].Give(whole)
		r.sets[0].Give(piece)
		r.stock.Idle()
		if n := len(r.stock.Idle()); n != 3-rest {
			t.Errorf("%d of 3 were given up, the lane keeps %d", n, rest)
		}
		if rest == 1 {
			r.sets[0].Give(r.take(0, 1, true))
		}
	}
}

// TestRandom: no byte is two users', nothing is lost, and a lane with nothing in use finds a buffer
// of either kind, whatever others do.
func TestRandom(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	r := newRig(t, Config{Own: buffersOf(2), Most: 5, Cut: true}, Config{Own: buffersOf(3), Most: 6}, Config{Own: buffersOf(1), Most: 9})
	all := 6
	inUse := make([][][]byte, len(r.sets))
	mark := byte(0)
	for range 20000 {
		lane := rng.IntN(len(r.sets))
		s, list := r.sets[lane], inUse[lane]
		switch n := rng.IntN(20); {
		case n == 0 && all < 16:
			r.stock.Add(make([]byte, size))
			all++
		case n == 1:
			all -= len(r.stock.Idle())
		case n < 11 && len(list) > 0:
			i := rng.IntN(len(list))
			b := list[i]
			for _, v := range b[1:] {
				if v != b[0] {
					t.Fatal("a buffer has two users")
				}
			}
			inUse[lane] = append(list[:i], list[i+1:]...)
			s.Give(b)
		default:
			need := int64(1 + rng.IntN(size))
			b := s.Take(need)
			alone := !slices.ContainsFunc(list, func(b []byte) bool { return (len(b) == size) != (need <= size/pieces && lane == 0) })
			if b == nil && alone {
				t.Fatalf("lane %d, which uses none of that kind, finds none of %d bytes", lane, need)
			}
			if b != nil {
				mark++
				for i := range b {
					b[i] = mark
				}
				inUse[lane] = append(list, b)
			}
		}
	}
	for lane, list := range inUse {
		for _, b := range list {
			r.sets[lane].Give(b)
		}
	}
	if n := len(r.stock.Idle()) + len(r.stock.Idle()); n != all-6 {
		t.Errorf("%d are in the stock, and 6 lanes', of %d", n, all)
	}
}
