package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/urfave/cli/v2"
	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/ublk-clone/ublk-clone/internal/control"
	"github.com/ublk-clone/ublk-clone/internal/definition"
	"github.com/ublk-clone/ublk-clone/internal/succession"
	"github.com/ublk-clone/ublk-clone/internal/text"
)

// plainPause is between two lines of a watch that is no bar.
const plainPause = 5 * time.Second

func (f follower) wait(c *cli.Context) error {
	name, output, err := namedForm(c)
	if err != nil {
		return err
	}
	limit, err := limitFlag(c)
	if err != nil {
		return err
	}
	after, err := afterFlag(c)
	if err != nil {
		return err
	}
	switch what := c.String("for"); what {
	case "hydrated":
		return f.waitAndPrint(name, limit, output)
	case "event":
		return waitEvent(c.Context, f.dir, name, after, limit, func(ev control.Event) error { return printEvent(f.out, ev, output) })
	case "finished":
		return waitFinished(c.Context, f.dir, name, limit)
	default:
		return definition.UsageError("--for " + what + ": it must be hydrated, finished or event")
	}
}

func (f follower) waitAndPrint(name string, limit time.Duration, output string) error {
	var last *control.Status
	err := succession.Hydrated(f.dir, name, limit, func(st *control.Status) error { last = st; return nil })
	if err == nil && output != "" {
		err = printJSON(f.out, []control.Status{*last})
	}
	return err
}

// afterFlag is --after, nil for none.
func afterFlag(c *cli.Context) (*uint64, error) {
	if !c.IsSet("after") {
		return nil, nil
	}
	if c.String("for") != "event" {
		return nil, definition.UsageError("--after goes with --for event")
	}
	n, err := strconv.ParseUint(c.String("after"), 10, 64)
	if err != nil {
		return nil, definition.UsageError(fmt.Sprintf("--after %s: not the number of an event", c.String("after")))
	}
	return &n, nil
}

// limitFlag is --timeout, 0 for none.
func limitFlag(c *cli.Context) (time.Duration, error) {
	text := c.String("timeout")
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, definition.UsageError(fmt.Sprintf("--timeout %s: not a time such as 90s or 2h", text))
	}
	return d, nil
}

// viewer shows the statuses of a watch.
type viewer interface {
	see(*control.Status) error
	close()
}

func (f follower) watch(c *cli.Context) error {
	name, _, err := namedForm(c)
	if err != nil {
		return err
	}
	v, err := newViewer(c.String("progress"), f.out)
	if err != nil {
		return err
	}
	defer v.close()
	return succession.Hydrated(f.dir, name, 0, v.see)
}

// newViewer makes the viewer for a form; "auto" is a bar on a terminal, else lines.
func newViewer(form string, out io.Writer) (viewer, error) {
	if form == "auto" {
		form = "plain"
		if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			form = "bar"
		}
	}
	switch form {
	case "bar":
		return newBar(out), nil
	case "plain":
		return &lines{pause: plainPause, print: func(st *control.Status) error { return writePlain(out, st) }}, nil
	case "json":
		return &lines{pause: plainPause, print: func(st *control.Status) error { return encodeLine(out, st) }}, nil
	case "none":
		return &lines{print: func(*control.Status) error { return nil }}, nil
	}
	return nil, definition.UsageError("--progress " + form + ": it must be auto, bar, plain, json or none")
}

// lines prints a status when its state changes, and every pause.
type lines struct {
	pause time.Duration
	print func(*control.Status) error
	state string
	next  time.Time
}

func (l *lines) see(st *control.Status) error {
	now, state := time.Now(), st.State
	if state == control.StateYielding { // comes and goes with the users' requests
		state = control.StateHydrating
	}
	if state == l.state && now.Before(l.next) {
		return nil
	}
	l.state, l.next = state, now.Add(l.pause)
	return l.print(st)
}

func (l *lines) close() {}

func writePlain(w io.Writer, st *control.Status) error {
	_, err := fmt.Fprintf(w, "%s  %s  %s  %s of %s  %s  eta %s\n", st.Name, st.State, st.DoneText(""),
		text.Size(st.Bytes.Hydrated), text.Size(st.Size), control.RateText(st.Rate), control.EtaText(st.ETA))
	return err
}

// bar is a progress bar that fits into 80 columns.
type bar struct {
	progress *mpb.Progress
	bar      *mpb.Bar
	last     atomic.Pointer[control.Status] // the library draws on a goroutine of its own
}

// barWidth is the width of the bar itself, in columns.
const barWidth = 24

func newBar(out io.Writer) *bar {
	return &bar{progress: mpb.New(mpb.WithOutput(out), mpb.WithWidth(barWidth), mpb.WithAutoRefresh())}
}

func (b *bar) see(st *control.Status) error {
	b.last.Store(st)
	if b.bar == nil {
		b.bar = b.progress.AddBar(st.Size, mpb.PrependDecorators(decor.Name(st.Name+" ")), mpb.AppendDecorators(decor.Any(b.text)))
	}
	// The bar is complete when the clone is, not when its last byte is.
	b.bar.SetCurrent(min(st.Bytes.Hydrated, st.Size-1))
	if st.State == control.StateHydrated || st.State == control.StateFinished {
		b.bar.SetCurrent(st.Size)
	}
	return nil
}

func (b *bar) text(decor.Statistics) string {
	st := b.last.Load()
	return fmt.Sprintf(" %s  %s  eta %s  %s", st.DoneText(""), control.RateText(st.Rate), control.EtaText(st.ETA), st.State)
}

func (b *bar) close() {
	if b.bar != nil {
		b.bar.Abort(false)
	}
	b.progress.Wait()
}
