package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/etc"
	"github.com/ublk-clone/ublk-clone/internal/exit"
)

// TestCompletion: what may come next, after words as a shell has them.
func TestCompletion(t *testing.T) {
	run, conf := t.TempDir(), t.TempDir()
	for _, path := range []string{filepath.Join(run, "data.json"), filepath.Join(run, "root.json"), filepath.Join(conf, "later.toml")} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		words []string
		want  string // words; with a "+", these and more
	}{
		{[]string{"re"}, "recover restart resume"},
		{[]string{""}, "add del status +"},
		{nil, "add del status +"},
		{[]string{"nonsense", ""}, ""},
		{[]string{"unit-s"}, ""},
		{[]string{"del", ""}, "data root"},
		{[]string{"del", "da"}, "data"},
		{[]string{"del", "data", ""}, ""},
		{[]string{"del", "--force", "r"}, "root"},
		{[]string{"del", "--wait", "1s", "r"}, "root"},
		{[]string{"show", ""}, "data root"},
		{[]string{"del", "data", "--"}, "--force --wait --output"},
		{[]string{"add", ""}, "later"},
		{[]string{"add", "x", "--source", "/de"}, anyFile},
		{[]string{"add", "x", "--source", "/dev/sda", "--read"}, "--read-through"},
		{[]string{"add", "x", "--read-through", ""}, "on off"},
		{[]string{"add", "x", "--read-through", "=", "of"}, "off"},
		{[]string{"add", "x", "--wait", ""}, "ready hydrated"},
		{[]string{"add", "x", "--queues", ""}, ""},
		{[]string{"status", "-o", ""}, "json dm"},
		{[]string{"wait", "data", "--for", ""}, "event finished hydrated"},
		{[]string{"watch", "data", "--progress", "p"}, "plain"},
		{[]string{"message", "data", "enable"}, "enable_hydration"},
		{[]string{"set", "data", "rat"}, "rate="},
		{[]string{"set", "data", "rate=1MiB/s", "min"}, "min-rate="},
		{[]string{"metadata", ""}, "create check dump"},
		{[]string{"metadata", "check", ""}, anyFile},
	} {
		var out, errs bytes.Buffer
		p := &program{out: &out, errs: &errs, dir: control.Dir(run), defined: etc.Dir(conf)}
		if code := p.run(append([]string{"ublk-clone", suggestCommand, "--"}, c.words...)); code != exit.OK || errs.Len() > 0 {
			t.Errorf("%q: exit code %d, %s", c.words, code, errs.String())
		}
		var got []string
		for line := range strings.Lines(out.String()) {
			word, _, _ := strings.Cut(line, "\t")
			got = append(got, word)
		}
		want := strings.Fields(c.want)
		more := len(want) > 0 && want[len(want)-1] == "+"
		if more {
			want = want[:len(want)-1]
			got = slices.DeleteFunc(got, func(w string) bool { return !slices.Contains(want, w) })
		}
		if slices.Sort(got); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("%q: %q, not %q", c.words, got, want)
		}
	}
}
