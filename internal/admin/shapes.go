package admin

import (
	"time"

	"sluice/internal/hit"
)

// Version of the JSON shapes; fields are only ever added within one.
const shapeVersion = 1

// Stats is what a [Queue] knows of itself, in hits and bytes.
type Stats struct {
	Accepted, Delivered, Invalid, Dead, Pending, Uncertain int64
	Difference                                             int64 // 0, or the sum is broken
	PendingBytes                                           int64
	OldestReceivedAt                                       int64 // Unix nanoseconds, 0 when nothing pends
	DiskBytes, FreeBytes, Reserve                          int64 // FreeBytes is above the reserve
	DeadKept, DeadExpired, DeadRequeued                    int64 // dead letters: there now, and left since the store was made
	DamagedBlocks, MissingBlocks                           int64
	Blocks, Shelves                                        int64
	SyncMean                                               time.Duration
	Generation                                             uint64
}

// A Counter is the sums of one site in one quarter of an hour of effective time.
type Counter struct {
	Site                               int64
	Quarter                            int64 // Unix seconds / 900
	Accepted, Delivered, Invalid, Dead int64
}

// A Report is what verifying found.
type Report struct {
	Shelves, Blocks, Hits int64 // blocks that hold something pending, and the hits in them
	Pending               int64 // of those, hits that are not settled
	Dead                  int64
	Problems              []string
}

// A PeekFilter narrows what is peeked at. Its zero value is everything.
type PeekFilter struct {
	Site  *int64
	Limit int // 0 = no limit
	After hit.ID
}

// A DeadFilter narrows which dead letters are meant; conditions are joined by and.
type DeadFilter struct {
	IDs    []hit.ID
	Site   *int64
	Reason string
	UpTo   *hit.ID
	Limit  int // 0 = no limit
}

// A Sum is the equation that always holds: accepted = delivered + invalid + dead +
// pending. Difference is what is missing; uncertain hits are among the pending.
type Sum struct {
	Accepted   int64 `json:"accepted"`
	Delivered  int64 `json:"delivered"`
	Invalid    int64 `json:"invalid"`
	Dead       int64 `json:"dead"`
	Pending    int64 `json:"pending"`
	Uncertain  int64 `json:"uncertain"`
	Difference int64 `json:"difference"`
}

// QueueStats is the answer of GET /api/v1/queue/stats. What is not known is null.
type QueueStats struct {
	V      int       `json:"v"`
	Edge   string    `json:"edge"`
	At     time.Time `json:"at"`
	Sum    Sum       `json:"sum"`
	Behind Behind    `json:"behind"`
	Pace   Pace      `json:"pace"`
	Dead   DeadStats `json:"dead_letters"`
	Disk   Disk      `json:"disk"`
	Store  Store     `json:"store"`
}

// Behind says how far Matomo is behind.
type Behind struct {
	PendingBytes     int64      `json:"pending_bytes"`
	OnTheWay         int64      `json:"on_the_way"` // pending hits that are being fed now
	OldestAt         *time.Time `json:"oldest_at"`
	OldestAgeSeconds float64    `json:"oldest_age_seconds"` // 0 when nothing waits
	EmptyAt          *time.Time `json:"empty_at"`           // null: not at this pace, or not known
}

// Pace is hits a second over the last five minutes.
type Pace struct {
	In  *float64 `json:"in_per_second"`
	Out *float64 `json:"out_per_second"`
}

// DeadStats says where the dead letters are. The expired stay among the dead of the
// sum.
type DeadStats struct {
	Kept     int64 `json:"kept"`
	Expired  int64 `json:"expired"`  // since the store was made
	Requeued int64 `json:"requeued"` // since the store was made
}

// Disk is what the queue uses and may still use.
type Disk struct {
	UsedBytes    int64    `json:"used_bytes"`
	FreeBytes    int64    `json:"free_bytes"` // above the reserve
	ReserveBytes int64    `json:"reserve_bytes"`
	RoomSeconds  *float64 `json:"room_seconds"` // how long Matomo may be away at this pace
}

// Store is the queue's inside, for support.
type Store struct {
	Generation    string  `json:"generation"`
	Shelves       int64   `json:"shelves"`
	Blocks        int64   `json:"blocks"`
	DamagedBlocks int64   `json:"damaged_blocks"`
	MissingBlocks int64   `json:"missing_blocks"`
	SyncSeconds   float64 `json:"sync_seconds"` // mean
}

// SiteDay is one line of GET /api/v1/queue/sites: the sum of one site on one UTC day
// of effective time.
type SiteDay struct {
	Site      int64  `json:"site"`
	Day       string `json:"day"` // 2006-01-02, UTC
	Accepted  int64  `json:"accepted"`
	Delivered int64  `json:"delivered"`
	Invalid   int64  `json:"invalid"`
	Dead      int64  `json:"dead"`
	Pending   int64  `json:"pending"`
}

