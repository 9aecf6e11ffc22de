# make run URL=https://stats.example.org   the edge in front of a Matomo, on embedded defaults
# make test                                everything, as CI does; installs what is missing (root, Debian)
# make lint                                everything that is checked without running
# make bench                               speed beside nginx, one table; BENCH="-quick" for a minute
# make fuzz FUZZTIME=1m                    every fuzz target for a while

URL ?= http://127.0.0.1:8080
FUZZTIME ?= 10s
BENCH ?=
# One package at a time: tests of crashes and of speed of answers do not share two
# processors well.
# The crash tests run for minutes as processes of their own; the race detector sees
# the same code in the queue's tests and makes them ten times as slow.
TESTFLAGS ?= -race -shuffle=on -p 1 -timeout 10m

.PHONY: build run test lint bench fuzz

build:
	CGO_ENABLED=0 go build -trimpath -o bin/sluice ./cmd/sluice

run:
	go run ./cmd/sluice serve --matomo.url=$(URL)

test:
	@.ci/needs test
	@go test $(TESTFLAGS) $$(go list ./... | grep -v /crashtest$$)
	@go test -shuffle=on -timeout 10m ./queue/crashtest

lint:
	test -z "$$(gofmt -l .)"
	go vet ./...
	go tool staticcheck ./...
	.ci/imports
	.ci/lengths
	.ci/modules

bench:
	@.ci/needs bench
	go run ./internal/testkit/bench $(BENCH)

fuzz:
	.ci/fuzz $(FUZZTIME)
