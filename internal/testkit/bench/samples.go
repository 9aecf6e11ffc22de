package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"sluice/internal/hit"
)

// host is the Host header of every request, the same for both servers.
const host = "stats.example.org"

// A sample is one real hit.
type sample struct {
	Path           string
	Query          string // of the URL, or the body of a POST
	UserAgent      string
	AcceptLanguage string
	Referer        string
	Site           int64
}

// loadSamples reads hits, one JSON object a line.
func loadSamples(path string) ([]sample, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read hits (run from the project's root): %w", err)
	}
	var list []sample
	for line := range bytes.Lines(text) {
		s, err := decodeSample(line)
		if err != nil {
			return nil, fmt.Errorf("%s line %d: %w", path, len(list)+1, err)
		}
		list = append(list, s)
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s holds no hits", path)
	}
	return list, nil
}

func decodeSample(line []byte) (sample, error) {
	var in struct {
		Path, Query, Body string
		Headers           map[string]string
	}
	if err := json.Unmarshal(line, &in); err != nil {
		return sample{}, err
	}
	s := sample{
		Path: in.Path, Query: in.Query,
		UserAgent: in.Headers["User-Agent"], AcceptLanguage: in.Headers["Accept-Language"], Referer: in.Headers["Referer"],
	}
	if s.Query == "" {
		s.Query = in.Body
	}
	values, err := url.ParseQuery(s.Query)
	if err != nil {
		return sample{}, errors.New("its query cannot be read")
	}
	if s.Site, err = strconv.ParseInt(values.Get("idsite"), 10, 64); err != nil {
		return sample{}, errors.New("its idsite is not a number")
	}
	return s, nil
}

// request gives the bytes of the hit as a GET request on a connection that stays
// open.
func (s *sample) request() []byte {
	return fmt.Appendf(nil, "GET %s?%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: %s\r\nAccept-Language: %s\r\nReferer: %s\r\n\r\n",
		s.Path, s.Query, host, s.UserAgent, s.AcceptLanguage, s.Referer)
}

// requests gives the bytes of all.
func requests(list []sample) [][]byte {
	out := make([][]byte, len(list))
	for i := range list {
		out[i] = list[i].request()
	}
	return out
}

// set gives the hit as the proxy would hand it to the queue at a time in Unix
// nanoseconds, with values of rng's for the parameters that differ in every hit.
// Without that a large block would be the same few hits over and over, and
// compress as no real one does.
func (s *sample) set(at int64, rng *rand.Rand) *hit.RequestSet {
	const second = 1e9
	return &hit.RequestSet{
		ReceivedAt: at,
		Environment: hit.Environment{
			ClientIP:  fmt.Sprintf("%d.%d.%d.%d", 1+rng.IntN(223), rng.IntN(256), rng.IntN(256), rng.IntN(256)),
			UserAgent: s.UserAgent, AcceptLanguage: s.AcceptLanguage, Referer: s.Referer,
		},
		Hits: []hit.Hit{{Form: hit.Query, Rights: hit.Ours, Params: s.vary(rng), Site: s.Site, At: at / second}},
	}
}

// own are the parameters of the tracker that differ from hit to hit: random
// numbers, visitor, page view, time of day, and what the browser measured.
var own = []string{"r", "_id", "pv_id", "h", "m", "s", "pf_net", "pf_srv", "pf_tfr", "pf_dm1"}

// vary gives the query with other values of the same shape for [own].
func (s *sample) vary(rng *rand.Rand) []byte {
	query := []byte(s.Query)
	start := 0
	for pair := range strings.SplitSeq(s.Query, "&") {
		name, value, _ := strings.Cut(pair, "=")
		if slices.Contains(own, name) {
			from := start + len(pair) - len(value)
			for i := range value {
				query[from+i] = sameKind(query[from+i], rng)
			}
		}
		start += len(pair) + 1
	}
	return query
}

// sameKind gives another digit for a digit and another letter for a letter, those
// of hexadecimal numbers among themselves. Whether the hour of the day is one does
// not matter to anything that is measured.
func sameKind(c byte, rng *rand.Rand) byte {
	const digits, hex, letters = "0123456789", "abcdef", "ghijklmnopqrstuvwxyz"
	switch {
	case '0' <= c && c <= '9':
		return digits[rng.IntN(len(digits))]
	case 'a' <= c && c <= 'f':
		return hex[rng.IntN(len(hex))]
	case 'g' <= c && c <= 'z':
		return letters[rng.IntN(len(letters))]
	}
	return c
}
