//go:build device

package devicetest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ublk-clone/ublk-clone/internal/bench"
	"github.com/ublk-clone/ublk-clone/internal/devicetest/harness"
)

// What the measurements of the bench share: figures, fio, and the candidates. BENCH_S is the
// devices' slowdown, BENCH_QUICK=1 measures once what the goals are about.

// quick says that only the core is to be measured, once.
func quick() bool { return os.Getenv("BENCH_QUICK") == "1" }

// repetitions of what a goal judges: the candidates take turns, and the median counts.
func repetitions() int {
	if quick() {
		return 1
	}
	return 3
}

// slowdownFrom is BENCH_S, or 4.
func slowdownFrom(text string) int {
	if s, err := strconv.Atoi(text); err == nil && s > 0 {
		return s
	}
	return 4
}

// figure prints one for internal/bench.
func figure(m *harness.Machine, k bench.Key, value float64) {
	m.Helper()
	fmt.Println(bench.Figure{Kernel: kernelRelease(m), S: slowdown, Key: k, Value: value}.Line())
}

// kernelRelease is the running kernel's version, as 6.18.
func kernelRelease(m *harness.Machine) string {
	m.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		m.Fatal(err)
	}
	release := strings.SplitN(unix.ByteSliceToString(name.Release[:]), ".", 3)
	return strings.Join(release[:2], ".")
}

// job of fio.
type job struct {
	name        string // as figures have it; "" = made of the others
	rw          string
	bs          int64
	depth       int
	first, size int64 // the area, in bytes; 0 = the whole device
	ramp, run   time.Duration
	mix         int // percent of reads, of randrw
	fsync       bool
}

// Times of a job: it warms up, and is measured. On devices that are slower by a factor it takes
// longer by a smaller one: what takes milliseconds is counted well enough.
const (
	rampTime = 400 * time.Millisecond
	runTime  = time.Second
)

// named is the job as figures call it.
func (j job) named() string {
	if j.name != "" {
		return j.name
	}
	return bench.JobName(j.rw, j.bs, j.depth)
}

// args of fio for the job alone, or for one of several.
func (j job) args(path string, n int) []string {
	args := []string{
		"--output-format=json", "--direct=1", "--thread", "--randrepeat=1", "--percentile_list=50:99:99.9",
		"--name=job" + strconv.Itoa(n), "--filename=" + path, "--rw=" + j.rw, fmt.Sprintf("--bs=%d", j.bs),
	}
	if n > 0 {
		args = append(args, "--stonewall")
	}
	if j.depth == 1 {
		args = append(args, "--ioengine=psync")
	} else {
		args = append(args, "--ioengine=libaio", "--iodepth="+strconv.Itoa(j.depth))
	}
	if j.size > 0 {
		args = append(args, fmt.Sprintf("--offset=%d", j.first), fmt.Sprintf("--size=%d", j.size))
	}
	if j.run > 0 {
		args = append(args, "--time_based", fmt.Sprintf("--ramp_time=%dms", j.ramp.Milliseconds()), fmt.Sprintf("--runtime=%dms", j.run.Milliseconds()))
	}
	if j.fsync {
		args = append(args, "--fsync=1", "--overwrite=1") // a file is laid out before
	}
	if j.mix > 0 {
		args = append(args, "--rwmixread="+strconv.Itoa(j.mix))
	}
	return args
}

// fioSide is what fio says of a job's reads or writes.
type fioSide struct {
	IOPS  float64 `json:"iops"`
	Bytes float64 `json:"bw_bytes"` // a second
	Total struct {
		Mean float64 `json:"mean"` // nanoseconds
	} `json:"lat_ns"`
	Completion struct {
		Percentile map[string]float64 `json:"percentile"`
	} `json:"clat_ns"`
}

// fioResult of a job.
type fioResult struct {
	Error int     `json:"error"`
	Read  fioSide `json:"read"`
	Write fioSide `json:"write"`
}

// fio runs the jobs one after the other.
func fio(m *harness.Machine, path string, jobs ...job) []fioResult {
	m.Helper()
	return fioResults(m, m.MustRun("fio", fioArgs(path, jobs)...), len(jobs))
}

func fioArgs(path string, jobs []job) []string {
	var args []string
	for n, j := range jobs {
		args = append(args, j.args(path, n)...)
	}
	return args
}

