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
# processes of their own, for minutes, and never with the detector. Packages go two at a
# time, since most tests wait as much as they compute. Those of the sink that have a
# MariaDB of their own hardly do anything else, and go four at a time. Vet is of lint.
TWICE := ./queue ./sink ./archivegate
TESTFLAGS ?= -shuffle=on -timeout 10m -vet=off -p 2

.PHONY: build run test lint bench fuzz

build:
	CGO_ENABLED=0 go build -trimpath -o bin/sluice ./cmd/sluice

run:
	go run ./cmd/sluice serve --matomo.url=$(URL)

test:
	@.ci/needs test
	@go test -race $(TESTFLAGS) $$(go list ./... | grep -vE '^sluice/(queue|sink|archivegate)(/crashtest)?$$')
	@go test -race -short -parallel 4 $(TESTFLAGS) $(TWICE)
	@go test -run '^(TestModel|TestConflictingHitsKeepTheirOrder)$$' $(TESTFLAGS) ./sink
	@go test $(TESTFLAGS) ./queue/crashtest ./queue ./archivegate

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
