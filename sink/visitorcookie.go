package sink

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// A VisitorCookie is what is configured of the third-party cookie, as Matomo's
// use_third_party_id_cookie, cookie_name, cookie_path, cookie_domain and
// cookie_expire say it.
type VisitorCookie struct {
	On                 bool
	Name, Path, Domain string
	Expire             time.Duration
}

// expireSlack is how far the cookie's end may be from what is expected, for slow
// answers and clocks that differ.
const expireSlack = time.Hour

// checkVisitorCookie compares the third-party cookie that Matomo sets with ours.
// Matomo sets it with its JavaScript, too, where that comes through js/ and no site
// is named: a setting for single sites ([Tracker_1]) is not seen. It says nothing
// when neither sets one.
func (s *Sink) checkVisitorCookie(ctx context.Context) []Finding {
	f := Finding{Name: "cookie", Level: LevelOK}
	ours := s.cfg.VisitorCookie
	theirs, err := s.matomoCookie(ctx)
	switch {
	case err != nil && !ours.On:
		return nil // the other findings say that Matomo does not answer
	case err != nil:
		f.Level, f.Text = LevelWarn, "cannot be compared with Matomo's: "+err.Error()
	case theirs == nil && !ours.On:
		return nil
	case theirs == nil:
		f.Level, f.Text = LevelWarn, "Matomo does not set the third-party cookie; this edge does"
		f.Try = "matomo.third-party-cookie: off, unless Matomo has it on for single sites"
	case !ours.On:
		f.Level, f.Text = LevelWarn, "Matomo sets the third-party cookie; this edge does not"
		f.Try = "matomo.third-party-cookie: on"
	default:
		if wrong := ours.difference(theirs, time.Now()); wrong != "" {
			f.Level, f.Text = LevelWarn, wrong
			f.Try = "the settings matomo.cookie-* as in Matomo's [Tracker] section"
			break
		}
		f.Text = "third-party cookie as Matomo's"
	}
	return []Finding{f}
}

// matomoCookie gives the cookie that Matomo sets with js/, nil for none.
func (s *Sink) matomoCookie(ctx context.Context) (*http.Cookie, error) {
	address := strings.TrimSuffix(s.client.apiURL, "index.php") + "js/"
	ctx, cancel := context.WithTimeout(ctx, s.client.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, withoutURL(err)
	}
	resp, err := s.client.http.Do(req)
	if err != nil {
		return nil, withoutURL(err)
	}
	defer resp.Body.Close()
	// What is left unread only costs the connection.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswerBody))
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("js/ answers with status %d", resp.StatusCode)
	}
	if resp.Header.Get("P3P") == "" {
		return nil, nil
	}
	for _, c := range resp.Cookies() {
		if strings.HasPrefix(c.Value, "0%3D") {
			return c, nil
		}
	}
	return nil, nil
}

// difference says in what Matomo's cookie, received at now, is not ours, or "".
func (v VisitorCookie) difference(theirs *http.Cookie, now time.Time) string {
	domain, _, _ := strings.Cut(strings.TrimPrefix(strings.ToLower(v.Domain), "www."), ":")
	end, _ := time.Parse("Monday, 02-Jan-2006 15:04:05 MST", theirs.RawExpires) // another form differs by ages
	switch expire := end.Sub(now); {
	case theirs.Name != v.Name:
		return fmt.Sprintf("Matomo's third-party cookie is named %q, here %q", theirs.Name, v.Name)
	case theirs.Path != v.Path:
		return fmt.Sprintf("Matomo's third-party cookie has the path %q, here %q", theirs.Path, v.Path)
	case strings.TrimPrefix(theirs.Domain, ".") != domain:
		return fmt.Sprintf("Matomo's third-party cookie has the domain %q, here %q", theirs.Domain, v.Domain)
	case (expire - v.Expire).Abs() > expireSlack:
		return fmt.Sprintf("Matomo's third-party cookie lives %v, here %v", expire.Round(time.Hour), v.Expire)
	}
	return ""
}
