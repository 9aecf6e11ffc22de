package sink

import (
	"bytes"
	"encoding/json"
	"net/http"
	"time"
)

// A kind says what a verdict means for the hits of a request.
type kind uint8

const (
	// delivered: Matomo has committed; verdict.invalid lists what it refused.
	delivered kind = iota
	// retryWhole: Matomo has recorded nothing, and that is not the hits' fault.
	retryWhole
	// unknown: Matomo may have recorded all, some or none of the hits, and may
	// still be at it.
	unknown
	// partial: Matomo has committed, but for fewer hits than it was sent, and does
	// not say which.
	partial
	// refusedToken: nothing was recorded, because the token does not count.
	refusedToken
	// split: nothing was recorded, and one of the hits may be the cause. Whether
	// it is, a canary must say.
	split
	// tooLarge: nothing was recorded, because the request was too large.
	tooLarge
)

// String gives the word used in metrics.
func (k kind) String() string { return kindNames[k] }

var kindNames = [...]string{
	delivered: "delivered", retryWhole: "retry", unknown: "unknown", partial: "partial",
	refusedToken: "auth", split: "split", tooLarge: "too-large",
}

// A verdict is what an answer means.
type verdict struct {
	kind kind
	// invalid lists the places of hits that Matomo counted as invalid, ascending.
	invalid []int
	// super: Matomo took the token for a superuser's and named the invalid hits.
	super bool
	// from is the first place that can hold the culprit of a split; pinned means
	// that Matomo stopped there, so that this one is the likeliest.
	from   int
	pinned bool
	// failed: of a split, that Matomo says 500, so that only its transaction speaks for
	// nothing being recorded.
	failed bool
	// silent: of a split, that Matomo counted no hit at all, and did not fail.
	silent bool
	// skips is how many hits a partial answer leaves out.
	skips int
	// buried is the word for which a hit is buried that ends alone with this
	// verdict.
	buried string
	// reason is what the state becomes; none leaves the state to a canary.
	reason Reason
	detail string // one clause for people; no text of the request or the answer
	// wait is what the server asked for.
	wait time.Duration
	// over: of an unknown outcome, that the request has certainly come to its end,
	// so that nothing has to be waited for.
	over bool
}

// bulkAnswer is the body of Matomo's answer to a bulk request.
type bulkAnswer struct {
	Status  string `json:"status"`
	Tracked *int   `json:"tracked"`
	Invalid *int   `json:"invalid"`
	Indices *[]int `json:"invalid_indices"`
}

// judge says what an answer means for a request of n hits that travelled with our
// token or, when theirs is set, with a client's. It is a pure function of its
// arguments: what Matomo does with a request, and how to tell from outside, is
// all here.
func judge(a *answer, n int, theirs bool) verdict {
	v := judgeAnswer(a, n, theirs)
	v.over = ended(a)
	return v
}

// ended reports whether the answer shows that PHP is done with the request. PHP
// answers at its end, and a gateway says 502 when PHP refused the request or its
// process is gone. Behind 504 and the like PHP may run on.
func ended(a *answer) bool {
	if a.err != nil {
		return false
	}
	switch a.status {
	case http.StatusOK, http.StatusNoContent, http.StatusInternalServerError, http.StatusBadGateway:
		return true
	}
	return false
}

func judgeAnswer(a *answer, n int, theirs bool) verdict {
	if a.err != nil {
		if !a.sent {
			return verdict{kind: retryWhole, reason: ReasonDown, detail: "no connection to Matomo"}
		}
		return verdict{kind: unknown, reason: ReasonDown, detail: "the connection ended before the answer was complete"}
	}
	switch {
	case a.status == http.StatusOK:
		return judgeOK(a, n, theirs)
	case a.status == http.StatusInternalServerError:
		return judgeFailure(a, n)
	case a.status >= 300 && a.status < 400:
		return verdict{kind: retryWhole, reason: ReasonConfig, detail: "Matomo's address answers with a redirect, which is never followed"}
	}
	switch a.status {
	case http.StatusBadRequest:
		if _, ok := parseBulk(a.body); ok {
			return verdict{kind: split, buried: BuriedRefused, reason: ReasonConfig, detail: "Matomo refuses the request whole (400)"}
		}
		return verdict{kind: split, buried: BuriedRefused, reason: ReasonConfig, detail: "what answers does not take bulk requests (400)"}
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return verdict{kind: retryWhole, reason: ReasonOverload, detail: "the server asks for a pause", wait: a.retryAfter}
	case http.StatusServiceUnavailable:
		return verdict{kind: retryWhole, reason: ReasonOverload, detail: "the server is not available (503)", wait: a.retryAfter}
	case http.StatusRequestEntityTooLarge:
		return verdict{kind: tooLarge, buried: BuriedTooLarge, detail: "the server takes no request of this size (413)"}
	}
	if a.status >= 400 && a.status < 500 {
		return verdict{kind: split, buried: BuriedRefused, reason: ReasonConfig, detail: "something in front of Matomo refuses the request (4xx)", wait: a.retryAfter}
	}
	// 204 belongs to send_image, which is never sent; 502 and 504 come from a proxy
	// that lost Matomo, which may still be working.
	return verdict{kind: unknown, reason: ReasonDown, detail: "the answer says nothing about the hits", wait: a.retryAfter}
}

