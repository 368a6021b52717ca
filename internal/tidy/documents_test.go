package tidy

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// documents are the texts of all of them, by their paths.
func documents(t *testing.T) map[string]string {
	t.Helper()
	texts := map[string]string{}
	for _, pattern := range []string{"*.md", "*/*.md"} {
		paths, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			texts[path] = string(text)
		}
	}
	return texts
}

// named finds what looks like a path of the project in a document: in backquotes or in a link.
var named = regexp.MustCompile("[`(]((?:bitmap|clone|cmd|docs|hydrate|internal|metadata|scripts|ublk)/[A-Za-z0-9_./-]+|[A-Z][A-Za-z]+\\.md|Makefile)[`)]")

func TestDocumentsNameFilesThatExist(t *testing.T) {
	names := 0
	for doc, text := range documents(t) {
		for _, m := range named.FindAllStringSubmatch(text, -1) {
			names++
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s names %s, which is not there", doc, m[1])
			}
		}
	}
	if names < 10 {
		t.Errorf("only %d names were found", names)
	}
}
