package bench

// The document's words.
const (
	introduction = `# Benchmarks

These measurements compare ublk-clone with the kernel's dm-clone, with dm-snapshot on a mirror, and with the raw devices, all in
one guest and one run. Only ` + "`make bench`" + ` writes this document. What is not in the logs of that run is called missing.

The guest's clock counts instructions, one nanosecond each, so figures repeat within 1 or 2 % on any machine. The guest has one
CPU of 1 GIPS, which fio, the kernel and the daemon share. The devices are null_blk: a disk that takes 1.4 ms for a request, one
at a time, at 120 MB/s, and an SSD that takes 72.6 us, five requests at a time, at 390 MB/s. Both are slowed down by a factor
S. S=4 stands for a usual core, of 4 GIPS, and S=1 for a slow one. Divide latencies at S=4 by four, and multiply rates by four.

A figure that a goal judges is the median of three, which are measured in turns with those of the others.
`
	goalsText = `A goal is a ratio to a peer in the same guest and run.
`
	unhydratedText = `These are the jobs of dm-clone's published figures: latency by psync, 4 KiB; IOPS by libaio, 4 KiB, depth 32; MB/s by libaio,
256 KiB, depth 32. Reads of the clones come from the disk, and reads of the snapshot from the fast leg of the mirror.
`
	hydratedText = `The same jobs, with all regions hydrated.
`
	sweepText = `Hydrated, 4 KiB regions, MB/s. Of the sizes from 4 KiB to 1 MiB, the smallest, the largest and 64 KiB are measured.
`
	hydrationText = `512 MiB without any users, from the first read of the source to the last byte in the destination. The source's own rate is that
of fio's sequential reads. For dm-clone, the best setting that was found counts.
`
	besideText = `Readers read unhydrated regions of 4 KiB in random order. The writer writes whole regions, one at a time, where hydration comes
last. "alone" is without hydration. "gentle" is a threshold and a batch of 16 regions, and a rate of 12 MiB/s divided by S, which
is also kept beside users.
`
	startText = `Sparse files on tmpfs, from the start of the command to the answer of the first read. The memory is the daemon's at that moment.
`
	costText = `Nanoseconds of CPU time for a request, which are instructions. They cover all that the machine does for the request, fio's part
included.
`
	repeatText = `
## How to repeat

` + "```console" + `
make bench          # everything: kernels 6.18 and 7.3, S=4 and S=1; writes this document
make bench-quick    # what the goals judge, measured once, S=4 on 6.18: prints the goals
make bench-native   # on this machine instead of in a guest, by its own clock; it needs root and the ublk driver
` + "```" + `

The measurements are the tests of ` + "`internal/devicetest`" + ` whose names begin with TestBench...; ` + "`internal/bench`" + ` judges them. To
run one of them alone: ` + "`BENCH=1 BENCH_S=1 KERNEL=7.3 RUN=TestBenchHydration scripts/device-tests`" + `. CI runs TestBenchCounts, which
fails when a request on a hydrated clone costs 5 % more or less than it did.
`

	directIntroduction = `# Benchmarks of direct extents, fsync and fast devices

A clone with a device-mapper layer (` + "`add --dm`" + `) leads what is durably hydrated straight to its destination. These
measurements show what that gives, beside dm-clone, the raw device, a clone without a layer, and one whose layer leads all to the
daemon. Only ` + "`make bench`" + ` and ` + "`scripts/bench direct`" + ` write this document, in the same guests and on the same devices as
[benchmarks.md](benchmarks.md), which explains them. The SSD takes discards here, since nothing is direct on a device that does not.
`
	halvesText = `Half of each clone is hydrated. The jobs are those of dm-clone's published figures: 4 KiB by psync and by libaio at depth 32,
256 KiB by libaio at depth 32. Reads in the other half come from the disk, and writes there take whole regions of 4 KiB.
`
	besideHydrationText = `One reader at depth 1 reads the hydrated half in random order, while the other half is hydrated, and alone. All three have
hydration's defaults. dm-clone copies one region at a time with them.
`
	durableText = `Writes of 4 KiB in random order, each followed by an fsync, on an SSD with a volatile cache. dm-clone and the clone without a layer
are hydrated, and half of the direct one is. The file on ext4 has been written before.
`
	fastText = `A null_blk device without any delay, and one that takes 10 us (at S=4, 40 us) for a request and 1024 requests at a time. Half of
each clone is hydrated, and all requests are in that half. The guest has one CPU, so this is what the CPU takes for a request, and
not what several queues give together. Where nothing is direct, most of it is the second pass through the block layer, io_uring and
ublk. Where it is, the limit is that of device-mapper's one pass.
`
	directRepeatText = `
## How to repeat

` + "```console" + `
scripts/bench direct   # this document alone: kernels 6.18 and 7.3, S=4 and S=1
` + "```" + `
`
)