// VerifyResult is the answer of POST /api/v1/queue/verify.
type VerifyResult struct {
	V        int      `json:"v"`
	OK       bool     `json:"ok"`
	Shelves  int64    `json:"shelves"`
	Blocks   int64    `json:"blocks"`
	Hits     int64    `json:"hits"`
	Pending  int64    `json:"pending"`
	Dead     int64    `json:"dead"`
	Problems []string `json:"problems"`
}

// Requeue is the body of POST /api/v1/queue/requeue. Without IDs it needs UpTo: an
// order never reaches what its giver has not seen.
type Requeue struct {
	Who    string   `json:"who"`
	IDs    []string `json:"ids,omitempty"`
	Site   *int64   `json:"site,omitempty"`
	Reason string   `json:"reason,omitempty"`
	UpTo   string   `json:"up_to,omitempty"`
}

// Requeued is its answer.
type Requeued struct {
	V        int `json:"v"`
	Requeued int `json:"requeued"`
}

// DeadSummary is the answer of GET /api/v1/queue/dead/summary.
type DeadSummary struct {
	V       int         `json:"v"`
	Total   int64       `json:"total"`
	Newest  string      `json:"newest,omitempty"` // id of the hit that arrived last
	Damaged int64       `json:"damaged"`          // dead letters that cannot be read
	Groups  []DeadGroup `json:"groups"`
}

// A DeadGroup is the dead letters of one reason.
type DeadGroup struct {
	Reason string    `json:"reason"`
	Count  int64     `json:"count"`
	First  time.Time `json:"first_buried_at"`
	Last   time.Time `json:"last_buried_at"`
	Sites  []int64   `json:"sites"` // at most ten
	Sample string    `json:"sample"`
}

// DrainStatus is the answer of GET /api/v1/drain and /sinkz. What is not known is null.
type DrainStatus struct {
	V         int         `json:"v"`
	State     string      `json:"state"`  // sending, holding, trying or paused
	Reason    string      `json:"reason"` // of a closed list; "" while sending
	Detail    string      `json:"detail"` // in the server's own words
	Ends      string      `json:"ends"`   // what ends the state; "" while sending
	Since     *time.Time  `json:"since"`
	NextTry   *time.Time  `json:"next_try"`
	Pause     *DrainPause `json:"pause"`
	LastHold  *DrainHold  `json:"last_hold"`
	Token     string      `json:"token"` // what kind of token ours is
	Lanes     int         `json:"lanes"` // requests in flight
	MaxLanes  int         `json:"max_lanes"`
	Batch     int         `json:"batch"` // hits that the next request may have
	MaxBatch  int         `json:"max_batch"`
	P50       float64     `json:"p50_seconds"`
	P95       float64     `json:"p95_seconds"`
	Errors    int         `json:"errors"` // requests in the last five minutes that did not deliver
	Rate      float64     `json:"hits_per_second"`
	ETA       *float64    `json:"eta_seconds"`
	Leased    int         `json:"leased"`     // hits in hand
	Uncertain int         `json:"uncertain"`  // hits that Matomo may or may not have
	Undecided int         `json:"undecided"`  // batches that stay in doubt
	Doubt     string      `json:"doubt"`      // why hits in doubt stay so, or ""
	HeldLanes int         `json:"held_lanes"` // sites that wait for a time
	Suspects  int         `json:"suspects"`   // hits that have failed alone
	Clock     *float64    `json:"clock_offset_seconds"`
	MySQL     []Probe     `json:"mysql"`              // null without an account
	ReaderLag *float64    `json:"reader_lag_seconds"` // of the server that archiving reads from
}

// A DrainPause is an order of an operator to send nothing for a time.
type DrainPause struct {
	Who   string    `json:"who"`
	Why   string    `json:"why"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// A DrainHold is a time, now over, in which nothing was sent.
type DrainHold struct {
	Reason  string    `json:"reason"`
	Detail  string    `json:"detail"`
	Since   time.Time `json:"since"`
	Seconds float64   `json:"seconds"`
}

// A Probe is one look at Matomo's database.
type Probe struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail,omitempty"`
}

// Pause is the body of POST /api/v1/drain/pause.
type Pause struct {
	Who     string  `json:"who"`
	Why     string  `json:"why"`
	Seconds float64 `json:"seconds"` // at most [MaxPause]
}

// Resume is the body of POST /api/v1/drain/resume.
type Resume struct {
	Who string `json:"who"`
}

// MaxPause bounds a pause, so that none is forgotten.
const MaxPause = 24 * time.Hour
