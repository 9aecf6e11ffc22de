package sink

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

const (
	trySuper = "create a token of a superuser, without the option for secure requests only (Administration, Personal, Security, Auth tokens)"
	// tokenlessCanary needs no token where bulks need none.
	tokenlessCanary = `{"requests":["?idsite=1&rec=0"]}`
)

// reach is what Matomo's Reporting API says that a token may do.
type reach struct {
	known   bool // the API answered
	refused bool // it does not know the token; Matomo has booked that as a failed login
	super   bool
	admin   []int64
	write   []int64
	view    []int64
}

// reachOf asks the Reporting API about our token, in bodies of forms, where Matomo
// also takes tokens for secure requests only. A wrong token is asked about once.
func (s *Sink) reachOf(ctx context.Context) reach {
	var r reach
	var err error
	if r.admin, err = s.sitesBy(ctx, "SitesManager.getSitesIdWithAdminAccess"); err != nil {
		r.refused = errors.Is(err, errUnknownToken)
		return r
	}
	r.known = true
	// The lists that fail stay empty; what they would have said is not claimed.
	if all, err := s.sitesBy(ctx, "SitesManager.getAllSitesId"); err == nil && len(all) > 0 {
		r.super = true
		return r
	}
	r.write, _ = s.sitesBy(ctx, "SitesManager.getSitesIdWithWriteAccess")
	r.view, _ = s.sitesBy(ctx, "SitesManager.getSitesIdWithViewAccess")
	return r
}

var errUnknownToken = errors.New("the token is not known to Matomo")

func (s *Sink) sitesBy(ctx context.Context, method string) ([]int64, error) {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	a := s.client.call(ctx, method, s.cfg.Token)
	if a.err == nil && a.status == http.StatusUnauthorized {
		return nil, errUnknownToken
	}
	return siteList(a)
}

// checkToken says what our token is and what that costs. A wrong token costs one
// failed login, on our own address.
func (s *Sink) checkToken(ctx context.Context) (Finding, reach) {
	f := Finding{Name: "token", Level: LevelOK}
	if s.cfg.Token == "" {
		return Finding{Name: "token", Level: LevelUnset, Text: "not set: hits are kept and nothing is sent", Try: "set matomo.token-file to a superuser's token"}, reach{}
	}
	r := s.reachOf(ctx)
	if r.refused {
		f = f.fault("Matomo does not accept it: revoked, expired or mistyped. Nothing is sent, hits are kept")
		f.Try = trySuper
		return f, r
	}
	site := int64(1)
	if usable := slices.Concat(r.admin, r.write); len(usable) > 0 {
		site = usable[0]
	}
	v := s.sendCanary(ctx, "?idsite="+strconv.FormatInt(site, 10)+"&rec=0")
	switch {
	case v.kind == delivered && v.super:
		f.Text = "superuser"
	case v.kind != delivered && v.kind != refusedToken:
		f = f.fault("could not be checked: " + v.detail)
		if s.lockedOut(ctx, v) {
			f = f.fault("Matomo answers every request that has a token with an error: too many wrong tokens came from this edge's address, which is locked out for an hour")
			f.Try = "./console login:unblock-blocked-ips in Matomo; then let wrong tokens be booked on visitors (sink.forward-header)"
		}
	case r.super:
		f = f.fault("a superuser's, but for secure requests only, which Matomo does not accept in bulk requests. Nothing is sent, hits are kept")
		f.Try = trySuper
	case r.known && len(r.admin)+len(r.write) == 0:
		f = f.fault("of a user who may only look, on " + places(r.view) + ". Nothing is sent, hits are kept")
		f.Try = trySuper
	default:
		f = s.checkWriter(ctx, f, r, site)
	}
	return f, r
}

