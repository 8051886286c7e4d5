# Everything here works on a fresh clone with Go alone; a C compiler makes it faster
# (libzstd). Real work is in scripts/.

VERSION := $(shell git describe --always --dirty --tags 2>/dev/null || echo dev)
BUILD   := go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)"
FUZZTIME ?= 60s
SOAK ?= 1h

.PHONY: all build static test test-static race lint vuln fuzz bench bench-ingest bench-fanout bench-replay bench-vps bench-dictionary bench-smoke compat deploy-test page test-browser soak soak-kill dictionary demo run docker

all: lint test

build: ## bin/slipstream, and bin/simrelay to try it with
	$(BUILD) -o bin/slipstream ./cmd/slipstream
	$(BUILD) -o bin/simrelay ./cmd/simrelay

static: ## bin/slipstream without any shared library, as in the container image
	$(BUILD:-s=-s -linkmode external -extldflags '-static') -tags netgo,osusergo -o bin/slipstream ./cmd/slipstream

test: ## every test, in a minute or two
	go test -timeout 30m ./...

test-static: ## both copies of libzstd in one binary, linked as in the container image
	go test -tags netgo,osusergo -ldflags "-linkmode external -extldflags '-static'" ./pkg/event

race: ## the same under the race detector
	go test -race -short -timeout 30m ./...

lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l .)" || { echo "gofmt needed:"; gofmt -l .; exit 1; }
	go vet ./...
	go tool staticcheck ./...

vuln: ## known vulnerabilities in what is called, if the database of them can be reached
	scripts/vuln.sh

fuzz: ## every fuzz test for FUZZTIME
	scripts/fuzz.sh $(FUZZTIME)

bench: ## what an event costs, stage by stage
	scripts/bench.sh

bench-ingest: ## what taking in an event costs, stage by stage, beside what Jetstream v1 calls
	cd pkg/ingest && SLIPSTREAM_BENCH_INGEST=1 go test -count=1 -run '^TestBenchIngest$$'

bench-fanout: ## what consumers of all kinds cost the daemon, in twenty minutes
	scripts/bench-fanout.sh

bench-replay: ## what replaying the buffer costs, and what it does to a live consumer, in ten minutes
	scripts/bench-replay.sh

bench-vps: ## one small machine: one core, 512 MB, 500 consumers of all kinds, for SECS seconds (600)
	scripts/bench-vps.sh

bench-dictionary: ## what each dictionary makes of real events, and how fast, in a minute
	cd pkg/train && SLIPSTREAM_BENCH_DICTIONARY=1 go test -count=1 -run '^TestBenchDictionary$$'

bench-smoke: ## the benchmark scripts and the soak still run; their figures mean nothing
	FRAMES=40000 RECORDS=20 scripts/bench-ingest.sh
	SECS=3 RECORDS=20 scripts/bench-latency.sh
	scripts/bench-fanout.sh --smoke
	scripts/bench-replay.sh --smoke
	SECS=2 scripts/bench-vps.sh --smoke
	$(MAKE) soak SOAK=20s

compat: build ## what other people wrote, from their registries, against the real binary: clients, a PDS, a certificate authority
	SLIPSTREAM_COMPAT=1 go test -count=1 -parallel 4 -timeout 30m -v -run '^TestCompat$$' ./scripts/compat
	go test -tags compat -count=1 -timeout 20m ./scripts/compat/pds ./scripts/compat/acme

deploy-test: build ## what an installation needs beside the binary, with systemd, Caddy, nginx and Prometheus
	SLIPSTREAM_DEPLOY=1 go test -count=1 -timeout 15m -v ./scripts/deploy

page: ## pkg/page/dist, which is committed, from pkg/page/src; needs Node.js 20
	scripts/page.sh

test-browser: build ## the page in a real browser, and that it is what its sources give, in two minutes
	scripts/browser/run.sh

soak: ## the daemon left alone for SOAK with everything that can happen to it at once
	SLIPSTREAM_SOAK=$(SOAK) go test -count=1 -timeout 0 -v -run '^TestSoak$$' ./scripts/soak

soak-kill: ## kill -9, two hundred times at full speed
	SLIPSTREAM_TEST_KILLS=200 go test -count=1 -timeout 60m -run '^TestKill$$' ./cmd/slipstream

dictionary: ## train a new zstd dictionary, in two minutes
	scripts/train-dictionary.sh

demo: build ## simulated relay, daemon, events on the terminal; no network needed
	scripts/demo.sh

run: build ## the daemon on the live network
	bin/slipstream serve

docker: ## the container image
	docker build --build-arg VERSION=$(VERSION) -t slipstream .
