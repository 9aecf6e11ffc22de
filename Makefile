# make run URL=https://stats.example.org   the edge in front of a Matomo, on embedded defaults
# make test                                everything, as CI does; installs what is missing (root, Debian)
# make lint                                everything that is checked without running
# make bench                               speed beside nginx, one table; BENCH="-quick" for a minute
# make fuzz FUZZTIME=1m                    every fuzz target for a while

URL ?= http://127.0.0.1:8080
FUZZTIME ?= 10s
BENCH ?=
# Tests of a room that drain or write in models of minutes are run twice: all that there
# is without the race detector, and with it what -short leaves, which is everything in
# which goroutines meet, and the models for fewer rounds. The crash tests run as
# processes of their own, for minutes, and never with the detector. These rooms are
# tested one at a time: tests of crashes and of speed of answers do not share two
# processors well. Those of the other packages mostly wait, and go two at a time.
ALONE := ./queue ./sink ./archivegate
TESTFLAGS ?= -shuffle=on -timeout 10m

.PHONY: build run test lint bench fuzz

build:
	CGO_ENABLED=0 go build -trimpath -o bin/sluice ./cmd/sluice

run:
	go run ./cmd/sluice serve --matomo.url=$(URL)

test:
	@.ci/needs test
	@go test -race -p 2 $(TESTFLAGS) $$(go list ./... | grep -vE '^sluice/(queue|sink|archivegate)(/crashtest)?$$')
	@go test -race -short -p 1 $(TESTFLAGS) $(ALONE)
	@go test -run '^(TestModel|TestConflictingHitsKeepTheirOrder)$$' $(TESTFLAGS) ./sink
	@go test -p 1 $(TESTFLAGS) ./archivegate ./queue ./queue/crashtest

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
