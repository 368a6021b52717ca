package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
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

// A document names a test in full; several by what their names begin with, as in TestBench...; or,
// behind one in full, others by the end of their names: TestServiceFinish, -Many is TestServiceMany
// too.
var (
	testNamed  = regexp.MustCompile("\\b((?:Test|Fuzz)[A-Z0-9]\\w*)(\\.\\.\\.)?((?:`?(?:,| and| or)\\s+`?-[A-Z0-9]\\w*)*)")
	endNamed   = regexp.MustCompile(`-(\w+)`)
	beginsWord = regexp.MustCompile(`[A-Z0-9]`)
)

// absent are the tests that a text names and that are not among these; count is how many it names.
func absent(text string, tests map[string]bool) (names []string, count int) {
	for _, m := range testNamed.FindAllStringSubmatch(text, -1) {
		count++
		if m[2] == "" && !tests[m[1]] || m[2] != "" && !anyBegins(tests, m[1]) {
			names = append(names, m[1]+m[2])
		}
		for _, end := range endNamed.FindAllStringSubmatch(m[3], -1) {
			count++
			if !anyShares(tests, m[1], end[1]) {
				names = append(names, m[1]+", -"+end[1])
			}
		}
	}
	return names, count
}

func anyBegins(tests map[string]bool, begin string) bool {
	for name := range tests {
		if strings.HasPrefix(name, begin) {
			return true
		}
	}
	return false
}

// anyShares says whether a test's name is some words that name begins with, more than the first,
// and then end.
func anyShares(tests map[string]bool, name, end string) bool {
	for _, at := range beginsWord.FindAllStringIndex(name, -1) {
		if at[0] > len("Test") && tests[name[:at[0]]+end] {
			return true
		}
	}
	return tests[name+end]
}

// testNames are those of all tests and fuzz targets, under whatever build tag.
func testNames(t *testing.T) map[string]bool {
	t.Helper()
	names := map[string]bool{}
	allGoFiles(t, func(_, path string) {
		if !strings.HasSuffix(path, "_test.go") {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && (strings.HasPrefix(f.Name.Name, "Test") || strings.HasPrefix(f.Name.Name, "Fuzz")) {
				names[f.Name.Name] = true
			}
		}
	})
	return names
}

func TestDocumentsNameTestsThatExist(t *testing.T) {
	tests, count := testNames(t), 0
	for doc, text := range documents(t) {
		names, n := absent(text, tests)
		count += n
		for _, name := range names {
			t.Errorf("%s names the test %s, which is not there", doc, name)
		}
	}
	if count < 100 || len(tests) < 100 {
		t.Errorf("only %d names of tests were found in documents, and %d tests", count, len(tests))
	}
}

// TestAbsentTestIsFound: the check above can fail.
func TestAbsentTestIsFound(t *testing.T) {
	tests := map[string]bool{"TestService": true, "TestServiceFinish": true, "TestServiceMany": true, "TestMany": true, "TestExt4": true, "FuzzDevice": true}
	for text, want := range map[string]string{
		"TestMany":    "",
		"TestNobody":  "TestNobody",
		"TestMan":     "TestMan",
		"`TestManys`": "TestManys",
		"FuzzDevice, FuzzNothing and `clone`: TestGone": "FuzzNothing TestGone",
		"TestServiceFinish, -Many | -Gone":              "",
		"TestServiceFinish, -Many, -Gone":               "TestServiceFinish, -Gone",
		"`TestServiceFinish`, `-Many` and `-Finished`":  "TestServiceFinish, -Finished",
		"TestServiceFinish,\n-Few":                      "TestServiceFinish, -Few",
		"TestService, -Many":                            "",
		"TestExt4, -Many":                               "TestExt4, -Many",
		"TestServ..., TestX...":                         "TestX...",
		"Testing of Tests, and TestedThings":            "",
	} {
		if names, _ := absent(text, tests); strings.Join(names, " ") != want {
			t.Errorf("%s: %q is absent, not %q", text, names, want)
		}
	}
}
