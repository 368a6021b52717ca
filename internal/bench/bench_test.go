package bench

import (
	"errors"
	"strings"
	"testing"
)

var at4 = Setup{"6.18", 4}

func read(t *testing.T, lines ...string) Set {
	t.Helper()
	s := Set{}
	if err := s.Read(strings.NewReader(strings.Join(lines, "\n"))); err != nil {
		t.Fatal(err)
	}
	return s
}

// TestReadsWhatIsPrinted: a figure in the middle of a log, behind whatever a line begins with, is
// what was printed.
func TestReadsWhatIsPrinted(t *testing.T) {
	f := Figure{Kernel: "6.18", S: 4, Key: of(Ours, Unhydrated, WriteIOPS, 4*kib, IOPS), Value: 12.5}
	g := f
	g.Value = 3
	s := read(t, "=== RUN   TestBench", "    x_test.go:3: "+f.Line()+"\r", "bench: nothing", g.Line(), g.Line())
	if len(s) != 1 || len(s[at4][f.Key]) != 3 {
		t.Fatalf("read %v", s)
	}
	if m, ok := s.Median(at4, f.Key); !ok || m != 3 {
		t.Errorf("median %v, %v", m, ok)
	}
	if m, ok := s.Median(Setup{"7.3", 4}, f.Key); ok {
		t.Errorf("median %v of what was not measured", m)
	}
}

// TestReadRefuses: a line that is cut, or says less or more than a figure, is no figure and no
// silence.
func TestReadRefuses(t *testing.T) {
	whole := Figure{Kernel: "6.18", S: 4, Key: of(Ours, "", Hydration, 4*kib, MBps), Value: 1}.Line()
	for _, line := range []string{
		whole[:len(whole)-3],
		`bench: {"kernel":"6.18","s":4,"candidate":"x","job":"y","value":1}`,
		`bench: {"kernel":"6.18","candidate":"x","job":"y","unit":"s","value":1}`,
		strings.Replace(whole, "value", "size", 1),
	} {
		if err := (Set{}).Read(strings.NewReader("a line\n" + line)); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%s: error %v", line, err)
		}
	}
}

// verdictOf the first goal whose text begins so.
func verdictOf(t *testing.T, s Set, at Setup, what string) Verdict {
	t.Helper()
	for _, v := range s.Judge(at, Goals()) {
		if strings.HasPrefix(v.Goal.What, what) {
			return v
		}
	}
	t.Fatalf("no goal %q", what)
	return Verdict{}
}

// TestJudge: lower and upper limits, on each side, and exactly.
func TestJudge(t *testing.T) {
	for _, test := range []struct {
		what, job, unit string
		ours, peer      float64
		met             bool
	}{
		{"random write IOPS", WriteIOPS, IOPS, 97, 100, true},
		{"random write IOPS", WriteIOPS, IOPS, 96.9, 100, false},
		{"random write latency", WriteLatency, Mean, 105, 100, true},
		{"random write latency", WriteLatency, Mean, 105.1, 100, false},
	} {
		s := Set{}
		s.add(Figure{Kernel: "6.18", S: 4, Key: of(Ours, Unhydrated, test.job, 4*kib, test.unit), Value: test.ours})
		s.add(Figure{Kernel: "6.18", S: 4, Key: of(DMClone, Unhydrated, test.job, 4*kib, test.unit), Value: test.peer})
		if v := verdictOf(t, s, at4, test.what); v.Met != test.met || v.Missing != "" || v.Ratio != test.ours/test.peer {
			t.Errorf("%v: %+v", test, v)
		}
	}
}

// TestJudgeTakesTheBestPeer: dm-clone is not judged by a setting that is bad for it.
func TestJudgeTakesTheBestPeer(t *testing.T) {
	s := Set{}
	s.add(Figure{Kernel: "6.18", S: 4, Key: of(Ours, "", Hydration, 4*kib, MBps), Value: 30})
	for setting, rate := range map[string]float64{"": 1, Tuned256: 31, Tuned1024: 20} {
		s.add(Figure{Kernel: "6.18", S: 4, Key: Key{Candidate: DMClone, Setting: setting, Job: Hydration, Region: 4 * kib, Unit: MBps}, Value: rate})
	}
	if v := verdictOf(t, s, at4, "hydration with our defaults, to the best that"); v.Peer != 31 || v.Of.Setting != Tuned256 || v.Met {
		t.Errorf("%+v", v)
	}
}

