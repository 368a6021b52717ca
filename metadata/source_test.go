package metadata

import (
	"errors"
	"testing"
)

// withPieces is the sample superblock with all pieces of the source known.
func withPieces() *Superblock {
	sb := sample()
	for i := range sb.SourcePieces {
		sb.SourcePieces[i] = uint32(i) + 1
	}
	sb.SourceChangeNs = 77
	return sb
}

// TestMatchSource: what tells one source from another, and what somebody who vouches for it may
// have changed.
func TestMatchSource(t *testing.T) {
	for name, c := range map[string]struct {
		change                 func(*Superblock)
		content, overall, used error
	}{
		"the same":          {func(*Superblock) {}, nil, nil, nil},
		"touched":           {func(sb *Superblock) { sb.Source.ModTimeNs++ }, nil, ErrMismatch, ErrMismatch},
		"time put back":     {func(sb *Superblock) { sb.SourceChangeNs++ }, nil, nil, ErrMismatch},
		"another piece":     {func(sb *Superblock) { sb.SourcePieces[NrPieces-1]++ }, ErrMismatch, ErrMismatch, ErrMismatch},
		"a bad piece":       {func(sb *Superblock) { sb.SourcePieces[0] = 0 }, nil, nil, nil},
		"half of it is bad": {func(sb *Superblock) { clear(sb.SourcePieces[:NrPieces/2]) }, nil, nil, nil},
		"more is bad":       {func(sb *Superblock) { clear(sb.SourcePieces[:NrPieces/2+1]) }, ErrUnverified, ErrUnverified, ErrUnverified},
		"another size":      {func(sb *Superblock) { sb.Source.Size++ }, ErrMismatch, ErrMismatch, ErrMismatch},
		"another file":      {func(sb *Superblock) { sb.Source.ID += "x" }, ErrMismatch, ErrMismatch, ErrMismatch},
		"another sample":    {func(sb *Superblock) { sb.Source.Sample[0]++ }, nil, nil, nil}, // the pieces tell
	} {
		want := withPieces()
		c.change(want)
		if err := withPieces().MatchSourceContent(want); !errors.Is(err, c.content) {
			t.Errorf("%s: content: %v, expected %v", name, err, c.content)
		}
		if err := withPieces().MatchSource(want); !errors.Is(err, c.overall) {
			t.Errorf("%s: %v, expected %v", name, err, c.overall)
		}
		if err := withPieces().MatchUsedSource(want); !errors.Is(err, c.used) {
			t.Errorf("%s, used: %v, expected %v", name, err, c.used)
		}
	}
}

// TestMatchSourceOfFormerMetadata: without pieces the older sample tells, and no change time is
// compared.
func TestMatchSourceOfFormerMetadata(t *testing.T) {
	want := withPieces()
	if err := sample().MatchSource(want); err != nil {
		t.Error(err)
	}
	want.Source.Sample[0]++
	if err := sample().MatchSource(want); !errors.Is(err, ErrMismatch) {
		t.Errorf("another sample: %v", err)
	}
}

// TestPieceBadForGood: a piece that was unreadable when the metadata was made is not compared.
func TestPieceBadForGood(t *testing.T) {
	sb, want := withPieces(), withPieces()
	sb.SourcePieces[3] = 0
	if err := sb.MatchSource(want); err != nil {
		t.Error(err)
	}
	if got := sb.SourcePieces.Known(); got != NrPieces-1 {
		t.Errorf("%d pieces known", got)
	}
}

// TestSourceFeature: the feature bit is set with the first field that needs it, and not before, so
// that an older program can check that the rest of the block is empty.
func TestSourceFeature(t *testing.T) {
	d, s := create(t)
	if got := s.Superblock().FeatureCompat; got != 0 {
		t.Fatalf("features %#x without a need", got)
	}
	mustUpdate(t, s, func(sb *Superblock) { sb.Settings.SourceTimeout = 7 })
	mustUpdate(t, s, func(sb *Superblock) { sb.SourcePieces, sb.SourceChangeNs = withPieces().SourcePieces, 77 })
	again, _, err := Open(d)
	if err != nil {
		t.Fatal(err)
	}
	sb := again.Superblock()
	if sb.FeatureCompat != compatSource || sb.Settings.SourceTimeout != 7 || sb.SourceChangeNs != 77 || sb.SourcePieces != withPieces().SourcePieces {
		t.Errorf("found again: %+v", sb)
	}
}