// checkWriter says what the token of a write or admin user costs, after having seen
// that the tracker takes it.
func (s *Sink) checkWriter(ctx context.Context, f Finding, r reach, site int64) Finding {
	f.Try = trySuper
	v := s.sendCanary(ctx, "?idsite="+strconv.FormatInt(site, 10)+"&rec=0&cip="+canaryAddress)
	switch {
	case v.kind != delivered && r.known:
		return f.fault("of a write or admin user, but the tracker does not take it yet: Matomo keeps rights for five minutes")
	case v.kind != delivered:
		return f.fault("Matomo does not accept it. Nothing is sent, hits are kept")
	}
	f.Level = LevelWarn
	var parts []string
	if len(r.admin) > 0 {
		parts = append(parts, "admin on "+places(r.admin))
	}
	if len(r.write) > 0 {
		parts = append(parts, "write on "+places(r.write))
	}
	if len(parts) == 0 {
		parts = append(parts, "of a write or admin user")
	}
	f.Text = strings.Join(parts, ", ") + ", not superuser: Matomo names no hit that it refuses, so every hit travels alone, which is slow"
	if out, known := s.outOfReach(ctx, r); known && out > 0 {
		f.Text += fmt.Sprintf("; it has no right on %s, whose hits would stop all others", count(out))
	}
	return f
}

// outOfReach counts the sites on which our token has no right to write: of all
// sites where MySQL tells, else of those that the token may look at.
func (s *Sink) outOfReach(ctx context.Context, r reach) (n int, known bool) {
	if !r.known {
		return 0, false
	}
	all := r.view
	if s.db != nil {
		if sites, err := (databaseAsker{s.db}).all(ctx); err == nil {
			all = sites
		}
	}
	for _, site := range all {
		if !slices.Contains(r.admin, site) && !slices.Contains(r.write, site) {
			n++
		}
	}
	return n, true
}

// lockedOut reports whether it is the token that Matomo answers with an error.
func (s *Sink) lockedOut(ctx context.Context, v verdict) bool {
	if v.kind != split || v.reason != ReasonDown {
		return false
	}
	a := s.client.bulk(ctx, []byte(tokenlessCanary), group{}, "")
	return judge(a, 1, true).kind == delivered
}

// checkForwarding says on whom Matomo books wrong tokens of clients.
func (s *Sink) checkForwarding(ctx context.Context) Finding {
	const price = "wrong tokens of clients count against this edge, so tokens that are new to it may wait for ten minutes, and then be refused"
	f := Finding{Name: "forward", Level: LevelWarn, Try: "in Matomo's config.ini.php: proxy_client_headers[] = HTTP_" + strings.ReplaceAll(strings.ToUpper(s.client.forwardHeader), "-", "_") + " and proxy_ips[] = this edge's address"}
	believed, known := s.seenAddress(ctx)
	switch {
	case s.client.forwardHeader == "":
		f.Text, f.Try = "not set: "+price, "set sink.forward-header to one of Matomo's proxy_client_headers[]"
	case !known:
		f.Text = "Matomo does not say whether it believes " + s.client.forwardHeader + " (API.getIpFromHeader), which counts as no: " + price
	case !believed:
		f.Text = "Matomo does not believe " + s.client.forwardHeader + " from here: " + price
	default:
		return Finding{Name: "forward", Level: LevelOK, Text: "Matomo takes visitors' addresses from " + s.client.forwardHeader}
	}
	return f
}

// count gives a number of sites in words.
func count(n int) string {
	if n == 1 {
		return "1 site"
	}
	return fmt.Sprintf("%d sites", n)
}

// maxRanges is how many ranges of site numbers are written out.
const maxRanges = 5

// places names sites: their ranges where these are few, else their count.
func places(sites []int64) string {
	sites = slices.Compact(slices.Sorted(slices.Values(sites)))
	var ranges []string
	for i := 0; i < len(sites); {
		end := i
		for end+1 < len(sites) && sites[end+1] == sites[end]+1 {
			end++
		}
		one := strconv.FormatInt(sites[i], 10)
		if end > i {
			one += "-" + strconv.FormatInt(sites[end], 10)
		}
		ranges = append(ranges, one)
		i = end + 1
	}
	switch {
	case len(sites) == 1:
		return "site " + ranges[0]
	case len(ranges) == 0 || len(ranges) > maxRanges:
		return count(len(sites))
	}
	return "sites " + strings.Join(ranges, ", ")
}