func judgeOK(a *answer, n int, theirs bool) verdict {
	b, ok := parseBulk(a.body)
	if !ok || a.truncated {
		return judgeText(a)
	}
	if b.Status != "success" {
		return judgeFailure(a, n)
	}
	tracked, invalid := *b.Tracked, *b.Invalid
	sum := tracked + invalid
	switch {
	case tracked < 0 || invalid < 0 || sum > n:
		return verdict{kind: unknown, reason: ReasonConfig, detail: "Matomo counts more hits than it was sent"}
	case sum == 0 && n == 1:
		// Nothing is recorded while Matomo is paused; or it skipped just this hit.
		return verdict{kind: split, silent: true, buried: BuriedPartial, reason: ReasonMaintenance, detail: "Matomo records nothing (record_statistics=0?)"}
	case sum == 0:
		return verdict{kind: split, silent: true, buried: BuriedPoison, reason: ReasonMaintenance, detail: "Matomo records nothing (record_statistics=0?)"}
	}
	if b.Indices == nil {
		return judgeUnnamed(tracked, invalid, n, theirs)
	}
	indices := *b.Indices
	if !ascending(indices, n) || len(indices) != invalid {
		return verdict{kind: unknown, super: true, reason: ReasonConfig, detail: "Matomo's list of invalid hits contradicts itself"}
	}
	if sum < n {
		return verdict{kind: partial, super: true, invalid: indices, skips: n - sum, detail: "Matomo skipped hits without naming them (lock wait timeout?)"}
	}
	return verdict{kind: delivered, super: true, invalid: indices}
}

// judgeUnnamed reads an answer without invalid_indices: the token is not a
// superuser's, or not valid at all. Hits of ours always say the client's address,
// which Matomo takes from an accepted token only, so what it tracked it has
// recorded as it should.
func judgeUnnamed(tracked, invalid, n int, theirs bool) verdict {
	switch {
	case tracked == n:
		return verdict{kind: delivered}
	case invalid == n && theirs:
		v := verdict{kind: delivered, invalid: make([]int, n)}
		for i := range v.invalid {
			v.invalid[i] = i
		}
		return v
	case invalid == n:
		return verdict{kind: refusedToken, reason: ReasonAuth, detail: "Matomo does not accept the token"}
	}
	return verdict{kind: partial, detail: "Matomo refused hits without naming them: the token is not a superuser's"}
}

// judgeText reads a body that is not a bulk answer, with status 200.
func judgeText(a *answer) verdict {
	body := bytes.TrimSpace(a.body)
	switch {
	case bytes.Contains(body, []byte(`"tracked"`)):
		return verdict{kind: unknown, reason: ReasonConfig, detail: "Matomo's answer is mixed with other text (PHP's display_errors?)"}
	case bytes.HasPrefix(body, []byte("Error:")):
		return verdict{kind: unknown, reason: ReasonDown, detail: "Matomo failed while it finished the request"}
	case bytes.Contains(body, []byte("Matomo is not installed")):
		return verdict{kind: retryWhole, reason: ReasonConfig, detail: "Matomo says that it is not installed"}
	case bytes.HasPrefix(body, []byte("GIF8")):
		// Another handler took the request and may keep the hits for later.
		return verdict{kind: unknown, reason: ReasonConfig, detail: "an image answers to bulk requests (QueuedTracking?)"}
	case len(body) > 0 && (body[0] == '<' || isHTML(a.contentType)):
		return verdict{kind: retryWhole, reason: ReasonConfig, detail: "a web page answers instead of Matomo's tracker"}
	}
	return verdict{kind: unknown, reason: ReasonDown, detail: "the answer is not Matomo's"}
}

func isHTML(contentType string) bool {
	return bytes.HasPrefix(bytes.ToLower([]byte(contentType)), []byte("text/html"))
}

// judgeFailure reads an exception or a crash of Matomo. It rolls back, unless it
// counted every hit: then the commit itself may be what failed.
func judgeFailure(a *answer, n int) verdict {
	b, ok := parseBulk(a.body)
	if !ok {
		return verdict{kind: split, failed: true, buried: BuriedPoison, reason: ReasonDown, detail: "Matomo crashed (500)"}
	}
	tracked, invalid := *b.Tracked, *b.Invalid
	if tracked < 0 || invalid < 0 || tracked+invalid >= n {
		return verdict{kind: unknown, reason: ReasonDown, detail: "Matomo failed at or after the commit"}
	}
	return verdict{kind: split, failed: true, from: tracked, pinned: true, buried: BuriedPoison, reason: ReasonDown, detail: "Matomo failed and rolled back (500)"}
}

func parseBulk(body []byte) (bulkAnswer, bool) {
	var b bulkAnswer
	body = bytes.TrimSpace(body)
	if len(body) == 0 || body[0] != '{' || json.Unmarshal(body, &b) != nil {
		return b, false
	}
	return b, (b.Status == "success" || b.Status == "error") && b.Tracked != nil && b.Invalid != nil
}

// ascending reports whether indices are distinct places below n in order.
func ascending(indices []int, n int) bool {
	last := -1
	for _, i := range indices {
		if i <= last || i >= n {
			return false
		}
		last = i
	}
	return true
}
