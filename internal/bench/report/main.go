// Command report reads logs of the measurements (TestBench... in internal/devicetest), prints which
// goals are met, and with -docs writes benchmarks.md and its plots into that directory. It is run
// by scripts/bench.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"

	"github.com/ublk-clone/ublk-clone/internal/bench"
)

func main() {
	docs := flag.String("docs", "", "write benchmarks.md and its plots into this `directory`")
	flag.Parse()
	if err := report(*docs, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func report(docs string, logs []string) error {
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
	if docs == "" {
		return nil
	}
	return writeDocs(figures, docs)
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
		for _, v := range figures.Judge(at) {
			fmt.Println("  " + v.Line())
		}
	}
}

func writeDocs(figures bench.Set, dir string) error {
	plots, err := drawAll(figures, dir)
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, "benchmarks.md"))
	if err != nil {
		return err
	}
	return errors.Join(figures.WriteDocument(f, plots), f.Close())
}
