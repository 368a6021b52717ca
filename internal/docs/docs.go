// Package docs finds the commands that README.md and the documents in docs print, and says which
// test runs them.
//
// A fenced block names its language. Blocks of "sh" are commands: the tests run them exactly as
// they are printed, those of a document in order, from top to bottom, on one machine. Two tests do:
// TestDocuments of internal/devicetest in a guest with disks, and TestServiceDocuments of
// internal/servicetest in a guest with systemd. internal/tidy fails for a document that neither
// runs, and for a block of an unknown language.
package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Device and Service list the documents that have blocks of commands, by the test that runs them.
var (
	Device  = []string{"README.md", "docs/operations.md", "docs/requirements.md"}
	Service = []string{"docs/service.md"}
)

// Languages are those that a fenced block may name.
var Languages = []string{"sh", "console", "go", "text", "toml"}

// NotRun are the lines of blocks of commands that no test runs as they stand, with the reason.
var NotRun = map[string]string{
	"make build":   "scripts/device-tests builds the same program on the host; an emulated guest takes minutes for it",
	"make demo":    "a step of scripts/test",
	"make package": "scripts/service-tests builds the packages on the host; the guest has no Go",
	"make test":    "it is the run that this test is part of",
}

// Endless are the lines that only an interrupt ends.
var Endless = []string{"ublk-clone events data"}

// A Block is a fenced block of a document.
type Block struct {
	Document string // path below the root of the project
	Line     int    // of the fence that opens it
	Language string
	Text     string
}

func (b Block) String() string { return fmt.Sprintf("%s:%d", b.Document, b.Line) }

// Documents are the paths of README.md and of the documents in docs, below root.
func Documents(root string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		return nil, err
	}
	documents := []string{"README.md"}
	for _, path := range found {
		documents = append(documents, "docs/"+filepath.Base(path))
	}
	return documents, nil
}

// Blocks are the fenced blocks of a document, in order.
func Blocks(root, document string) ([]Block, error) {
	text, err := os.ReadFile(filepath.Join(root, document))
	if err != nil {
		return nil, err
	}
	return parse(document, string(text))
}

const fence = "```"

func parse(document, text string) (blocks []Block, err error) {
	var open *Block
	nr := 0
	for line := range strings.Lines(text) {
		nr++
		language, isFence := strings.CutPrefix(strings.TrimRight(line, "\r\n"), fence)
		switch {
		case !isFence && open != nil:
			open.Text += line
		case isFence && open != nil:
			blocks = append(blocks, *open)
			open = nil
		case isFence:
			open = &Block{Document: document, Line: nr, Language: language}
		}
	}
	if open != nil {
		return nil, fmt.Errorf("%v: the block does not end", *open)
	}
	return blocks, nil
}

// Script is what bash runs for a block: the block, without the lines of NotRun, and with an
// interrupt for those of Endless.
func (b Block) Script() string {
	var script strings.Builder
	for line := range strings.Lines(b.Text) {
		command := strings.TrimSpace(line)
		switch {
		case NotRun[command] != "":
		case slices.Contains(Endless, command):
			fmt.Fprintf(&script, "timeout -s INT 5 %s || [ $? = 124 ]\n", command)
		default:
			script.WriteString(line)
		}
	}
	return script.String()
}
