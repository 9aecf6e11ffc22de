// Package hit holds the words that all rooms of Sluice share: a hit, the
// request set that brought it, its id, and what became of it.
//
// It is plain data and a codec; it does no I/O and imports the standard library
// only. Values are not safe for concurrent change, but a [Pending] hit is never
// changed after it was leased, so many goroutines may read it.
package hit

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
)

// An ID names one hit for ever, on this edge and in a fleet: the generation of
// the store that accepted it (a random number drawn when the store was made),
// the number of its block (gapless within the generation), and its place in the
// block.
type ID struct {
	Generation uint64
	Block      uint64
	Index      uint32
}

// String gives the form used in logs, dead letters and exports, for example
// "5f3a9c1e2b7d4a60-1042-7".
func (id ID) String() string {
	return fmt.Sprintf("%016x-%d-%d", id.Generation, id.Block, id.Index)
}

// LogValue makes logs show the form of [ID.String].
func (id ID) LogValue() slog.Value { return slog.StringValue(id.String()) }

// Compare orders the ids of one generation by arrival.
func (id ID) Compare(other ID) int {
	return cmp.Or(cmp.Compare(id.Generation, other.Generation),
		cmp.Compare(id.Block, other.Block), cmp.Compare(id.Index, other.Index))
}

// ErrBadID reports a text that is not an id.
var ErrBadID = errors.New("not a hit id (want GENERATION-BLOCK-INDEX)")

// ParseID reads what [ID.String] wrote. It returns [ErrBadID] for anything else.
func ParseID(s string) (ID, error) {
	parts := strings.Split(s, "-")
	if len(parts) != 3 || len(parts[0]) != 16 {
		return ID{}, ErrBadID
	}
	generation, err1 := strconv.ParseUint(parts[0], 16, 64)
	block, err2 := strconv.ParseUint(parts[1], 10, 64)
	index, err3 := strconv.ParseUint(parts[2], 10, 32)
	if err := errors.Join(err1, err2, err3); err != nil {
		return ID{}, ErrBadID
	}
	id := ID{Generation: generation, Block: block, Index: uint32(index)}
	if id.String() != s {
		return ID{}, ErrBadID // one id has one text
	}
	return id, nil
}

// Form says how a hit's parameters were written.
type Form uint8

const (
	// Query is a query string without its question mark, in the client's own
	// bytes: of the URL, of a form, or of a string in a client's bulk.
	Query Form = iota
	// Object is the text of a JSON object out of a client's bulk, verbatim.
	Object
)

// Rights says with whose authority a hit is delivered.
type Rights uint8

const (
	// Ours is a hit that asked for nothing privileged: it travels with our
	// token, and our client address and time overrule whatever it says.
	Ours Rights = iota
	// Theirs is a hit that used a privileged parameter and brought a token: it
	// travels with that token and never with ours. It has none where Matomo is
	// known to ask for none.
	Theirs
)

// A Hit is one action as Matomo's Tracking API takes it.
type Hit struct {
	Form   Form
	Rights Rights
	// Params is the parameters as the client wrote them. For [Query] the
	// parameters of the URL precede those of the form, and a form parameter whose
	// name also stands in the URL is left out, as PHP's "$_GET + $_POST" does.
	Params []byte
	// Token is the client's own token_auth; only hits of [Theirs] have one. It is
	// never logged.
	Token string
	// Site is the number of the site under which the hit is counted; 0 when the
	// hit names none that can be read as a number.
	Site int64
	// At is the effective time in Unix seconds: when Matomo will say the hit
	// happened, after cdt and cdo have been made absolute.
	At int64
}

// An Environment is what Matomo would have read from the request besides its
// parameters. All hits of one request share it.
type Environment struct {
	// ClientIP is the visitor's address in PHP's canonical text.
	ClientIP string
	// UserAgent, AcceptLanguage and Referer are the headers' raw values, empty
	// when absent.
	UserAgent      string
	AcceptLanguage string
	Referer        string
	// ClientHints is the Sec-CH-UA headers as the JSON object that Matomo's
	// uadata parameter takes, {"HTTP_SEC_CH_UA":"…"}, or empty.
	ClientHints string
	// VisitorCookie is the visitor's id that the third-party cookie brought, 16
	// bytes, or empty. It is read in third-party cookie mode only.
	VisitorCookie string
	// Headers are the further headers that Matomo's plugins need, in a canonical
	// form: one line "name: value\n" for each that was there, names in lower case
	// and in order. Equal sets of headers have equal texts.
	Headers string
	// DoNotTrack: the request said DNT: 1 or X-Do-Not-Track: 1.
	DoNotTrack bool
	// DataSaver: the Via header named chrome-compression-proxy, which exempts
	// Google's addresses from Matomo's exclusion of bots.
	DataSaver bool
}

// A RequestSet is the hits of one HTTP request (Matomo's own term). It is the
// unit of acceptance: stored whole or not at all.
type RequestSet struct {
	// ReceivedAt is when the request was completely read, in Unix nanoseconds.
	ReceivedAt  int64
	Environment Environment
	Hits        []Hit
}

// A Pending hit is one that is durable and not settled, as a lease hands it out.
type Pending struct {
	ID          ID
	ReceivedAt  int64 // Unix nanoseconds
	Environment *Environment
	Hit
	// Uncertain is the journal's batch in which the hit was in flight when the
	// process ended, so that Matomo may or may not have it; 0 if it never was.
	Uncertain uint64
}

// Outcome is how a hit was settled.
type Outcome uint8

const (
	// Delivered: Matomo has taken the hit.
	Delivered Outcome = iota
	// Invalid: Matomo has counted the hit as invalid, as it would have done
	// without Sluice; it leaves no row and is not kept.
	Invalid
	// Dead: the hit is buried among the dead letters, with the reason.
	Dead
)

// String gives the word used in metrics and JSON.
func (o Outcome) String() string {
	switch o {
	case Delivered:
		return "delivered"
	case Invalid:
		return "invalid"
	case Dead:
		return "dead"
	}
	return "unknown"
}

// A Settlement says what became of one leased hit.
type Settlement struct {
	ID ID
	As Outcome
	// Reason, Status and Answer are kept for the dead only: a word of a closed
	// list, Matomo's HTTP status (0 if it gave none) and the first
	// [MaxAnswer] bytes of its answer.
	Reason string
	Status int
	Answer []byte
}

// MaxAnswer bounds what is kept of Matomo's answer to a dead letter, in bytes.
const MaxAnswer = 4096

// A DeadLetter is a buried hit with what is known of its end.
type DeadLetter struct {
	ID          ID
	ReceivedAt  int64 // Unix nanoseconds
	BuriedAt    int64 // Unix nanoseconds
	Environment Environment
	Hit         Hit
	Reason      string
	Status      int
	Answer      []byte
}
