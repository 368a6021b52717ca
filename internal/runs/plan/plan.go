// Package plan reads what device and service tests declare (package runs) from their source, and
// makes of it the list of guests that a short and a full run boot.
package plan

import (
	"errors"
	"fmt"
	"go/ast"
	"go/build/constraint"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/ublk-clone/ublk-clone/internal/runs"
)

// Directories of the packages whose tests run in guests, or drive them.
const (
	Device  = "internal/devicetest"
	Service = "internal/servicetest"
)

// driver are the packages whose tests run in guests too: those with the build tag device declare
// where, the others run on the host and, with the device tests, on every kernel.
var driver = []string{"ublk", "ublk/uring"}

// Test is one test function.
type Test struct {
	Dir, Name string
	runs.Declaration
}

// Load reads the tests of all packages below root.
func Load(root string) ([]Test, error) {
	var tests []Test
	var problems []error
	for _, dir := range append([]string{Device, Service}, driver...) {
		paths, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
		if err != nil {
			return nil, err
		}
		for _, path := range paths {
			more, err := Parse(dir, path, nil)
			tests = append(tests, more...)
			problems = append(problems, err)
		}
	}
	problems = append(problems, sameNames(tests))
	return tests, errors.Join(problems...)
}

// sameNames: a guest picks tests by name, so what two packages call the same must want the same.
func sameNames(tests []Test) error {
	first := map[string]Test{}
	var problems []error
	for _, t := range tests {
		other, seen := first[t.Name]
		if seen && fmt.Sprint(other.Declaration) != fmt.Sprint(t.Declaration) {
			problems = append(problems, fmt.Errorf("%s of %s and of %s declare different runs: rename one", t.Name, other.Dir, t.Dir))
		}
		first[t.Name] = t
	}
	return errors.Join(problems...)
}

// Parse reads the tests of one file: of path, or of source unless that is nil.
func Parse(dir, path string, source any) ([]Test, error) {
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	mustDeclare := !slices.Contains(driver, dir) || hasTag(file, "device")
	var tests []Test
	var problems []error
	for _, decl := range file.Decls {
		f, ok := decl.(*ast.FuncDecl)
		if !ok || !isTest(f) {
			continue
		}
		test := Test{Dir: dir, Name: f.Name.Name}
		wants, declared, err := wantsOf(f)
		switch {
		case err != nil:
		case declared:
			test.Declaration, err = runs.Declare(wants...)
		case mustDeclare:
			err = errors.New("does not declare where it runs: its first statement must be runs.On(t, ...), see internal/runs")
		default:
			test.Declaration, err = runs.Declare(runs.EveryKernel)
		}
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %s: %w", set.Position(f.Pos()), f.Name.Name, err))
			continue
		}
		tests = append(tests, test)
	}
	return tests, errors.Join(problems...)
}

// hasTag tells whether a file is built with that tag only.
func hasTag(file *ast.File, tag string) bool {
	for _, group := range file.Comments {
		for _, comment := range group.List {
			if expr, err := constraint.Parse(comment.Text); err == nil {
				return !expr.Eval(func(t string) bool { return t != tag })
			}
		}
	}
	return false
}

// isTest is the rule of go test.
func isTest(f *ast.FuncDecl) bool {
	rest, ok := strings.CutPrefix(f.Name.Name, "Test")
	return ok && f.Recv == nil && f.Name.Name != "TestMain" && (rest == "" || !unicode.IsLower([]rune(rest)[0]))
}

// wantsOf reads the first statement of a test, if that is a declaration.
func wantsOf(f *ast.FuncDecl) (wants []runs.Want, declared bool, err error) {
	if f.Body == nil || len(f.Body.List) == 0 {
		return nil, false, nil
	}
	statement, ok := f.Body.List[0].(*ast.ExprStmt)
	if !ok {
		return nil, false, nil
	}
	call, ok := statement.X.(*ast.CallExpr)
	if !ok || ofRuns(call.Fun) != "On" || len(call.Args) == 0 {
		return nil, false, nil
	}
	for _, arg := range call.Args[1:] {
		name := ofRuns(arg)
		if text, ok := arg.(*ast.BasicLit); ok && text.Kind == token.STRING {
			name, err = strconv.Unquote(text.Value)
		}
		if name == "" || err != nil {
			return nil, true, errors.New("runs.On takes versions in quotes and constants of package runs, so that they can be read from the source")
		}
		wants = append(wants, runs.Want(name))
	}
	return wants, true, nil
}

// ofRuns is the name that an expression takes from package runs, or "".
func ofRuns(e ast.Expr) string {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	if owner, ok := s.X.(*ast.Ident); !ok || owner.Name != "runs" {
		return ""
	}
	return s.Sel.Name
}

// Names are the names of the tests that satisfy the condition, sorted, each once.
func Names(tests []Test, condition func(Test) bool) []string {
	var names []string
	for _, t := range tests {
		if condition(t) {
			names = append(names, t.Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Expression is a regular expression for these tests and no others.
func Expression(names []string) string { return "^(" + strings.Join(names, "|") + ")$" }
