package clone

import (
	"errors"
	"slices"
	"testing"
)

// durable is what EachDurable visits, joined, in regions.
func (r *rig) durable(unit int64) (found [][2]int64) {
	end := int64(-1)
	r.core.EachDurable(unit, func(off, length int64) {
		if off < end {
			r.t.Errorf("byte %d is visited after byte %d", off, end)
		}
		if last := len(found) - 1; last >= 0 && off == end {
			found[last][1] = (off + length) / testRegion
		} else {
			found = append(found, [2]int64{off / testRegion, (off + length) / testRegion})
		}
		end = off + length
	})
	return found
}

// TestEachDurable: what is marked is visited when its commit has ended and not before, also while
// the commit is under way; of a commit that fails nothing is.
func TestEachDurable(t *testing.T) {
	r := newRig(t, 64, 4)
	want := func(when string, unit int64, want ...[2]int64) {
		t.Helper()
		if got := r.durable(unit * testRegion); !slices.Equal(got, want) {
			t.Errorf("%s: %v, expected %v", when, got, want)
		}
	}
	write := func(first, n int64) {
		t.Helper()
		a := r.submit(OpWrite, first*testRegion, n*testRegion)
		r.endAll()
		r.want(a, nil)
	}
	write(8, 16)
	want("marked", 1)
	r.onFlush = func() { want("while it is committed", 1) }
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	r.onFlush = nil
	want("committed", 1, [2]int64{8, 24})
	write(24, 4)
	write(40, 1)
	want("some more are marked", 1, [2]int64{8, 24})
	want("in larger pieces", 16, [2]int64{8, 16})
	r.onFlush = func() {
		write(41, 1)
		want("marked in the commit", 1, [2]int64{8, 24})
	}
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	r.onFlush = nil
	want("all but the last committed", 1, [2]int64{8, 28}, [2]int64{40, 41})
	r.storeErr = errInjected
	if err := r.commit(); !errors.Is(err, errInjected) {
		t.Fatal(err)
	}
	want("a commit has failed", 1, [2]int64{8, 28}, [2]int64{40, 41})
}

// TestEachDurableOfAll: of a device with a short tail, over several pages of the map.
func TestEachDurableOfAll(t *testing.T) {
	const size = 40000*testRegion + 512
	r := newRigOf(t, size, testRegion, 4)
	for off := int64(0); off < size; off += 1 << 20 {
		r.submit(OpWrite, off, min(1<<20, size-off))
		r.endAll()
	}
	if err := r.commit(); err != nil {
		t.Fatal(err)
	}
	var total, last int64
	r.core.EachDurable(1<<20, func(off, length int64) { total, last = total+length, off+length })
	if total != size || last != size {
		t.Errorf("%d bytes up to %d, of %d", total, last, size)
	}
}