// fioResults reads what fio has printed.
func fioResults(m *harness.Machine, out string, jobs int) []fioResult {
	m.Helper()
	var report struct {
		Jobs []fioResult `json:"jobs"`
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || len(report.Jobs) != jobs {
		m.Fatalf("fio: %d of %d jobs: %v: %s", len(report.Jobs), jobs, err, out)
	}
	for n, r := range report.Jobs {
		if r.Error != 0 {
			m.Fatalf("fio: job %d: error %d", n, r.Error)
		}
	}
	return report.Jobs
}

// record prints all figures of a job.
func record(m *harness.Machine, k bench.Key, j job, r fioResult) {
	m.Helper()
	side := r.Read
	if strings.Contains(j.rw, "write") {
		side = r.Write
	}
	k.Job = j.named()
	for unit, value := range map[string]float64{
		bench.IOPS: r.Read.IOPS + r.Write.IOPS, bench.MBps: (r.Read.Bytes + r.Write.Bytes) / 1e6, bench.Mean: side.Total.Mean / 1e3,
		bench.P50: side.percentile(50), bench.P99: side.percentile(99), bench.P999: side.percentile(99.9),
	} {
		k.Unit = unit
		figure(m, k, value)
	}
}

// percentile in microseconds; 0 = fio has none, as without requests.
func (s fioSide) percentile(which float64) float64 {
	return s.Completion.Percentile[fmt.Sprintf("%.6f", which)] / 1e3
}

// disks are what a clone is made of.
type disks struct{ source, dest, metadata *harness.Disk }

// benchDisks makes an HDD and an SSD of that size with bytes all over them, so that neither zeros
// nor memory that null_blk has yet to get favour who comes first.
func benchDisks(m *harness.Machine, role string, size int64) disks {
	m.Helper()
	d := disks{
		m.NullBlk(role+"hdd", hdd.Sized(size/harness.MiB)), m.NullBlk(role+"ssd", ssd.Sized(size/harness.MiB)), m.NullBlk(role+"meta", ssd.Sized(benchMetadata)),
	}
	fio(m, d.source.Path, job{rw: "write", bs: harness.MiB, depth: 4})
	fio(m, d.dest.Path, job{rw: "write", bs: harness.MiB, depth: 4})
	return d
}

// benchMetadata is the size of the metadata device, MiB: it is erased for each clone.
const benchMetadata = 4

// A candidate is a device with the source under it.
type candidate struct {
	m       *harness.Machine
	name    string
	disks   disks
	region  int64
	path    string         // while it is up
	clone   *harness.Clone // ours
	setting string         // as figures have it
}

// start brings a fresh one up, without hydration. settings are our own.
func (c *candidate) start(settings ...string) {
	c.m.Helper()
	c.m.Erase(c.disks.metadata)
	switch c.name {
	case bench.DMClone:
		c.path = c.kernelDevice("kernel", fmt.Sprintf("0 %d clone %s %s %s %d 1 no_hydration",
			c.disks.source.Size/harness.Sector, c.disks.metadata.Path, c.disks.dest.Path, c.disks.source.Path, c.region/harness.Sector))
	case bench.Snapshot:
		c.startSnapshot()
	case bench.Ours:
		c.startOurs(settings...)
	case bench.Layered:
		c.startOurs(append(settings, "--dm", harness.LayerName, "--direct", "off")...)
	case bench.Direct, bench.Finished:
		c.startOurs(append(settings, "--dm", harness.LayerName)...)
	}
}

func (c *candidate) startOurs(settings ...string) {
	c.m.Helper()
	args := append([]string{"--no-hydration", "--force", "--region-size", harness.KiBText(c.region)}, settings...)
	c.clone = c.m.AddClone(c.disks.source, c.disks.dest, c.disks.metadata, args...)
	device := c.m.Block(c.clone.Status().Device)
	c.m.WriteFile(fmt.Sprintf("/sys/block/%s/queue/scheduler", device.Name), "none")
	if c.path = device.Path; c.hasLayer() {
		c.path = c.m.MapperPath(harness.LayerName)
	}
}

// hasLayer says that it is one of ours that has a layer.
func (c *candidate) hasLayer() bool { return c.clone != nil && slices.Contains(c.clone.Args, "--dm") }

// kernelDevice makes a device-mapper device that stop removes, or the end of a test that fails.
func (c *candidate) kernelDevice(name, table string) string {
	c.m.Helper()
	c.m.MustRun("dmsetup", "create", name, "--table", table)
	c.m.Cleanup(func() {
		if c.path != "" {
			c.m.Try("dmsetup", "remove", "--retry", name)
		}
	})
	return c.m.MapperPath(name)
}

// startSnapshot makes the peer of the published figures: a mirror of both disks, read from the fast
// one, and a snapshot of it whose exceptions are on another SSD (disks.dest is the mirror's leg).
func (c *candidate) startSnapshot() {
	c.m.Helper()
	mirror := c.kernelDevice("mirror", fmt.Sprintf("0 %d raid raid1 4 0 nosync write_mostly 0 2 - %s - %s",
		c.disks.source.Size/harness.Sector, c.disks.source.Path, c.disks.dest.Path))
	c.path = c.kernelDevice("kernel", fmt.Sprintf("0 %d snapshot %s %s P %d",
		c.disks.source.Size/harness.Sector, mirror, c.disks.metadata.Path, c.region/harness.Sector))
}

// stop takes it down.
func (c *candidate) stop() {
	c.m.Helper()
	switch c.name {
	case bench.DMClone:
		c.m.MustRun("dmsetup", "remove", "--retry", "kernel")
	case bench.Snapshot:
		c.m.MustRun("dmsetup", "remove", "--retry", "kernel")
		c.m.MustRun("dmsetup", "remove", "--retry", "mirror")
	case bench.Finished:
		c.m.MustRun("dmsetup", "remove", "--retry", harness.LayerName)
	default:
		c.clone.Del()
	}
	c.path = ""
}

// hydrate switches hydration on.
func (c *candidate) hydrate() {
	c.m.Helper()
	if c.name != bench.DMClone {
		c.clone.Message("enable_hydration")
		return
	}
	c.m.MustRun("dmsetup", "message", "kernel", "0", "enable_hydration")
}

// tune sets hydration's settings: threshold and batch.
func (c *candidate) tune(setting string, threshold, batch int) {
	c.m.Helper()
	c.setting = setting
	c.m.MustRun("dmsetup", "message", "kernel", "0", "hydration_threshold", strconv.Itoa(threshold))
	c.m.MustRun("dmsetup", "message", "kernel", "0", "hydration_batch_size", strconv.Itoa(batch))
}

// writeAll hydrates all by writing it.
func (c *candidate) writeAll() {
	c.m.Helper()
	fio(c.m, c.path, job{rw: "write", bs: harness.MiB, depth: 4})
	if c.name != bench.DMClone {
		c.clone.WaitHydrated()
		return
	}
	if f := strings.Fields(c.m.MustRun("dmsetup", "status", "kernel")); len(f) < 7 || !isWhole(f[6]) {
		c.m.Fatalf("dm-clone is not hydrated: %q", f)
	}
}

// isWhole says that N/M is all of it.
func isWhole(fraction string) bool {
	done, total, found := strings.Cut(fraction, "/")
	return found && done == total
}

// key of a figure of the candidate.
func (c *candidate) key(state, job, unit string) bench.Key {
	return bench.Key{Candidate: c.name, State: state, Setting: c.setting, Job: job, Region: c.region, Unit: unit}
}

// traffic of the candidate's own device.
func (c *candidate) traffic() harness.Traffic {
	return (&harness.Disk{M: &c.m.Devices, Name: filepath.Base(c.path)}).Traffic()
}

// clones are the candidates that are clones.
func clones(m *harness.Machine, d disks, region int64) []*candidate {
	var all []*candidate
	if m.HasKernelClone() {
		all = append(all, &candidate{m: m, name: bench.DMClone, disks: d, region: region})
	}
	return append(all, &candidate{m: m, name: bench.Ours, disks: d, region: region})
}

// running is a program beside the test.
type running struct {
	m   *harness.Machine
	cmd *exec.Cmd
	out *strings.Builder
}

// startFio begins a job that runs beside others, and waits until it does.
func startFio(m *harness.Machine, path string, j job) *running {
	m.Helper()
	defer m.Spinner.Spin()()
	device := &harness.Disk{M: &m.Devices, Name: filepath.Base(path)}
	before := device.Traffic()
	r := &running{m: m, cmd: exec.Command("fio", j.args(path, 0)...), out: &strings.Builder{}}
	r.cmd.Stdout = r.out
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		m.Fatal(err)
	}
	m.WaitFor(harness.CommandLimit(), "the job to begin", func() error {
		if now := device.Traffic().Since(before); now.Reads+now.Writes == 0 {
			return fmt.Errorf("%+v", now)
		}
		return nil
	})
	return r
}

// result of the job, when it has ended.
func (r *running) result() fioResult {
	r.m.Helper()
	if err := r.cmd.Wait(); err != nil {
		r.m.Fatalf("fio: %v: %s", err, r.out)
	}
	return fioResults(r.m, r.out.String(), 1)[0]
}
