// Command report reads logs of the measurements (TestBench... in internal/devicetest) and prints
// which goals are met. Into a directory it writes benchmarks.md and its plots with -docs, and
// benchmarks-direct.md with -direct. It is run by scripts/bench.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/ublk-clone/ublk-clone/internal/bench"
)

func main() {
	docs := flag.String("docs", "", "write benchmarks.md and its plots into this `directory`")
	direct := flag.String("direct", "", "write benchmarks-direct.md into this `directory`")
	flag.Parse()
	if err := report(*docs, *direct, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func report(docs, direct string, logs []string) error {
	if len(logs) == 0 {
		return errors.New("no log is named")
	}
	figures := bench.Set{}
	for _, path := range logs {
		if err := readLog(figures, path); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
	}
	if len(figures) == 0 {
		return errors.New("no figure in the logs")
	}
	printGoals(figures)
	var err error
	if docs != "" {
		err = writeDocs(figures, docs)
	}
	if direct != "" {
		err = errors.Join(err, write(filepath.Join(direct, "benchmarks-direct.md"), figures.WriteDirect))
	}
	return err
}

func readLog(figures bench.Set, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return figures.Read(f)
}

func printGoals(figures bench.Set) {
	for _, at := range figures.Setups() {
		fmt.Printf("kernel %s, S=%d:\n", at.Kernel, at.S)
		for _, goals := range [][]bench.Goal{bench.Goals(), bench.DirectGoals()} {
			verdicts := figures.Judge(at, goals)
			if !slices.ContainsFunc(verdicts, func(v bench.Verdict) bool { return v.Missing == "" }) {
				continue // these were not meant to be measured
			}
			for _, v := range verdicts {
				fmt.Println("  " + v.Line())
			}
		}
	}
}

func writeDocs(figures bench.Set, dir string) error {
	plots, err := drawAll(figures, dir)
	if err != nil {
		return err
	}
	return write(filepath.Join(dir, "benchmarks.md"), func(out io.Writer) error { return figures.WriteDocument(out, plots) })
}

func write(path string, document func(io.Writer) error) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(document(f), f.Close())
}
