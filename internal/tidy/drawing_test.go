package tidy

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// drawnImports are the imports of each package, and its layer, as ARCHITECTURE.md draws them.
type drawnImports struct {
	imports map[string][]string
	layer   map[string]int
}

// drawn reads the drawing: a line "LAYER PACKAGE -> IMPORTS", without LAYER for a package of the
// layer above it, or a line of imports that goes on. Layer 0 imports nothing.
func drawn(text string) (drawnImports, error) {
	d := drawnImports{imports: map[string][]string{}, layer: map[string]int{}}
	layer, last := -1, ""
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if len(words) > 0 {
			if n, err := strconv.Atoi(words[0]); err == nil {
				layer, words = n, words[1:]
			}
		}
		switch {
		case len(words) > 1 && words[1] == "->":
			last = path(words[0])
			d.layer[last], words = layer, words[2:]
		case layer == 0:
			for _, name := range words {
				d.layer[path(name)], d.imports[path(name)] = 0, nil
			}
			continue
		case last == "":
			return d, fmt.Errorf("a line without a package: %s", line)
		}
		for _, name := range words {
			d.imports[last] = append(d.imports[last], path(name))
		}
	}
	return d, nil
}

// path is the directory of a package, which the drawing names without "internal/".
func path(name string) string {
	switch name {
	case "cmd":
		return "cmd/ublk-clone"
	case "uring":
		return "ublk/uring"
	case "bitmap", "clone", "hydrate", "metadata", "ublk":
		return name
	}
	return "internal/" + name
}

// wrong says where the drawing is not what allowed says, and which arrows do not go down. Packages
// that only tests use are not drawn.
func (d drawnImports) wrong() (faults []string) {
	for name, imports := range d.imports {
		rule, known := allowed[name]
		if !known {
			faults = append(faults, name+" is drawn, and there is no rule for it")
		}
		for _, to := range rule.imports {
			if !slices.Contains(imports, to) {
				faults = append(faults, fmt.Sprintf("%s imports %s: draw it", name, to))
			}
		}
		for _, to := range imports {
			if !slices.Contains(rule.imports, to) {
				faults = append(faults, fmt.Sprintf("%s is drawn to import %s, and does not", name, to))
			}
			if _, there := d.layer[to]; !there {
				faults = append(faults, to+" is not drawn")
			}
			if d.layer[to] >= d.layer[name] {
				faults = append(faults, fmt.Sprintf("%s in layer %d imports %s in layer %d", name, d.layer[name], to, d.layer[to]))
			}
		}
	}
	return faults
}

// TestImportsAreDrawn: the layers in ARCHITECTURE.md are those of the rules, and every arrow leads
// to a lower one.
func TestImportsAreDrawn(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, drawing, found := strings.Cut(string(text), "All imports, in layers")
	if found {
		_, drawing, found = strings.Cut(drawing, "```\n")
	}
	drawing, _, closed := strings.Cut(drawing, "```\n")
	if !found || !closed {
		t.Fatal("ARCHITECTURE.md has no drawing of all imports")
	}
	d, err := drawn(drawing)
	if err != nil {
		t.Fatal(err)
	}
	for _, fault := range d.wrong() {
		t.Error("ARCHITECTURE.md: " + fault)
	}
	for name := range allowed {
		if _, drawn := d.layer[name]; !drawn && strings.HasPrefix(name, "cmd/") {
			t.Errorf("ARCHITECTURE.md does not draw %s", name)
		}
	}
}

// TestWrongDrawingIsFound: what the test above is to find.
func TestWrongDrawingIsFound(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{" 1  metadata -> bitmap\n 0  bitmap\n", ""},
		{" 1  clone -> copybuffers\n            bitmap\n 0  bitmap copybuffers\n", ""},
		{" 1  clone -> bitmap\n 0  bitmap copybuffers\n", "clone imports internal/copybuffers: draw it"},
		{" 1  metadata -> bitmap text\n 0  bitmap text\n", "metadata is drawn to import internal/text, and does not"},
		{" 1  metadata -> bitmap\n    bitmap ->\n", "metadata in layer 1 imports bitmap in layer 1"},
		{" 1  metadata -> bitmap\n    none ->\n 0  bitmap none\n", "internal/none is drawn, and there is no rule for it"},
		{" 1  metadata -> bitmap\n 0  text\n", "bitmap is not drawn"},
	} {
		d, err := drawn(c.text)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(d.wrong(), "; "); got != c.want {
			t.Errorf("%q: %q, not %q", c.text, got, c.want)
		}
	}
}

// TestEventsAreDocumented: every kind of event is in the help of `events`, and in the document that
// explains them.
func TestEventsAreDocumented(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, "internal/control/events.go"), nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []string
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok && strings.HasPrefix(spec.Names[0].Name, "Event") {
			kind, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			kinds = append(kinds, kind)
		}
		return true
	})
	if len(kinds) < 10 {
		t.Fatalf("only %d kinds of events found: %q", len(kinds), kinds)
	}
	for path, quote := range map[string]string{"cmd/ublk-clone/follow.go": "", "docs/operations.md": "`"} {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range kinds {
			if !strings.Contains(string(text), quote+kind+quote) {
				t.Errorf("%s does not name the event %s", path, kind)
			}
		}
	}
}
