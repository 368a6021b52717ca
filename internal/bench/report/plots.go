package main

import (
	"fmt"
	"image/color"
	"math"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/ublk-clone/ublk-clone/internal/bench"
)

// bars is a plot of groups of bars: one group for each label, in it a bar for each series.
type bars struct {
	file, title, axis string
	labels            []string
	series            []series
	line              float64 // drawn across; 0 = none
	log               bool
}

// series is one colour's bars; a figure that is missing leaves a gap, and a star at its label.
type series struct {
	name   string
	values []float64
	there  []bool
}

// colours of the series, told apart also in grey and by those who do not see red and green.
var colours = []color.RGBA{{0x44, 0x77, 0xaa, 0xff}, {0xee, 0x66, 0x77, 0xff}, {0x99, 0x99, 0x99, 0xff}, {0xcc, 0xbb, 0x44, 0xff}}

// drawAll draws the plots of each setup.
func drawAll(figures bench.Set, dir string) ([]bench.Plot, error) {
	var drawn []bench.Plot
	for _, at := range figures.Setups() {
		for _, b := range []bars{goalBars(figures, at), regionBars(figures, at), hydrationBars(figures, at)} {
			file := fmt.Sprintf("bench-%s-%s-s%d.svg", b.file, at.Kernel, at.S)
			b.title += fmt.Sprintf(" (kernel %s, S=%d)", at.Kernel, at.S)
			if err := b.draw(filepath.Join(dir, file)); err != nil {
				return nil, fmt.Errorf("draw %s: %w", file, err)
			}
			drawn = append(drawn, bench.Plot{File: file, Title: b.title})
		}
	}
	return drawn, nil
}

// add a series of figures.
func (b *bars) add(figures bench.Set, at bench.Setup, name string, keys ...bench.Key) {
	s := series{name: name}
	for _, k := range keys {
		v, ok := figures.Median(at, k)
		s.values, s.there = append(s.values, v), append(s.there, ok)
	}
	b.series = append(b.series, s)
}

// goalBars show for each goal how far it is reached: 1 is the limit, more is better.
func goalBars(figures bench.Set, at bench.Setup) bars {
	b := bars{file: "goals", title: "Goals: 1 is the limit, higher is better", axis: "reached", line: 1}
	s := series{name: bench.Ours}
	for i, v := range figures.Judge(at, bench.Goals()) {
		reached := v.Ratio / v.Limit
		if !v.Least {
			reached = v.Limit / v.Ratio
		}
		b.labels = append(b.labels, fmt.Sprint(i+1))
		s.values, s.there = append(s.values, min(reached, 2)), append(s.there, v.Missing == "")
	}
	b.series = []series{s}
	return b
}

// regionBars show random writes by region size.
func regionBars(figures bench.Set, at bench.Setup) bars {
	b := bars{file: "write-iops", title: "Random 4 KiB writes to unhydrated regions, depth 32", axis: "IOPS", log: true}
	for _, region := range bench.Regions {
		b.labels = append(b.labels, fmt.Sprintf("%d KiB", region>>10))
	}
	for _, candidate := range []string{bench.DMClone, bench.Ours, bench.Snapshot} {
		var keys []bench.Key
		for _, region := range bench.Regions {
			keys = append(keys, bench.Key{Candidate: candidate, State: bench.Unhydrated, Job: bench.WriteIOPS, Region: region, Unit: bench.IOPS})
		}
		b.add(figures, at, candidate, keys...)
	}
	return b
}

// hydrationBars show the rate of hydration, alone and beside readers.
func hydrationBars(figures bench.Set, at bench.Setup) bars {
	b := bars{file: "hydration", title: "Hydration alone and beside readers", axis: bench.MBps,
		labels: []string{"alone", "1 reader", "2 readers", "4 readers"}}
	for _, of := range []struct{ name, candidate, setting string }{
		{"dm-clone, defaults", bench.DMClone, ""}, {"ublk-clone, defaults", bench.Ours, ""},
		{"dm-clone, 256/256", bench.DMClone, bench.Tuned256}, {"ublk-clone, gentle", bench.Ours, bench.Gentle},
	} {
		keys := []bench.Key{}
		for _, job := range []string{bench.Hydration, bench.Beside(bench.Hydration, 1), bench.Beside(bench.Hydration, 2), bench.Beside(bench.Hydration, 4)} {
			keys = append(keys, bench.Key{Candidate: of.candidate, Setting: of.setting, Job: job, Region: 4 << 10, Unit: bench.MBps})
		}
		b.add(figures, at, of.name, keys...)
	}
	return b
}

// Sizes of a plot and its bars.
const (
	plotWidth  = 18 * vg.Centimeter
	plotHeight = 9 * vg.Centimeter
	groupWidth = 14 * vg.Centimeter // of all groups together
	headroom   = 1.25               // for the legend
)

// draw writes the plot as SVG.
func (b bars) draw(path string) error {
	p := plot.New()
	p.Title.Text, p.Y.Label.Text = b.title, b.axis
	p.Legend.Top = true
	width := groupWidth / vg.Length(len(b.labels)*(len(b.series)+1))
	for i, s := range b.series {
		if err := b.addSeries(p, s, i, width); err != nil {
			return err
		}
	}
	if b.line > 0 {
		line := plotter.NewFunction(func(float64) float64 { return b.line })
		line.Dashes = []vg.Length{vg.Points(4), vg.Points(2)}
		p.Add(line)
	}
	p.Y.Min, p.Y.Max = 0, p.Y.Max*headroom
	if b.log {
		p.Y.Tick.Marker = powersOfTen
	}
	labels := append([]string(nil), b.labels...)
	for i := range labels {
		if b.gap(i) {
			labels[i] = strings.TrimSpace(labels[i] + "*") // something is missing
		}
	}
	p.NominalX(labels...)
	return p.Save(plotWidth, plotHeight, path)
}

// powersOfTen marks an axis of logarithms.
var powersOfTen = plot.ConstantTicks{{Value: 0, Label: "1"}, {Value: 1, Label: "10"}, {Value: 2, Label: "100"}, {Value: 3, Label: "1 000"},
	{Value: 4, Label: "10 000"}, {Value: 5, Label: "100 000"}}

// gap says that a figure of the group is missing.
func (b bars) gap(group int) bool {
	for _, s := range b.series {
		if !s.there[group] {
			return true
		}
	}
	return false
}

// addSeries adds the bars of one colour.
func (b bars) addSeries(p *plot.Plot, s series, i int, width vg.Length) error {
	values := plotter.Values(append([]float64(nil), s.values...))
	for j := range values {
		switch {
		case !s.there[j]:
			values[j] = 0 // a bar of no height
		case b.log:
			values[j] = math.Log10(values[j]) // the library's own such scale has no place for where bars begin
		}
	}
	chart, err := plotter.NewBarChart(values, width)
	if err != nil {
		return err
	}
	chart.Color, chart.LineStyle.Width = colours[i%len(colours)], 0
	chart.Offset = width * vg.Length(2*i-len(b.series)+1) / 2
	p.Add(chart)
	p.Legend.Add(s.name, chart)
	return nil
}
