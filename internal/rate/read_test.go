package rate

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/blockdev"
)

// TestReadRate: a source is measured, from the offset on, and one that fails or has nothing is not
// taken for fast.
func TestReadRate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "source")
	random := make([]byte, 4<<20)
	rng := rand.NewChaCha8([32]byte{})
	_, _ = rng.Read(random) // it never fails
	if err := os.WriteFile(path, random, 0o600); err != nil {
		t.Fatal(err)
	}
	source, err := blockdev.Open(blockdev.Source, path, blockdev.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if rate, err := Read(source, 1<<20, source.Size()); rate <= 0 || err != nil {
		t.Errorf("%d bytes a second, %v", rate, err)
	}
	if rate, err := Read(source, source.Size(), source.Size()); rate != 0 || err == nil {
		t.Errorf("of nothing: %d bytes a second, %v", rate, err)
	}
	if rate, err := Read(source, 0, 8<<20); rate <= 0 || err == nil { // it was larger before
		t.Errorf("beyond the end: %d bytes a second, %v", rate, err)
	}
	source.Close()
	if rate, err := Read(source, 0, source.Size()); rate != 0 || err == nil {
		t.Errorf("of a closed file: %d bytes a second, %v", rate, err)
	}
}
