package sink

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// A SiteInfo is what Matomo says of a site.
type SiteInfo struct {
	ID      int64
	Name    string // "" where the account may not read it
	Zone    string // as Matomo writes it
	Created time.Time
}

// maxSiteList bounds the Reporting API's list of sites: 100,000 of them.
const maxSiteList = 16 << 20

var (
	errNoAnswer     = errors.New("no answer from Matomo")
	errNoSiteSource = errors.New("nobody can be asked: there is neither mysql.dsn-file nor a super user's token in matomo.token-file")
	errSiteToken    = errors.New("no list of sites for the token in matomo.token-file: want a super user's, or mysql.dsn-file")
)

// ListSites gives all sites of Matomo: from its database where there is an account,
// else from the Reporting API, which wants a super user's token.
func (s *Sink) ListSites(ctx context.Context) ([]SiteInfo, error) {
	switch {
	case s.db != nil:
		return s.listFromDatabase(ctx)
	case s.cfg.Token != "":
		return s.listFromAPI(ctx)
	}
	return nil, errNoSiteSource
}

func (s *Sink) listFromDatabase(ctx context.Context) ([]SiteInfo, error) {
	sites, err := s.readSites(ctx, "name")
	if n := errorNumber(err); n == 1143 || n == 1142 { // earlier forms of deploy/grants.sql
		sites, err = s.readSites(ctx, "''")
	}
	if err != nil {
		return nil, errors.New(mysqlText(err))
	}
	return sites, nil
}

func (s *Sink) readSites(ctx context.Context, name string) ([]SiteInfo, error) {
	var out []SiteInfo
	err := s.db.query(ctx, func(rows *sql.Rows) error {
		var one SiteInfo
		var created sql.NullTime
		if err := rows.Scan(&one.ID, &one.Name, &one.Zone, &created); err != nil {
			return err
		}
		one.Created = created.Time
		out = append(out, one)
		return nil
	}, "SELECT idsite, "+name+", timezone, ts_created FROM "+s.db.table("site"))
	return out, err
}

func (s *Sink) listFromAPI(ctx context.Context) ([]SiteInfo, error) {
	if s.probe.refusedLately() {
		return nil, errSiteToken // every further question would be a failed login
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	got := s.client.ask(ctx, "SitesManager.getAllSites", s.cfg.Token, url.Values{
		"showColumns": {"idsite,name,timezone,ts_created"}, "filter_limit": {"-1"},
	}, maxSiteList)
	if got.err != nil {
		return nil, errNoAnswer
	}
	s.probe.noteAPI(got.status)
	switch {
	case got.status >= http.StatusInternalServerError:
		return nil, fmt.Errorf("the Reporting API answers %d", got.status)
	case got.status != http.StatusOK || got.truncated:
		return nil, errSiteToken
	}
	return parseSiteList(got.body)
}

// parseSiteList reads an object, or as older versions write it a list, of sites whose
// numbers may be texts.
func parseSiteList(body []byte) ([]SiteInfo, error) {
	type site struct {
		ID      flexibleNumber `json:"idsite"`
		Name    string         `json:"name"`
		Zone    string         `json:"timezone"`
		Created string         `json:"ts_created"`
	}
	var list []site
	if json.Unmarshal(body, &list) != nil {
		var byID map[string]site
		if json.Unmarshal(body, &byID) != nil || len(byID) == 0 {
			return nil, errSiteToken
		}
		for _, one := range byID {
			list = append(list, one)
		}
	}
	out := make([]SiteInfo, 0, len(list))
	for _, one := range list {
		if one.ID <= 0 {
			return nil, errNotAList
		}
		created, err := time.Parse(time.DateTime, one.Created)
		if err != nil {
			created = time.Time{} // of old; it only says which days a site cannot have
		}
		out = append(out, SiteInfo{int64(one.ID), one.Name, one.Zone, created})
	}
	if len(out) == 0 {
		return nil, errNotAList
	}
	return out, nil
}

// A flexibleNumber is a JSON number or a text of one.
type flexibleNumber int64

// UnmarshalJSON is part of [json.Unmarshaler].
func (n *flexibleNumber) UnmarshalJSON(text []byte) error {
	var number json.Number
	if err := json.Unmarshal(text, &number); err != nil {
		return err
	}
	i, err := number.Int64()
	*n = flexibleNumber(i)
	return err
}

// ForgetReports makes Matomo make the reports of a site's day, given as YYYY-MM-DD, and
// of the periods around it anew the next time it archives. It needs a token with admin
// rights on the site.
func (s *Sink) ForgetReports(ctx context.Context, site int64, day string) error {
	if s.cfg.Token == "" || s.probe.refusedLately() {
		return errors.New("there is no token that Matomo accepts")
	}
	got := s.client.ask(ctx, "CoreAdminHome.invalidateArchivedReports", s.cfg.Token, url.Values{
		"idSites": {strconv.FormatInt(site, 10)}, "dates": {day}, "period": {"day"},
	}, maxAnswerBody)
	if got.err != nil {
		return errNoAnswer
	}
	s.probe.noteAPI(got.status)
	// A refusal is an object, and a success a list of lines; where the raw data is gone
	// a warning stands before a line of success that names no day.
	var lines []string
	if got.status != http.StatusOK || json.Unmarshal(got.body, &lines) != nil {
		return errors.New("refused by Matomo: the token needs admin rights on the site")
	}
	for _, line := range lines {
		if strings.HasPrefix(line, "Success") && strings.Contains(line, day) {
			return nil
		}
	}
	return errors.New("the day was not taken by Matomo; its raw data may be deleted already")
}
