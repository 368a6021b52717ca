// Package tidy holds the rules of the project that a test can keep: who imports whom, where unsafe
// code and system calls may be, that goroutines are guarded, how large things may be, and that
// documents name files and tests that exist.
package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "github.com/ublk-clone/ublk-clone/"
)

// allowed are the imports of each package among the project's own (ARCHITECTURE.md, Packages), and
// whether it may use system calls and unsafe. A new package has to be entered here.
var allowed = map[string]struct {
	imports  []string
	syscalls bool
}{
	"bitmap":                      {},
	"metadata":                    {imports: []string{"bitmap"}},
	"clone":                       {imports: []string{"bitmap", "internal/copybuffers"}},
	"clone/clonetest":             {imports: []string{"bitmap", "clone", "hydrate", "internal/copybuffers", "internal/fakedisk", "metadata"}},
	"hydrate":                     {imports: []string{"bitmap", "clone"}},
	"ublk":                        {imports: []string{"internal/guard", "ublk/uring"}, syscalls: true},
	"ublk/uring":                  {syscalls: true},
	"cmd/ublk-clone":              {imports: []string{"internal/blockdev", "internal/control", "internal/daemon", "internal/definition", "internal/devices", "internal/doctor", "internal/engine", "internal/etc", "internal/exit", "internal/explain", "internal/file", "internal/guard", "internal/holders", "internal/leftover", "internal/livemap", "internal/preflight", "internal/process", "internal/records", "internal/succession", "internal/sys", "internal/systemd", "internal/text", "internal/udev", "metadata"}},
	"internal/bench":              {},
	"internal/bench/report":       {imports: []string{"internal/bench"}},
	"internal/blockdev":           {imports: []string{"internal/exit", "internal/file", "internal/fingerprint", "internal/guard", "internal/sys"}},
	"internal/committer":          {imports: []string{"clone", "internal/control", "internal/identity", "metadata"}},
	"internal/control":            {imports: []string{"internal/blockdev", "internal/definition", "internal/exit", "internal/file", "internal/footprint", "internal/guard", "internal/sys", "internal/text"}},
	"internal/copybuffers":        {},
	"internal/daemon":             {imports: []string{"internal/control", "internal/definition", "internal/etc", "internal/events", "internal/exit", "internal/file", "internal/guard", "internal/holders", "internal/leftover", "internal/process", "internal/steps", "internal/sys", "internal/systemd"}},
	"internal/dataplane":          {imports: []string{"clone", "hydrate", "internal/blockdev", "internal/copybuffers", "internal/faults", "internal/guard", "internal/livemap", "ublk", "ublk/uring"}},
	"internal/definition":         {imports: []string{"hydrate", "internal/exit", "internal/text", "metadata"}},
	"internal/devices":            {imports: []string{"internal/blockdev", "internal/control", "internal/dataplane", "internal/definition", "internal/dm", "internal/etc", "internal/events", "internal/exit", "internal/explain", "internal/faults", "internal/guard", "internal/host", "internal/identity", "internal/metadev", "internal/neighbours", "internal/records", "internal/steps", "internal/text", "metadata"}},
	"internal/devicetest":         {},
	"internal/direct":             {imports: []string{"internal/dm", "internal/faults"}},
	"internal/dm":                 {imports: []string{"internal/definition", "internal/exit", "internal/file", "internal/sys", "metadata"}},
	"internal/doctor":             {imports: []string{"internal/control", "internal/definition", "internal/etc", "internal/exit", "internal/footprint", "internal/guard", "internal/leftover", "internal/livemap", "internal/records", "internal/sys", "internal/text", "ublk", "ublk/uring"}},
	"internal/engine":             {imports: []string{"bitmap", "clone", "hydrate", "internal/blockdev", "internal/committer", "internal/control", "internal/copybuffers", "internal/dataplane", "internal/definition", "internal/devices", "internal/direct", "internal/dm", "internal/events", "internal/exit", "internal/explain", "internal/faults", "internal/footprint", "internal/guard", "internal/holders", "internal/host", "internal/identity", "internal/leftover", "internal/livemap", "internal/metadev", "internal/preflight", "internal/process", "internal/rate", "internal/records", "internal/steps", "internal/sys", "internal/text", "internal/udev", "metadata", "ublk"}},
	"internal/etc":                {imports: []string{"internal/definition", "internal/exit", "internal/file", "internal/sys", "internal/text"}},
	"internal/events":             {imports: []string{"clone", "hydrate", "internal/blockdev", "internal/control", "internal/dataplane", "internal/livemap"}},
	"internal/exit":               {},
	"internal/explain":            {imports: []string{"internal/exit", "internal/livemap", "metadata", "ublk"}},
	"internal/fakedisk":           {},
	"internal/faults":             {imports: []string{"internal/file"}},
	"internal/file":               {},
	"internal/fingerprint":        {imports: []string{"internal/guard"}},
	"internal/footprint":          {imports: []string{"bitmap", "internal/definition", "metadata"}},
	"internal/guard":              {syscalls: true},
	"internal/holders":            {imports: []string{"internal/blockdev", "internal/dm", "internal/exit", "internal/explain", "internal/guard", "internal/process", "internal/sys", "internal/text", "ublk"}},
	"internal/host":               {imports: []string{"metadata"}},
	"internal/identity":           {imports: []string{"bitmap", "clone", "internal/blockdev", "internal/exit", "internal/fingerprint", "internal/guard", "internal/sys", "metadata"}},
	"internal/leftover":           {imports: []string{"internal/blockdev", "internal/control", "internal/definition", "internal/dm", "internal/etc", "internal/exit", "internal/explain", "internal/file", "internal/guard", "internal/holders", "internal/host", "internal/livemap", "internal/metadev", "internal/sys", "internal/systemd", "internal/udev", "metadata", "ublk"}},
	"internal/livemap":            {imports: []string{"bitmap", "internal/sys"}},
	"internal/metadev":            {imports: []string{"internal/blockdev", "internal/explain", "internal/guard", "internal/host", "internal/livemap", "metadata"}},
	"internal/nbd":                {},
	"internal/neighbours":         {imports: []string{"internal/blockdev", "internal/control", "internal/definition", "internal/exit", "internal/guard", "internal/sys"}},
	"internal/preflight":          {imports: []string{"internal/blockdev", "internal/control", "internal/definition", "internal/exit", "internal/explain", "internal/file", "internal/guard", "internal/host", "internal/identity", "internal/livemap", "internal/metadev", "internal/process", "internal/sys", "metadata", "ublk"}},
	"internal/process":            {imports: []string{"internal/control", "internal/definition", "internal/exit", "internal/guard", "internal/livemap", "internal/sys"}},
	"internal/rate":               {imports: []string{"internal/blockdev", "internal/control", "internal/definition", "internal/guard", "internal/sys"}},
	"internal/records":            {imports: []string{"internal/blockdev", "internal/exit", "internal/file", "internal/text", "metadata"}},
	"internal/servicetest":        {},
	"internal/servicetest/agent":  {imports: []string{"internal/servicetest"}, syscalls: true},
	"internal/steps":              {imports: []string{"internal/exit", "internal/faults", "internal/guard"}},
	"internal/succession":         {imports: []string{"internal/blockdev", "internal/control", "internal/daemon", "internal/definition", "internal/exit", "internal/leftover"}},
	"internal/sys":                {imports: []string{"internal/guard"}, syscalls: true},
	"internal/systemd":            {imports: []string{"internal/exit"}},
	"internal/testkit":            {imports: []string{"internal/control", "internal/definition", "internal/exit"}},
	"internal/text":               {},
	"internal/tidy":               {},
	"internal/udev":               {imports: []string{"internal/control", "internal/definition", "internal/file", "internal/sys"}},
	"internal/devicetest/harness": {imports: []string{"internal/runs", "internal/sys", "ublk"}, syscalls: true},
	"internal/runs":               {},
	"internal/runs/plan":          {imports: []string{"internal/runs"}},
	"internal/runs/guests":        {imports: []string{"internal/runs", "internal/runs/plan"}},
	"internal/docs":               {},
}

