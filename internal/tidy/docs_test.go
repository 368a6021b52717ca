package tidy

import (
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/docs"
)

// TestBlocksAreMarked: every fenced block of a document names its language, so that it is known
// which blocks are commands, and every document with commands is run by a test.
func TestBlocksAreMarked(t *testing.T) {
	documents, err := docs.Documents(root)
	if err != nil {
		t.Fatal(err)
	}
	runs := slices.Concat(docs.Device, docs.Service)
	printed := map[string]bool{}
	for _, document := range append(documents, "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "metadata/FORMAT.md") {
		blocks, err := docs.Blocks(root, document)
		if err != nil {
			t.Fatal(err)
		}
		commands := false
		for _, b := range blocks {
			if b.Language == "" && document == "ARCHITECTURE.md" {
				continue // drawings
			}
			if !slices.Contains(docs.Languages, b.Language) {
				t.Errorf("%v: a block of language %q: use one of %q", b, b.Language, docs.Languages)
			}
			if b.Language != "sh" {
				continue
			}
			commands = true
			for line := range strings.Lines(b.Text) {
				printed[strings.TrimSpace(line)] = true
			}
		}
		if commands && !slices.Contains(runs, document) {
			t.Errorf("%s has commands (blocks of sh), and no test runs it: add it to Device or Service in internal/docs", document)
		}
		if !commands && slices.Contains(runs, document) {
			t.Errorf("%s is listed in internal/docs, and has no block of commands", document)
		}
	}
	for command := range docs.NotRun {
		if !printed[command] {
			t.Errorf("no document prints %q: the exception in internal/docs is not needed", command)
		}
	}
	for _, command := range docs.Endless {
		if !printed[command] {
			t.Errorf("no document prints %q, which is listed as endless in internal/docs", command)
		}
	}
}
