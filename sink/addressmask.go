package sink

import (
	"context"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// AutoMask lets the sink read from Matomo's database how addresses are masked.
const AutoMask = "auto"

const (
	// maxAddressMask masks a whole address (PrivacyManager's longest mask).
	maxAddressMask = 4
	// guessedMask is used where nobody says: Matomo's own choice once its mask is
	// used for recognition. A coarser mask costs speed, a finer one could cost order.
	guessedMask = 2
	// maskInterval is how often the options are read. In between, and for as long as
	// Matomo caches them (300 s), hits of visitors that share only a masked address
	// may change places, once, when an administrator makes the mask longer.
	maskInterval = time.Minute
	maskPatience = 10 * time.Second // of the first reading, before hits are leased
)

// An addressMask is how many bytes of a visitor's address Matomo leaves out when it
// recognises visitors: 0 unless PrivacyManager's useAnonymizedIpForVisitEnrichment is
// on (plugins/CoreHome/Tracker/VisitRequestProcessor.php). Methods may be called from
// any goroutine.
type addressMask struct{ bytes atomic.Uint32 }

func (m *addressMask) get() uint8 { return uint8(m.bytes.Load()) }

func (m *addressMask) set(bytes uint8) { m.bytes.Store(uint32(bytes)) }

// learnMask reads the mask once. It changes nothing when that is not possible.
func (s *Sink) learnMask(ctx context.Context) {
	if s.cfg.AddressMask != AutoMask || s.db == nil {
		return
	}
	mask, ok := readMask(ctx, s.db)
	if !ok || mask == s.mask.get() {
		return
	}
	s.log.Info("Matomo's mask of addresses is followed in what is kept in order", "bytes", mask, "before", s.mask.get())
	s.mask.set(mask)
}

// watchMask follows the mask until ctx is done.
func (s *Sink) watchMask(ctx context.Context) {
	for s.cfg.AddressMask == AutoMask && s.db != nil && sleep(ctx, maskInterval) {
		s.learnMask(ctx)
	}
}

// viewMarker is an option that deploy/grants.sql puts into its view, to say that
// the view has the options that are read here; in lower case as [database.pairs]
// gives it.
const viewMarker = "sluice.privacy"

// readMask reads the mask from the view that the least account has, or from the
// option table. Options that are not there have PrivacyManager's defaults
// (plugins/PrivacyManager/Config.php).
func readMask(ctx context.Context, db *database) (uint8, bool) {
	const names = ` WHERE option_name = '` + viewMarker + `' OR option_name LIKE 'PrivacyManager.%'`
	options, err := db.pairs(ctx, "SELECT option_name, option_value FROM `"+db.name+"_edge`.`v_option`"+names)
	if _, whole := options[viewMarker]; err != nil || !whole {
		if options, err = db.pairs(ctx, "SELECT option_name, option_value FROM "+db.table("option")+names); err != nil {
			return 0, false
		}
	}
	return maskOf(options), true
}

// maskOf reads the mask from options by name in lower case. Where sites have
// options of their own, under longer names, the coarsest counts for all.
func maskOf(options map[string]string) uint8 {
	used, enabled, length := false, true, guessedMask
	set, longest := false, 0
	for name, value := range options {
		name, ok := strings.CutPrefix(name, "privacymanager.")
		switch {
		case !ok:
		case strings.HasPrefix(name, "useanonymizedipforvisitenrichment"):
			used = used || value != "" && value != "0"
		case name == "ipanonymizerenabled":
			enabled = enabled && value != "" && value != "0"
		case strings.HasPrefix(name, "ipaddressmasklength"):
			n, _ := strconv.Atoi(value) // PHP reads nonsense as 0, too
			set, longest = true, max(longest, n)
		}
	}
	for name, value := range options {
		if strings.HasPrefix(name, "privacymanager.ipanonymizerenabled") && value != "" && value != "0" {
			enabled = true // for a site at least
		}
	}
	if set {
		length = longest
	}
	if !used || !enabled {
		return 0
	}
	return uint8(min(max(length, 0), maxAddressMask))
}
