package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"testing"
)

// daemonCode are the packages whose code runs in a daemon.
var daemonCode = []string{
	"bitmap", "metadata", "clone", "hydrate", "ublk", "ublk/uring", "cmd/ublk-clone", "internal/blockdev",
	"internal/committer", "internal/control", "internal/copybuffers", "internal/daemon", "internal/dataplane", "internal/definition", "internal/devices", "internal/direct", "internal/dm", "internal/doctor",
	"internal/engine", "internal/etc", "internal/events", "internal/explain", "internal/faults", "internal/file", "internal/fingerprint", "internal/footprint", "internal/holders", "internal/host",
	"internal/identity", "internal/leftover", "internal/livemap", "internal/metadev", "internal/nbd", "internal/neighbours", "internal/preflight", "internal/process", "internal/rate",
	"internal/records", "internal/steps", "internal/succession", "internal/sys", "internal/systemd", "internal/text", "internal/udev",
}

// goroutineCheck finds the goroutines of one package that a panic could end without
// internal/guard's doing.
type goroutineCheck struct {
	guarded   map[string]bool // functions and methods by name: all of that name begin with a guard
	started   int
	unguarded []ast.Node
}

// checkGoroutines looks at the files of a package.
func checkGoroutines(files []*ast.File) *goroutineCheck {
	c := &goroutineCheck{guarded: map[string]bool{}}
	for _, file := range files {
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Body != nil {
				before, seen := c.guarded[f.Name.Name]
				c.guarded[f.Name.Name] = beginsWithGuard(f.Body) && (before || !seen)
			}
		}
	}
	for _, file := range files {
		ast.Inspect(file, c.look)
	}
	return c
}

// look is for each node: a go statement, or a call by which a library starts a goroutine.
func (c *goroutineCheck) look(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.GoStmt:
		c.expect(n, n.Call.Fun)
	case *ast.CallExpr:
		if owner, name := selected(n.Fun); len(n.Args) > 0 && owner != "guard" && (name == "Go" || name == "AfterFunc") {
			c.expect(n, n.Args[len(n.Args)-1])
		}
	}
	return true
}

// expect notes that a goroutine begins with the function f.
func (c *goroutineCheck) expect(n ast.Node, f ast.Expr) {
	c.started++
	good := false
	switch f := f.(type) {
	case *ast.FuncLit:
		good = beginsWithGuard(f.Body)
	case *ast.CallExpr:
		owner, name := selected(f.Fun)
		good = owner == "guard" && name == "Wrap"
	default:
		_, name := selected(f)
		good = c.guarded[name]
	}
	if !good {
		c.unguarded = append(c.unguarded, n)
	}
}

// selected is a name, and what it is selected from.
func selected(e ast.Expr) (owner, name string) {
	switch e := e.(type) {
	case *ast.Ident:
		return "", e.Name
	case *ast.SelectorExpr:
		owner, _ := e.X.(*ast.Ident)
		if owner == nil {
			return "", e.Sel.Name
		}
		return owner.Name, e.Sel.Name
	}
	return "", ""
}

// beginsWithGuard says whether a panic in any statement but the first calls, which name or lock the
// thread, is caught.
func beginsWithGuard(body *ast.BlockStmt) bool {
	for _, statement := range body.List {
		switch s := statement.(type) {
		case *ast.ExprStmt:
		case *ast.DeferStmt:
			if owner, name := selected(s.Call.Fun); owner == "guard" && name == "Guard" {
				return true
			}
		default:
			return false
		}
	}
	return false
}

func TestGoroutinesAreGuarded(t *testing.T) {
	set := token.NewFileSet()
	packages := map[string][]*ast.File{}
	goFiles(t, func(dir, path string) {
		if !slices.Contains(daemonCode, dir) {
			return
		}
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		packages[dir] = append(packages[dir], file)
	})
	started := 0
	for _, dir := range daemonCode {
		c := checkGoroutines(packages[dir])
		started += c.started
		for _, n := range c.unguarded {
			at := set.Position(n.Pos())
			t.Errorf("%s:%d: a goroutine without a guard: start it by guard.Go, or defer guard.Guard first", filepath.Clean(at.Filename), at.Line)
		}
	}
	if started < 5 {
		t.Errorf("only %d goroutines were looked at", started)
	}
}

// TestUnguardedIsFound: the check above can fail.
func TestUnguardedIsFound(t *testing.T) {
	const head = "package p\nfunc good() { name(); defer free(); defer guard.Guard(\"x\", fatal); work() }\nfunc bad() { work(); if a { }; defer guard.Guard(\"x\", fatal) }\n" +
		"func (t *T) run() { defer guard.Guard(\"x\", fatal) }\nfunc (t *U) run() {}\nfunc f() { "
	for statement, want := range map[string]int{
		"go good()": 0, "go bad()": 1, "go t.run()": 1, "go elsewhere.Run()": 1,
		"go func() { defer guard.Guard(\"x\", fatal) }()": 0, "go func() { work() }()": 1, "go guard.Wrap(\"x\", work)()": 0,
		"guard.Go(\"x\", work)": 0, "group.Go(work)": 1, "group.Go(guard.Wrap(\"x\", work))": 0, "a.b.Go(func() {})": 1,
		"time.AfterFunc(d, work)": 1, "time.AfterFunc(d, good)": 0,
	} {
		file, err := parser.ParseFile(token.NewFileSet(), "p.go", head+statement+" }", 0)
		if err != nil {
			t.Fatal(err)
		}
		if c := checkGoroutines([]*ast.File{file}); len(c.unguarded) != want {
			t.Errorf("%s: %d goroutines without a guard, not %d", statement, len(c.unguarded), want)
		}
	}
}
