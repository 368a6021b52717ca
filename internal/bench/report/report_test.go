package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/bench"
)

// log writes one with such lines.
func log(t *testing.T, lines string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(path, []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestReport: also of a log that has next to nothing there is a document, and the plots that it
// shows are there.
func TestReport(t *testing.T) {
	docs := t.TempDir()
	f := bench.Figure{Kernel: "6.18", S: 4, Value: 12}
	f.Key = bench.Key{Candidate: bench.Ours, State: bench.Unhydrated, Job: bench.WriteIOPS, Region: 4096, Unit: bench.IOPS}
	if err := report(docs, docs, []string{log(t, "=== RUN x\n"+f.Line()+"\n")}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(docs, "benchmarks.md"))
	if err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(filepath.Join(docs, "benchmarks-direct.md")); err != nil || !strings.Contains(string(second), "Not measured:") {
		t.Errorf("the second document: %v: %s", err, second)
	}
	plots := regexp.MustCompile(`\]\((\S+\.svg)\)`).FindAllSubmatch(text, -1)
	if len(plots) != 3 {
		t.Errorf("%d plots", len(plots))
	}
	for _, plot := range plots {
		if info, err := os.Stat(filepath.Join(docs, string(plot[1]))); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", plot[1], err)
		}
	}
}

// TestReportRefuses: logs without figures, or with half of one, make no document.
func TestReportRefuses(t *testing.T) {
	for name, logs := range map[string][]string{
		"none": nil, "absent": {"/nonexistent"}, "without figures": {log(t, "nothing\n")}, "cut": {log(t, `bench: {"kernel":"6.1`)},
	} {
		docs := t.TempDir()
		if err := report(docs, docs, logs); err == nil {
			t.Errorf("%s: no error", name)
		}
		if made, _ := os.ReadDir(docs); len(made) > 0 {
			t.Errorf("%s: %v was written", name, made)
		}
	}
}
