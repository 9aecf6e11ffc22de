package sink

import (
	"crypto/sha256"
	"slices"
	"strconv"
	"sync"
	"time"

	"sluice/internal/hit"
	"sluice/internal/phpform"
)

// What Matomo allows (plugins/Login/Security/BruteForceDetection.php and
// SystemSettings.php, the defaults): an address that tried more than 20 wrong
// tokens within 60 minutes is locked out until fewer are left in that time.
const (
	lockFailures = 20
	lockWindow   = time.Hour
)

const (
	// refusedFor is how long a refusal is believed: Matomo itself keeps the rights
	// on a site for 300 s (tracker_cache_file_ttl).
	refusedFor = 5 * time.Minute
	// lockedFor is how long an address counts as locked out once Matomo has said so.
	lockedFor = 5 * time.Minute
	// maxDoubts is how many hits in a row Matomo may refuse under a token before it
	// is asked again whether the token still counts.
	maxDoubts = 3

	// askPoll is how often a hit looks whether its token has been decided about, and
	// maxPolls how often at most: ten minutes. Nobody looks while nothing is sent, so
	// that an outage costs no hit its right.
	askPoll  = 200 * time.Millisecond
	maxPolls = int(10 * time.Minute / askPoll)

	// maxQuestions bounds the pairs of token and site that wait to be asked about, and
	// maxUnseen the different tokens among those of one address.
	maxQuestions = 4096
	maxUnseen    = lockFailures
	// nearby is when a question comes soon enough for any number of hits to wait.
	nearby = 5 * time.Second

	maxGoodRights    = 8192  // pairs
	maxRefusedRights = 32768 // pairs
	maxAddresses     = 8192
)

// A rightKey stands for a token, or for a token on a site. No token can be read
// from it.
type rightKey [16]byte

func keyOf(token, site string) rightKey {
	h := sha256.New()
	h.Write([]byte(site)) // no error: it is a hash
	h.Write([]byte{0})
	h.Write([]byte(token))
	return rightKey(h.Sum(nil)[:16])
}

// anySite is the site of keys that stand for a token as such.
const anySite = ""

// siteText gives a hit's idsite as Matomo is to read it. One that is no number may
// mean something to a plugin.
func siteText(it *item) string {
	switch {
	case it.Site > 0:
		return strconv.FormatInt(it.Site, 10)
	case it.Form == hit.Query:
		return phpform.Parse(it.Params).String("idsite")
	}
	return "0"
}

// An inquiry is a token whose right to a site is not known. It holds the token
// itself, for as long as it waits.
type inquiry struct {
	key, tokenKey        rightKey
	token, site, address string
	// since, if not zero, is when the hit in hand began to wait for an answer.
	since time.Time
}

// clientTokens remember what clients' tokens are good for, and who tried wrong
// ones. They decide without I/O; [Sink.askTokens] answers their questions. Memory
// is bounded, holds hashes in place of tokens, and ends with the process.
//
// A token counts for a site once Matomo has accepted it there, and is not limited
// from then on. A refusal is believed for refusedFor. Methods may be called from any
// goroutine.
type clientTokens struct {
	// Set by New. whole: Matomo looks at the token of a bulk as a whole only.
	ins   *instruments
	whole bool

	mu      sync.Mutex
	supers  recent[rightKey, *int]      // tokens of superusers; the value counts doubts
	good    recent[rightKey, *int]      // pairs
	refused recent[rightKey, time.Time] // pairs, when
	// failures are the times of wrong tokens by address, lockFailures at most.
	failures recent[string, []time.Time]
	locked   recent[string, time.Time] // addresses, until when

	questions []*inquiry // oldest first
	asked     map[rightKey]*inquiry
	unseen    map[string]map[rightKey]int // by address and token, how many of questions
	next      time.Time                   // not before then is asked again
	waking    chan struct{}               // capacity 1: there is a question

	unsure int // leased hits that wait for an answer
	most   int // of unsure, when no answer comes soon
}

// newClientTokens bounds the hits that may wait for an answer at ahead, the hits
// that are leased at most.
func newClientTokens(ahead int) *clientTokens {
	return &clientTokens{
		supers: newRecent[rightKey, *int](maxGoodRights), good: newRecent[rightKey, *int](maxGoodRights),
		refused:  newRecent[rightKey, time.Time](maxRefusedRights),
		failures: newRecent[string, []time.Time](maxAddresses), locked: newRecent[string, time.Time](maxAddresses),
		asked: map[rightKey]*inquiry{}, unseen: map[string]map[rightKey]int{}, waking: make(chan struct{}, 1),
		most: ahead / 4,
	}
}

