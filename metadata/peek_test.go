package metadata

import (
	"errors"
	"testing"
)

// TestPeek: whoever only looks sees the newest superblock and changes nothing, also when one copy
// is just being written.
func TestPeek(t *testing.T) {
	d, s := create(t)
	mustUpdate(t, s, func(sb *Superblock) { sb.Settings.Rate = 7 })
	before := len(d.Unflushed())
	for _, c := range []struct {
		name    string
		damaged []int
		err     error
	}{
		{"both copies", nil, nil},
		{"copy 0 is being written", []int{0}, nil},
		{"copy 1 is being written", []int{1}, nil},
		{"none can be read", []int{0, 1}, ErrDamaged},
	} {
		for _, i := range c.damaged {
			edit(t, d, copyOffset(i), flip(offSession))
		}
		sb, err := Peek(d)
		if !errors.Is(err, c.err) || err == nil && sb != s.Superblock() {
			t.Errorf("%s: %v, %v", c.name, sb, err)
		}
		for _, i := range c.damaged {
			edit(t, d, copyOffset(i), flip(offSession))
		}
	}
	if n := len(d.Unflushed()); n != before {
		t.Errorf("%d writes are not flushed, %d were before", n, before)
	}
	edit(t, d, copyOffset(0), reseal(func(b []byte) { b[offVersion]++ }))
	if _, err := Peek(d); !errors.Is(err, ErrVersion) {
		t.Errorf("another version: %v", err)
	}
}
