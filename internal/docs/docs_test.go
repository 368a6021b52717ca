package docs

import "testing"

func TestParse(t *testing.T) {
	blocks, err := parse("x.md", "a\n```sh\none\n\ntwo\n```\n\n```\nthree\n```\n")
	want := []Block{{"x.md", 2, "sh", "one\n\ntwo\n"}, {"x.md", 8, "", "three\n"}}
	if err != nil || len(blocks) != 2 || blocks[0] != want[0] || blocks[1] != want[1] {
		t.Errorf("%+v, %v", blocks, err)
	}
	if _, err := parse("x.md", "```sh\none\n"); err == nil {
		t.Error("a block without an end is none")
	}
}

func TestScript(t *testing.T) {
	b := Block{Text: "make build\nmodprobe x\n" + Endless[0] + "\n"}
	if got, want := b.Script(), "modprobe x\ntimeout -s INT 5 "+Endless[0]+" || [ $? = 124 ]\n"; got != want {
		t.Errorf("%q, not %q", got, want)
	}
}
