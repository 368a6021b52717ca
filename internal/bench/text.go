package bench

// The document's words.
const (
	introduction = `# Benchmarks

ublk-clone beside the kernel's dm-clone, dm-snapshot on a mirror, and the raw devices: in one guest, in one run. This
document is made by ` + "`make bench`" + ` and by nothing else; what is not in the logs of that run is called missing.

The guest's clock counts instructions, a nanosecond each, so that figures repeat within 1 or 2 % on any machine. Its one
CPU does 1 GIPS and is shared by fio, the kernel and the daemon. The devices are null_blk: a disk with 1.4 ms for a request,
one at a time, 120 MB/s, and an SSD with 72.6 us, five at a time, 390 MB/s, all of it slower by a factor S: S=4 stands for a
core of 4 GIPS, a usual one, S=1 for a slow one. Read latencies and rates of S=4 as a quarter, or four times as much.

A figure that a goal judges is the median of three, taken in turns with those of the others.
`
	goalsText = `A goal is a ratio to a peer in the same guest and run.
`
	unhydratedText = `The jobs of dm-clone's published figures: latency by psync, 4 KiB; IOPS by libaio, 4 KiB, depth 32; MB/s by libaio, 256 KiB,
depth 32. Reads of the clones come from the disk, those of the snapshot from the mirror's fast leg.
`
	hydratedText = `The same jobs, all regions hydrated.
`
	sweepText = `Hydrated, 4 KiB regions, MB/s. Of the sizes from 4 KiB to 1 MiB the two ends and 64 KiB are measured.
`
	hydrationText = `512 MiB with nobody else there, from the first read of the source to the last byte on the destination. The source's own
rate is that of fio's sequential reads. The best setting that was found counts as dm-clone's.
`
	besideText = `Readers read unhydrated regions of 4 KiB in random order, the writer writes such whole, one at a time, where hydration comes
last. "alone" is without hydration; "gentle" is a threshold and batch of 16 regions, and a rate of 12 MiB/s divided by S, kept
also beside users.
`
	startText = `Sparse files on tmpfs, from the start of the command to the answer of the first read. Memory is the daemon's then.
`
	costText = `Nanoseconds of CPU time for a request, which are instructions: of all that the machine does for it, fio's part included.
`
	repeatText = `
## How to repeat

` + "```" + `
make bench          # everything: kernels 6.18 and 7.3, S=4 and S=1; writes this document
make bench-quick    # what the goals judge, measured once, S=4 on 6.18: prints the goals
make bench-native   # on this machine instead of in a guest, by its own clock; it needs root and the ublk driver
` + "```" + `

The measurements are the tests of ` + "`internal/devicetest`" + ` whose names are TestBench...; ` + "`internal/bench`" + ` judges them. One
of them alone: ` + "`BENCH=1 BENCH_S=1 KERNEL=7.3 RUN=TestBenchHydration scripts/device-tests`" + `. TestBenchCounts, which CI runs, fails
when a request on a hydrated clone costs 5 % more or less than it did.
`
)