// TestMissingIsSaid: nothing measured means every goal is named, none met, and each says what is
// missing.
func TestMissingIsSaid(t *testing.T) {
	for _, at := range []Setup{at4, {"6.18", 1}} {
		all := Set{}.Judge(at, Goals())
		if len(all) < 14 {
			t.Errorf("%d goals", len(all))
		}
		for _, v := range all {
			if v.Met || v.Missing == "" {
				t.Errorf("%+v", v)
			}
		}
	}
	s := Set{}
	s.add(Figure{Kernel: "6.18", S: 4, Key: of(Ours, Unhydrated, WriteIOPS, 4*kib, IOPS), Value: 1})
	if v := verdictOf(t, s, at4, "random write IOPS"); !strings.Contains(v.Missing, DMClone) {
		t.Errorf("%+v", v)
	}
}

// TestOneColumnGoals: goals that are set for S=4 alone are not judged at S=1.
func TestOneColumnGoals(t *testing.T) {
	for _, v := range (Set{}).Judge(Setup{"6.18", 1}, Goals()) {
		if strings.Contains(v.Goal.What, "p99") || strings.Contains(v.Goal.What, "reader") {
			t.Errorf("judged at S=1: %s", v.Goal.What)
		}
	}
}

// TestDocumentSaysMissing: of one figure the document has the number, and says missing of all
// others.
func TestDocumentSaysMissing(t *testing.T) {
	s := Set{}
	s.add(Figure{Kernel: "6.18", S: 4, Key: of(Ours, Unhydrated, WriteIOPS, 4*kib, IOPS), Value: 15801})
	var text strings.Builder
	if err := s.WriteDocument(&text, []Plot{{"a.svg", "A"}}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| 15801 |", "S=1: missing", "![A](a.svg)", "Not measured:", "dm-clone, unhydrated, " + WriteIOPS} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the document has no %q", want)
		}
	}
	if n := strings.Count(text.String(), "15801"); n != 1 {
		t.Errorf("the one figure is in it %d times", n)
	}
}

// full is a disk with room for a number of writes.
type full int

func (f *full) Write(text []byte) (int, error) {
	if *f--; *f < 0 {
		return 0, errors.New("no space left")
	}
	return len(text), nil
}

// TestDocumentSaysUnwritten: wherever the space ends, half a document is none.
func TestDocumentSaysUnwritten(t *testing.T) {
	for _, room := range []full{0, 1, 20} {
		if err := (Set{at4: nil}).WriteDocument(&room, nil); err == nil {
			t.Error("no error")
		} else if room != -1 {
			t.Errorf("writes after one has failed: %d", -room)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 0.01234: "0.0123", 1.234: "1.23", 12.34: "12.3", 123.4: "123", 15801.3: "15801"} {
		if got := number(v); got != want {
			t.Errorf("%v is printed as %s, want %s", v, got, want)
		}
	}
}

// TestDirectDocumentSaysHowOften: a quick run is called one.
func TestDirectDocumentSaysHowOften(t *testing.T) {
	g := DirectGoals()[0]
	for n, want := range map[int]string{1: "each figure was measured once", 3: "is the median of 3"} {
		s := Set{}
		for range n {
			s.add(Figure{Kernel: "6.18", S: 4, Key: g.Ours, Value: 9900})
			s.add(Figure{Kernel: "6.18", S: 4, Key: g.Peers[0], Value: 10000})
		}
		var text strings.Builder
		if err := s.WriteDirect(&text); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{want, "| met, 0.990 |", missing} {
			if !strings.Contains(text.String(), want) {
				t.Errorf("%d times: the document has no %q", n, want)
			}
		}
	}
}
