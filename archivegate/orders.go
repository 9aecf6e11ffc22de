package archivegate

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// A Hold is somebody's order that days are not complete: an import goes on that Sluice
// does not see.
type Hold struct {
	Name  string    `json:"name"`
	Who   string    `json:"who"`
	Site  int64     `json:"site,omitempty"` // 0 = all sites
	Date  *Date     `json:"date,omitempty"` // nil = all days; else it and those after it
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
}

// holds reports whether a hold is about a site's day. What waits for a day waits for
// those before it.
func (h *Hold) holds(site int64, d Date) bool {
	return (h.Site == 0 || h.Site == site) && (h.Date == nil || !d.Before(*h.Date))
}

// A Lease is somebody's right to be the only one who does something for a time.
type Lease struct {
	Name  string    `json:"name"`
	Who   string    `json:"who"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	Key   string    `json:"key"` // only its holder has it
}

// Bounds of what may be ordered.
const (
	maxOrderName = 64
	maxOrders    = 1000
	minHold      = time.Second
	maxHold      = 7 * 24 * time.Hour
	maxLease     = 24 * time.Hour
)

// ErrTaken is what [Gate.Lock] returns while somebody else has the lease.
var ErrTaken = errors.New("taken")

// orders keeps what people have ordered, over restarts. Methods may be called from any
// goroutine.
type orders struct {
	keep Keeper
	log  *slog.Logger
	now  func() time.Time

	mu     sync.Mutex // guards all below
	holds  []Hold
	leases []Lease
}

// ordersName is the file of the orders.
const ordersName = "orders.json"

type keptOrders struct {
	V      int     `json:"v"`
	Holds  []Hold  `json:"holds"`
	Leases []Lease `json:"leases"`
}

func newOrders(keep Keeper, log *slog.Logger, now func() time.Time) *orders {
	o := &orders{keep: keep, log: log, now: now}
	var kept keptOrders
	text, err := keep.Load(ordersName)
	if err == nil && text != nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil {
		// Nobody knows any more what was held, so everything is, for as long as anybody
		// could have asked.
		log.Error("the holds of the gate cannot be read; every day is held until somebody releases it", "release", lostHolds, "err", err)
		kept = keptOrders{Holds: []Hold{{Name: lostHolds, Who: "sluice", Since: now(), Until: now().Add(maxHold)}}}
	}
	o.holds, o.leases = kept.Holds, kept.Leases
	return o
}

// lostHolds is the name of the hold that stands for those that were lost.
const lostHolds = "lost-holds"

// holding gives the holds that are in force.
func (o *orders) holding(now time.Time) []Hold {
	o.mu.Lock()
	defer o.mu.Unlock()
	ended := 0
	for _, h := range o.holds {
		if !h.Until.After(now) {
			o.log.Warn("a hold was not released and has ended by its time", "hold", h.Name, "who", h.Who)
			ended++
		}
	}
	if ended > 0 {
		o.holds = slices.DeleteFunc(o.holds, func(h Hold) bool { return !h.Until.After(now) })
		if err := o.saveLocked(); err != nil {
			o.log.Warn("the end of a hold cannot be kept", "err", err)
		}
	}
	return append([]Hold{}, o.holds...)
}

// saveLocked keeps the orders.
func (o *orders) saveLocked() error {
	text, err := json.Marshal(keptOrders{V: 1, Holds: o.holds, Leases: o.leases})
	if err != nil {
		return err
	}
	return o.keep.Save(ordersName, text)
}

// setLocked changes the orders once that is kept; if it fails they are as before.
func (o *orders) setLocked(holds []Hold, leases []Lease) error {
	holdsBefore, leasesBefore := o.holds, o.leases
	o.holds, o.leases = holds, leases
	err := o.saveLocked()
	if err != nil {
		o.holds, o.leases = holdsBefore, leasesBefore
	}
	return err
}

// Hold orders that days are not complete for a time; a hold of the same name is
// replaced. It returns once the order is kept, [ErrUsage] for one that makes no sense.
func (g *Gate) Hold(h Hold, length time.Duration) (Hold, error) {
	if err := plainOrder(h.Name); err != nil {
		return Hold{}, err
	}
	if length < minHold || length > maxHold {
		return Hold{}, usage("a hold lasts from %s to %s", minHold, maxHold)
	}
	if h.Site < 0 {
		return Hold{}, usage("%d is no site", h.Site)
	}
	o := g.orders
	h.Since = o.now().UTC()
	h.Until = h.Since.Add(length)
	o.mu.Lock()
	defer o.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(o.holds), func(x Hold) bool { return x.Name == h.Name })
	if len(others) >= maxOrders {
		return Hold{}, usage("there are %d holds already", maxOrders)
	}
	if err := o.setLocked(append(others, h), o.leases); err != nil {
		return Hold{}, err
	}
	g.log.Info("days are held by order", "hold", h.Name, "who", h.Who, "until", h.Until)
	return h, nil
}

// Release ends a hold, and reports whether there was one.
func (g *Gate) Release(name, who string) (bool, error) {
	o := g.orders
	o.mu.Lock()
	defer o.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(o.holds), func(x Hold) bool { return x.Name == name })
	if len(others) == len(o.holds) {
		return false, nil
	}
	if err := o.setLocked(others, o.leases); err != nil {
		return false, err
	}
	g.log.Info("a hold is over", "hold", name, "who", who)
	return true, nil
}

// Holds gives the holds that are in force.
func (g *Gate) Holds() []Hold { return g.orders.holding(g.now()) }

// Lock gives a lease to one asker at a time. With the key of a lease that is still held
// it is made longer. It returns [ErrTaken], with the lease but without its key, while
// another has it.
func (g *Gate) Lock(name, who, key string, length time.Duration) (Lease, error) {
	if err := plainOrder(name); err != nil {
		return Lease{}, err
	}
	if length < minHold || length > maxLease {
		return Lease{}, usage("a lease lasts from %s to %s", minHold, maxLease)
	}
	o := g.orders
	now := o.now().UTC()
	o.mu.Lock()
	defer o.mu.Unlock()
	kept := slices.DeleteFunc(slices.Clone(o.leases), func(l Lease) bool { return !l.Until.After(now) })
	i := slices.IndexFunc(kept, func(l Lease) bool { return l.Name == name })
	switch {
	case i >= 0 && kept[i].Key != key:
		taken := kept[i]
		taken.Key = ""
		return taken, ErrTaken
	case i >= 0:
		kept[i].Until = now.Add(length)
	case key != "":
		// It was held with this key once, and may have been another's since.
		return Lease{}, ErrTaken
	case len(kept) >= maxOrders:
		return Lease{}, usage("there are %d leases already", maxOrders)
	default:
		i = len(kept)
		kept = append(kept, Lease{Name: name, Who: who, Since: now, Until: now.Add(length), Key: rand.Text()})
	}
	if err := o.setLocked(o.holds, kept); err != nil {
		return Lease{}, err
	}
	return kept[i], nil
}

// Unlock gives a lease back. One that is not held any more is no error.
func (g *Gate) Unlock(name, key string) error {
	o := g.orders
	o.mu.Lock()
	defer o.mu.Unlock()
	others := slices.DeleteFunc(slices.Clone(o.leases), func(l Lease) bool { return l.Name == name && l.Key == key })
	if len(others) == len(o.leases) {
		return nil
	}
	return o.setLocked(o.holds, others)
}

func plainOrder(name string) error {
	if name == "" || len(name) > maxOrderName || slices.ContainsFunc([]byte(name), func(c byte) bool {
		return c != '-' && c != '_' && c != '.' && (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z')
	}) {
		return usage("a name is 1 to %d letters, digits, dots, dashes and underscores", maxOrderName)
	}
	return nil
}