// errnoOnly may name errors of the kernel (package syscall or x/sys/unix) and call nothing.
// internal/faults, which only tests have built in, kills its own process.
var errnoOnly = []string{
	"cmd/ublk-clone", "internal/blockdev", "internal/control", "internal/daemon", "internal/dataplane", "internal/devices", "internal/dm", "internal/doctor",
	"internal/engine", "internal/events", "internal/faults", "internal/fingerprint", "internal/holders", "internal/leftover", "internal/nbd", "internal/udev",
}

// libraryOf are libraries that only packages below a directory may import: what the command line is
// made with is no concern of the rest.
var libraryOf = map[string]string{"github.com/urfave/cli/": "cmd/"}

// goFiles calls visit for each Go file of the project that is not a test, with its package's
// directory.
func goFiles(t *testing.T, visit func(dir, path string)) {
	t.Helper()
	allGoFiles(t, func(dir, path string) {
		if !strings.HasSuffix(path, "_test.go") {
			visit(dir, path)
		}
	})
}

// allGoFiles is goFiles with the tests.
func allGoFiles(t *testing.T, visit func(dir, path string)) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (d.Name() == "build" || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && d.Name() != "..") && path != root {
			return filepath.SkipDir
		}
		if strings.HasSuffix(path, ".go") {
			dir, err := filepath.Rel(root, filepath.Dir(path))
			if err != nil {
				return err
			}
			visit(filepath.ToSlash(dir), path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// forbidden says why a package may not import another, after its name; "": it may.
func forbidden(dir, name string) string {
	rule := allowed[dir]
	if own, isOwn := strings.CutPrefix(name, module); isOwn && !slices.Contains(rule.imports, own) {
		return ", by the rule for it"
	}
	low := name == "unsafe" || name == "syscall" || name == "golang.org/x/sys/unix"
	if low && !rule.syscalls && (name == "unsafe" || !slices.Contains(errnoOnly, dir)) {
		return ": system calls are in ublk, ublk/uring, internal/guard and internal/sys"
	}
	for library, below := range libraryOf {
		if strings.HasPrefix(name, library) && !strings.HasPrefix(dir, below) {
			return ": it is for packages in " + below
		}
	}
	return ""
}

// TestForbiddenIsFound: the check of imports can fail.
func TestForbiddenIsFound(t *testing.T) {
	for _, c := range []struct {
		dir, name string
		may       bool
	}{
		{"clone", module + "bitmap", true}, {"bitmap", module + "clone", false}, {"bitmap", "github.com/ublk-clone/ublk-clone/ublk", false},
		{"cmd/ublk-clone", "github.com/urfave/cli/v2", true}, {"internal/exit", "github.com/urfave/cli/v2", false},
		{"clone", "github.com/urfave/cli/v2/altsrc", false}, {"clone", "fmt", true},
		{"internal/sys", "unsafe", true}, {"internal/blockdev", "unsafe", false}, {"cmd/ublk-clone", "unsafe", false},
		{"internal/blockdev", "syscall", true}, {"cmd/ublk-clone", "golang.org/x/sys/unix", true}, {"clone", "syscall", false},
		{"metadata", "golang.org/x/sys/unix", false},
	} {
		if why := forbidden(c.dir, c.name); (why == "") != c.may {
			t.Errorf("%s imports %s: %q", c.dir, c.name, why)
		}
	}
}

func TestImports(t *testing.T) {
	seen := map[string]bool{}
	goFiles(t, func(dir, path string) {
		seen[dir] = true
		if _, known := allowed[dir]; !known {
			t.Errorf("%s: package %s has no rule", path, dir)
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
			if why := forbidden(dir, name); why != "" {
				t.Errorf("%s: %s must not import %s%s", path, dir, name, why)
			}
		}
	})
	for dir := range allowed {
		if _, err := os.Stat(filepath.Join(root, dir)); err != nil {
			t.Errorf("there is a rule for %s, which is not there: %v", dir, err)
		}
	}
	if len(seen) < 10 {
		t.Errorf("only %d packages were looked at", len(seen))
	}
}

// changesFiles are the functions of package os that change names or write files as a whole. None of
// them is durable.
var changesFiles = []string{"WriteFile", "Create", "Rename", "Remove", "RemoveAll", "Mkdir", "MkdirAll", "Link", "Symlink"}

// mayChangeFiles are the uses of them outside of internal/file, which has the one way to write a
// file, with the reason.
var mayChangeFiles = map[string]string{
	"internal/udev/udev.go WriteFile":     "uevent in sysfs",
	"internal/dm/over.go Symlink":         "a link in /dev, which no boot finds",
	"internal/udev/links.go Symlink":      "a link in /dev, which no boot finds",
	"internal/livemap/livemap.go Rename":  "tmpfs: what is there ends with the machine",
	"internal/livemap/livemap.go Remove":  "tmpfs",
	"internal/livemap/zeros.go Remove":    "tmpfs",
	"internal/sys/mounts.go WriteFile":    "procfs",
	"internal/sys/process.go WriteFile":   "procfs",
	"internal/livemap/directory.go Mkdir": "tmpfs",
	"ublk/spare.go WriteFile":             "sysfs",
}

// TestFilesAreWrittenInOneWay: whoever writes, renames or removes a file on which something durable
// depends has to flush the file and its directory, in order. internal/file does.
func TestFilesAreWrittenInOneWay(t *testing.T) {
	unused := maps.Clone(mayChangeFiles)
	goFiles(t, func(dir, path string) {
		if dir == "internal/file" || !slices.Contains(daemonCode, dir) {
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
			use := dir + "/" + filepath.Base(path) + " " + call.Sel.Name
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