// super reports whether a token is a superuser's, so that hits with it can share a
// batch: Matomo names to it what it refused.
func (t *clientTokens) super(token string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.supers.has(keyOf(token, anySite))
}

// unproven reports whether a hit has a token that does not count as good.
func (t *clientTokens) unproven(it *item) bool {
	if !it.group.theirs {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	q := inquiryOf(it)
	return !t.supers.has(q.tokenKey) && !t.good.has(q.key)
}

// An admission says what to do with a hit that brought a token of its own.
type admission struct {
	// refused: Matomo would not take the token, so the hit is settled as invalid and
	// not sent.
	refused bool
	// until, if not zero, is when to ask again.
	until time.Time
}

// Why a hit is settled as invalid without being sent; labels of a metric.
const (
	whyToken   = "token"   // Matomo refused its token just now
	whyAddress = "address" // too many wrong tokens came from its address
	whyUnasked = "unasked" // too much else had to be asked about
)

func refusalReasons() []string { return []string{whyToken, whyAddress, whyUnasked} }

// enlist asks about a leased hit's token ahead of its turn.
func (t *clientTokens) enlist(it *item, now time.Time) {
	if !it.group.theirs || it.doubt {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	q := inquiryOf(it)
	if _, known := t.knownLocked(q, now); known {
		return
	}
	it.unsure = now
	t.unsure++
	t.joinLocked(q)
}

// admit decides about a batch of [hit.Theirs] with one token whose turn has come. It
// does no I/O.
func (t *clientTokens) admit(batch []*item, now time.Time) admission {
	t.mu.Lock()
	defer t.mu.Unlock()
	it := batch[0]
	q := inquiryOf(it)
	q.since = it.unsure
	if len(batch) > 1 && !t.supers.has(q.tokenKey) {
		return admission{until: now.Add(askPoll)} // it was a superuser's a moment ago
	}
	why, known := t.knownLocked(q, now)
	if !known {
		far := t.next.After(now.Add(nearby))
		joined := t.joinLocked(q)
		crowd := len(t.questions) >= maxQuestions || far
		switch {
		case it.polls >= maxPolls, !joined && crowd, far && t.unsure > t.most:
			why = whyUnasked
		default:
			it.polls++
			return admission{until: now.Add(askPoll)}
		}
	}
	for _, it := range batch {
		if !it.unsure.IsZero() {
			it.unsure = time.Time{}
			t.unsure--
		}
	}
	if why != "" {
		t.ins.refusedHits[why].Inc()
	}
	return admission{refused: why != ""}
}

// knownLocked says why a hit is refused, "" when it may go, or that nothing is
// known.
func (t *clientTokens) knownLocked(q *inquiry, now time.Time) (why string, known bool) {
	if t.supers.has(q.tokenKey) || t.good.has(q.key) {
		return "", true
	}
	if at, ok := t.refused.get(q.key); ok && (now.Sub(at) < refusedFor || !q.since.IsZero() && q.since.Before(at)) {
		return whyToken, true // just now, or while the hit waited for an answer
	}
	if until, ok := t.locked.get(q.address); ok && now.Before(until) {
		return "", true // Matomo answers, and books nothing
	}
	if t.failedLocked(q.address, now) >= lockFailures {
		return whyAddress, true
	}
	return "", false
}

func inquiryOf(it *item) *inquiry {
	token, site := it.group.token, siteText(it)
	return &inquiry{
		key: keyOf(token, site), tokenKey: keyOf(token, anySite),
		token: token, site: site, address: it.Environment.ClientIP,
	}
}

// joinLocked adds a question to those that wait, and reports whether it is among
// them.
func (t *clientTokens) joinLocked(q *inquiry) bool {
	if t.asked[q.key] != nil {
		return true
	}
	tokens := t.unseen[q.address]
	if len(t.questions) >= maxQuestions || tokens[q.tokenKey] == 0 && len(tokens) >= maxUnseen {
		return false
	}
	if tokens == nil {
		tokens = map[rightKey]int{}
		t.unseen[q.address] = tokens
	}
	tokens[q.tokenKey]++
	t.questions = append(t.questions, q)
	t.asked[q.key] = q
	select {
	case t.waking <- struct{}{}:
	default:
	}
	return true
}

// failedLocked counts the wrong tokens of an address that Matomo still counts.
func (t *clientTokens) failedLocked(address string, now time.Time) int {
	times, ok := t.failures.get(address)
	if !ok {
		return 0
	}
	old := 0
	for old < len(times) && now.Sub(times[old]) >= lockWindow {
		old++
	}
	if old > 0 {
		times = slices.Delete(times, 0, old)
		t.failures.put(address, times)
	}
	return len(times)
}

// group gives the questions to ask next, most at most: the oldest of every address
// first, then every address's second, and so on, so that nobody's many questions
// keep back another's only one. It is empty when nothing has to be asked.
func (t *clientTokens) group(most int, now time.Time) []*inquiry {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropLocked(func(q *inquiry) bool {
		_, known := t.knownLocked(q, now)
		return known
	})
	type ranked struct {
		*inquiry
		rank int
	}
	list := make([]ranked, len(t.questions))
	before := map[string]int{}
	for i, q := range t.questions {
		list[i] = ranked{q, before[q.address]}
		before[q.address]++
	}
	slices.SortStableFunc(list, func(a, b ranked) int { return a.rank - b.rank })
	out := make([]*inquiry, min(most, len(list)))
	for i := range out {
		out[i] = list[i].inquiry
	}
	return out
}

// dropLocked removes questions.
func (t *clientTokens) dropLocked(drop func(*inquiry) bool) {
	t.questions = slices.DeleteFunc(t.questions, func(q *inquiry) bool {
		if !drop(q) {
			return false
		}
		delete(t.asked, q.key)
		tokens := t.unseen[q.address]
		if tokens[q.tokenKey]--; tokens[q.tokenKey] == 0 {
			delete(tokens, q.tokenKey)
		}
		if len(tokens) == 0 {
			delete(t.unseen, q.address)
		}
		return true
	})
}

// answered takes Matomo's answers.
func (t *clientTokens) answered(good, refused []*inquiry, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, q := range good {
		t.good.put(q.key, new(int))
	}
	for _, q := range refused {
		t.refused.put(q.key, now)
		t.failedLocked(q.address, now)
		times, _ := t.failures.get(q.address)
		if len(times) < lockFailures {
			t.failures.put(q.address, append(times, now))
		}
	}
	done := make(map[rightKey]bool, len(good)+len(refused))
	for _, q := range slices.Concat(good, refused) {
		done[q.key] = true
	}
	t.dropLocked(func(q *inquiry) bool { return done[q.key] })
}

// foundSuper notes that a token is a superuser's.
func (t *clientTokens) foundSuper(q *inquiry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.supers.put(q.tokenKey, new(int))
}

// lock notes that Matomo has locked an address out. What comes from there goes on
// to Matomo, which then answers as it would answer the visitor, and books nothing.
func (t *clientTokens) lock(address string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.locked.put(address, now.Add(lockedFor))
}

// after says that the next question has to wait until a time.
func (t *clientTokens) after(next time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next = next
}

// learn reads from Matomo's answer to hits with a client's token whether it still
// counts. A hit that is refused may be invalid by itself; several in a row are a
// reason to ask again.
func (t *clientTokens) learn(part []*item, v verdict) {
	if v.super {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	q := inquiryOf(part[0])
	switch {
	case v.kind == split && t.whole: // as a refused token looks then
		t.supers.delete(q.tokenKey)
		t.good.delete(q.key)
		return
	case v.kind != delivered && v.kind != partial:
		return
	case len(part) > 1:
		t.supers.delete(q.tokenKey) // Matomo did not name the invalid hits to it
		return
	}
	for key, rights := range map[rightKey]*recent[rightKey, *int]{q.tokenKey: &t.supers, q.key: &t.good} {
		doubts, ok := rights.get(key)
		switch {
		case !ok:
		case v.kind == delivered && len(v.invalid) == 0:
			*doubts = 0
		default:
			if *doubts++; *doubts >= maxDoubts {
				rights.delete(key)
			}
		}
	}
}

// A recent is a map that forgets what was not put or got for the longest time: it
// holds between max and twice as many entries once it has been full.
type recent[K comparable, V any] struct {
	max        int
	young, old map[K]V
}

func newRecent[K comparable, V any](most int) recent[K, V] {
	return recent[K, V]{max: most, young: map[K]V{}}
}

func (r *recent[K, V]) has(key K) bool {
	_, ok := r.get(key)
	return ok
}

func (r *recent[K, V]) get(key K) (V, bool) {
	v, ok := r.young[key]
	if !ok {
		if v, ok = r.old[key]; ok {
			r.put(key, v)
		}
	}
	return v, ok
}

func (r *recent[K, V]) put(key K, v V) {
	if _, ok := r.young[key]; !ok && len(r.young) >= r.max {
		r.old, r.young = r.young, make(map[K]V)
	}
	r.young[key] = v
}

func (r *recent[K, V]) delete(key K) {
	delete(r.young, key)
	delete(r.old, key)
}
