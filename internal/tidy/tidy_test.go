// Package tidy holds the rules of the project that a test can keep: who imports whom, where unsafe code and
// system calls may be, and that documents name files that exist.
package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/ublk-clone/ublk-clone/"
)

// allowed are the imports of each package among the project's own (ARCHITECTURE.md, Packages), and whether it
// may use system calls and unsafe. A new package has to be entered here.
var allowed = map[string]struct {
	imports  []string
	syscalls bool
}{
	"bitmap":                     {},
	"metadata":                   {imports: []string{"bitmap"}},
	"clone":                      {imports: []string{"bitmap"}},
	"clone/clonetest":            {imports: []string{"bitmap", "clone", "hydrate", "internal/fakedisk", "metadata"}},
	"hydrate":                    {imports: []string{"bitmap", "clone"}},
	"ublk":                       {imports: []string{"internal/guard", "ublk/uring"}, syscalls: true},
	"ublk/uring":                 {syscalls: true},
	"internal/bench":             {},
	"internal/bench/report":      {imports: []string{"internal/bench"}},
	"internal/exit":              {},
	"internal/fakedisk":          {},
	"internal/file":              {},
	"internal/guard":             {syscalls: true},
	"internal/sys":               {imports: []string{"internal/guard"}, syscalls: true},
	"internal/blockdev":          {imports: []string{"internal/exit", "internal/file", "internal/guard", "internal/sys"}},
	"internal/devicetest":        {},
	"internal/docs":              {},
	"internal/livemap":           {imports: []string{"bitmap", "internal/sys"}},
	"internal/servicetest":       {},
	"internal/tidy":              {},
	"internal/servicetest/agent": {imports: []string{"internal/servicetest"}, syscalls: true},
	"cmd/ublk-clone": {imports: []string{"bitmap", "clone", "hydrate", "internal/blockdev", "internal/exit", "internal/file", "internal/guard",
		"internal/livemap", "internal/sys", "metadata", "ublk", "ublk/uring"}},
}

// errnoOnly may name errors of the kernel (package syscall or x/sys/unix) and call nothing.
var errnoOnly = []string{"cmd/ublk-clone", "internal/blockdev"}

// goFiles calls visit for each Go file of the project that is not a test, with its package's folder.
func goFiles(t *testing.T, visit func(folder, path string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "build" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && d.Name() != "..") && path != root {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			folder, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			visit(filepath.ToSlash(folder), path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestImports(t *testing.T) {
	seen := map[string]bool{}
	goFiles(t, func(folder, path string) {
		seen[folder] = true
		rule, known := allowed[folder]
		if !known {
			t.Errorf("%s: package %s has no rule", path, folder)
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			own, isOwn := strings.CutPrefix(name, module)
			if isOwn && !slices.Contains(rule.imports, own) {
				t.Errorf("%s: %s must not import %s", path, folder, own)
			}
			low := name == "unsafe" || name == "syscall" || name == "golang.org/x/sys/unix"
			if low && !rule.syscalls && (name == "unsafe" || !slices.Contains(errnoOnly, folder)) {
				t.Errorf("%s: %s must not import %s: system calls are in ublk, ublk/uring, internal/guard and internal/sys", path, folder, name)
			}
		}
	})
	for folder := range allowed {
		if _, err := os.Stat(filepath.Join(root, folder)); err != nil {
			t.Errorf("there is a rule for %s, which is not there: %v", folder, err)
		}
	}
	if len(seen) < 10 {
		t.Errorf("only %d packages were looked at", len(seen))
	}
}

// changesFiles are the functions of package os that change names or write files as a whole. None of them is durable.
var changesFiles = []string{"WriteFile", "Create", "Rename", "Remove", "RemoveAll", "Mkdir", "MkdirAll", "Link", "Symlink"}

// mayChangeFiles are the uses of them outside of internal/file, which has the one way to write a file, with the reason.
var mayChangeFiles = map[string]string{
	"cmd/ublk-clone/engine_udev.go WriteFile": "uevent in sysfs",
	"cmd/ublk-clone/layer.go Symlink":         "a link in /dev, which no boot finds",
	"internal/livemap/livemap.go Rename":      "tmpfs: what is there ends with the machine",
	"internal/livemap/livemap.go Remove":      "tmpfs",
	"internal/livemap/zeros.go Remove":        "tmpfs",
	"internal/sys/mounts.go WriteFile":        "procfs",
	"internal/sys/process.go WriteFile":       "procfs",
	"internal/livemap/livemap.go Mkdir":       "tmpfs",
	"ublk/spare.go WriteFile":                 "sysfs",
}

// TestFilesAreWrittenInOneWay: whoever writes, renames or removes a file on which something durable depends has to flush the
// file and its folder, in order. internal/file does.
func TestFilesAreWrittenInOneWay(t *testing.T) {
	unused := maps.Clone(mayChangeFiles)
	goFiles(t, func(folder, path string) {
		if folder == "internal/file" || !strings.HasPrefix(folder, "cmd") && !slices.Contains([]string{
			"bitmap", "clone", "hydrate", "metadata", "ublk", "ublk/uring", "internal/blockdev", "internal/exit", "internal/livemap", "internal/sys"}, folder) {
			return
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := call.X.(*ast.Ident); !ok || pkg.Name != "os" || !slices.Contains(changesFiles, call.Sel.Name) {
				return true
			}
			use := folder + "/" + filepath.Base(path) + " " + call.Sel.Name
			if mayChangeFiles[use] == "" {
				t.Errorf("%s calls os.%s: use internal/file, which makes it durable", path, call.Sel.Name)
			}
			delete(unused, use)
			return true
		})
	})
	for use := range unused {
		t.Errorf("the exception %q is not needed any more", use)
	}
}

// named finds what looks like a path of the project in a document: in backquotes or in a link.
var named = regexp.MustCompile("[`(]((?:bitmap|clone|cmd|docs|hydrate|internal|metadata|scripts|ublk)/[A-Za-z0-9_./-]+|[A-Z][A-Za-z]+\\.md|Makefile)[`)]")

func TestDocumentsNameFilesThatExist(t *testing.T) {
	documents, err := filepath.Glob(filepath.Join(root, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	more, err := filepath.Glob(filepath.Join(root, "*", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	names := 0
	for _, doc := range append(documents, more...) {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range named.FindAllStringSubmatch(string(text), -1) {
			names++
			if _, err := os.Stat(filepath.Join(root, m[1])); err != nil {
				t.Errorf("%s names %s, which is not there", doc, m[1])
			}
		}
	}
	if names < 10 {
		t.Errorf("only %d names were found in %d documents", names, len(documents)+len(more))
	}
}
