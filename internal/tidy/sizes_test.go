package tidy

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strings"
	"testing"
)

// size is what is measured, and of what: a package or a file by its path, a type as package.Name.
type size struct{ what, of string }

// What is measured. Tests count with their files alone.
const (
	packageLines = "lines of package"
	fileLines    = "lines of file"
	testLines    = "lines of test file"
	methods      = "methods of type"
	fields       = "fields of type"
)

// limits are how large things may be.
var limits = sizeLimits{
	most: map[string]int{packageLines: 3500, fileLines: 400, testLines: 500, methods: 25, fields: 15},
	one: map[size]int{
		{packageLines, "cmd/ublk-clone"}: 3000,

		// Larger than they should be: these may not grow, and an entry that is not needed any more
		// fails the test.
		{testLines, "bitmap/map_test.go"}:              552,
		{testLines, "metadata/crash_test.go"}:          512,
		{fields, "internal/devicetest/harness.Status"}: 21,
	},
	function: 25, share: 90,
}

// sizeLimits are limits for each thing of a kind, and for some things their own; of functions,
// share percent have at most so many lines.
type sizeLimits struct {
	most            map[string]int
	one             map[size]int
	function, share int
}

// sizes are those that were measured, and the lines of each function.
type sizes struct {
	of        map[size]int
	functions []int
}

// measure adds a file.
func (s *sizes) measure(dir, name, text string) error {
	lines := strings.Count(text, "\n")
	if strings.HasSuffix(name, "_test.go") {
		s.of[size{testLines, dir + "/" + name}] = lines
		return nil
	}
	s.of[size{fileLines, dir + "/" + name}] = lines
	s.of[size{packageLines, dir}] += lines
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, name, text, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			s.functions = append(s.functions, set.Position(n.End()).Line-set.Position(n.Pos()).Line+1)
			if n.Recv != nil {
				s.of[size{methods, dir + "." + receiver(n.Recv.List[0].Type)}]++
			}
		case *ast.TypeSpec:
			s.declared(dir+"."+n.Name.Name, n.Type)
		}
		return true
	})
	return nil
}

// declared adds a type. One that is embedded is a field.
func (s *sizes) declared(name string, as ast.Expr) {
	switch as := as.(type) {
	case *ast.StructType:
		for _, field := range as.Fields.List {
			s.of[size{fields, name}] += max(1, len(field.Names))
		}
	case *ast.InterfaceType:
		s.of[size{methods, name}] += as.Methods.NumFields()
	}
}

// receiver is the name of a method's type.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// exceeded says what is larger than it may be, and which exceptions are not needed.
func (l sizeLimits) exceeded(s *sizes) (faults []string) {
	for what, n := range s.of {
		most, own := l.one[what]
		if !own {
			most = l.most[what.what]
		}
		if n > most {
			faults = append(faults, fmt.Sprintf("%d %s %s, the limit is %d", n, what.what, what.of, most))
		}
	}
	for what, most := range l.one {
		if most > l.most[what.what] && s.of[what] <= l.most[what.what] {
			faults = append(faults, fmt.Sprintf("the exception for %s %s is not needed any more: %d", what.what, what.of, s.of[what]))
		}
	}
	slices.Sort(s.functions)
	if n := len(s.functions); n > 0 && s.functions[n*l.share/100] > l.function {
		faults = append(faults, fmt.Sprintf("of %d functions %d %% should have at most %d lines; it takes %d", n, l.share, l.function, s.functions[n*l.share/100]))
	}
	slices.Sort(faults)
	return faults
}

func TestSizes(t *testing.T) {
	s := sizes{of: map[size]int{}}
	allGoFiles(t, func(dir, path string) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.measure(dir, path[strings.LastIndex(path, "/")+1:], string(text)); err != nil {
			t.Fatal(err)
		}
	})
	for _, fault := range limits.exceeded(&s) {
		t.Error(fault)
	}
	if len(s.functions) < 1000 || len(s.of) < 500 {
		t.Errorf("only %d functions and %d other things were measured", len(s.functions), len(s.of))
	}
}

// TestTooLargeIsFound: each limit of the check above can be exceeded.
func TestTooLargeIsFound(t *testing.T) {
	l := sizeLimits{
		most:     map[string]int{packageLines: 9, fileLines: 8, testLines: 8, methods: 2, fields: 3},
		one:      map[size]int{{packageLines, "small"}: 4, {fields, "p.Known"}: 5},
		function: 3, share: 90,
	}
	const known = "type Known struct{ a, b, c, d int }\n" // or its exception is not needed
	for _, c := range []struct{ dir, name, text, want string }{
		{"q", "a.go", "", ""},
		{"q", "a.go", strings.Repeat("\n", 7), ""},
		{"q", "a.go", strings.Repeat("\n", 8), "9 lines of file q/a.go, the limit is 8"},
		{"q", "a_test.go", strings.Repeat("\n", 8), "9 lines of test file q/a_test.go, the limit is 8"},
		{"p", "a.go", strings.Repeat("\n", 7), "10 lines of package p, the limit is 9"},
		{"p", "a_test.go", strings.Repeat("\n", 7), ""},
		{"small", "a.go", strings.Repeat("\n", 4), "5 lines of package small, the limit is 4"},
		{"q", "a.go", "type T struct{ a, b int; T }\n", ""},
		{"q", "a.go", "type T struct{ a, b int; T; *U }\n", "4 fields of type q.T, the limit is 3"},
		{"q", "a.go", "func (T) a() {}; func (t *T) b() {}; func (U) b() {}\n", ""},
		{"q", "a.go", "func (T) a() {}; func (t *T) b() {}; func (t *T[A, B]) c() {}\n", "3 methods of type q.T, the limit is 2"},
		{"q", "a.go", "type I interface { a(); b(); c() }\n", "3 methods of type q.I, the limit is 2"},
		{"q", "a.go", "func f() {\n\n}\n", ""},
		{"q", "a.go", "func f() {\n\n\n}\n", "of 1 functions 90 % should have at most 3 lines; it takes 4"},
		{"q", "a.go", "func f() {\n\n\n}\n" + strings.Repeat("func g() {}; ", 10), ""},
		{"q", "a.go", "func f() {\n\n\n}\n" + strings.Repeat("func g() {}; ", 8), "of 9 functions 90 % should have at most 3 lines; it takes 4"},
		{"p", "k.go", "type Known struct{ a, b, c int }\n", "the exception for fields of type p.Known is not needed any more: 3"},
		{"p", "k.go", "type Known struct{ a, b, c, d, e, f int }\n", "6 fields of type p.Known, the limit is 5"},
	} {
		s := sizes{of: map[size]int{}}
		if c.name != "k.go" {
			if err := s.measure("p", "k.go", "package p\n"+known); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.measure(c.dir, c.name, "package p\n"+c.text); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(l.exceeded(&s), "; "); got != c.want {
			t.Errorf("%s/%s %q: %q, not %q", c.dir, c.name, c.text, got, c.want)
		}
	}
}
