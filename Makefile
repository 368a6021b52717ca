# One target a job; "make help" lists them. Settings are variables of the
# environment or of make: KERNEL, RUN, SEEDS, FUZZTIME.

SEEDS ?= 2000
FUZZTIME ?= 20000x
export KERNEL RUN BENCH SOAK

.PHONY: build package test test-full host race sim fuzz mutants vm-test pressure vm-shell vm-bench service-test service-shell bench bench-quick bench-native soak check lint demo clean help

build: ## the static binary that users get, build/ublk-clone
	mkdir -p build
	CGO_ENABLED=0 go build -tags urfave_cli_no_docs -o build/ ./cmd/...

package: ## deb and rpm, in build/packages
	scripts/package

test: ## everything that a change must pass, host and guests, with totals (what CI runs)
	scripts/test

test-full: ## the same on every kernel, with more seeds and fuzzing, and the mutants: before a release
	scripts/test full

host: ## the tests that need no guest, of both modules
	@status=0; \
	go test -v ./... || status=1; \
	go test -C internal/bench/report -v ./... || status=1; \
	exit $$status

race: ## under the race detector: queues, hydrator and committer are threads (metadata: its one test with two; a run of the simulator is one thread)
	scripts/setup
	CGO_ENABLED=1 go test -v -race ./bitmap ./clone ./cmd/... ./hydrate ./internal/... ./ublk/...
	CGO_ENABLED=1 go test -C internal/bench/report -v -race ./...
	CGO_ENABLED=1 SIM_SEEDS=100 go test -v -race -run '^TestSim' ./clone/clonetest
	CGO_ENABLED=1 go test -v -race -run TwoGoroutines ./metadata

sim: ## the core over fake disks with faults, SEEDS seeds: finds orders no device shows
	SIM_SEEDS=$(SEEDS) go test -v -timeout 2h -run '^TestSim' ./...

fuzz: ## FUZZTIME (20000x = that many runs, or 30s) for each fuzz target: decoders meet input that nobody wrote
	scripts/fuzz $(FUZZTIME)

vm-test: ## device tests in a guest: KERNEL=6.12|6.18|7.3, RUN=regexp
	scripts/device-tests

pressure: ## writes and swap on a clone in a guest with 512 MiB: KERNEL=
	scripts/memory-pressure

vm-shell: ## a shell in a guest, to look at a kernel by hand: KERNEL=
	scripts/vm shell

service-test: ## tests of the service, in guests with systemd and udev that reboot: KERNEL=, RUN=regexp
	scripts/service-tests

service-shell: ## a shell in such a guest, with disks source, dest and metadata: KERNEL=
	scripts/service-vm shell

vm-bench: ## single measurements on the counting clock: KERNEL=, RUN=regexp, BENCH_S=4|1
	BENCH=1 scripts/device-tests

bench: ## all measurements beside dm-clone, on 6.18 and 7.3, for fast and slow CPUs: writes docs/benchmarks.md; takes hours
	scripts/bench

bench-quick: ## what the goals judge, measured once on 6.18, and which are met
	scripts/bench quick

bench-native: ## the same on this machine, by its own clock: as root, where the ublk driver loads
	scripts/bench native

soak: ## everything at random, for an hour or SOAK=20m, in a guest: KERNEL=, SEED=
	scripts/soak

mutants: ## each known bug put back, which the tests must catch: what they are worth
	scripts/mutants

check: ## format, vet, static analysis: the cheapest findings first
	scripts/setup
	scripts/check

lint: ## only the static analysis, at pinned versions
	scripts/setup
	scripts/check lint

demo: ## the main job, shown: an image cloned, mounted and used while it hydrates
	scripts/demo

clean: ## removes build/; fetched kernels stay in the cache
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12
