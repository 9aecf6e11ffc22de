package testkit

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Version is what the fake says it is, unless SetVersion says otherwise.
const Version = "5.0.2"

// report answers the few methods of the Reporting API that an edge asks for.
func (m *Matomo) report(w http.ResponseWriter, r *http.Request) {
	st := m.snapshot()
	w.Header().Set("Date", m.now(&st).UTC().Format(http.TimeFormat))
	peer := m.peerAddress(r)
	st.blocked = st.blocked || m.lockedOut(peer, m.now(&st))
	rights, known := m.rights(r.FormValue("token_auth"))
	refuse := func(text string) {
		sendJSON(w, http.StatusUnauthorized, map[string]string{"result": "error", "message": text})
	}
	switch {
	case st.database == DatabaseDown, st.blocked && known:
		http.Error(w, "error", http.StatusInternalServerError)
		return
	case !known && r.FormValue("token_auth") != "":
		m.bookFailure(peer, m.now(&st))
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = w.Write([]byte("<!DOCTYPE html>\n<html><head><title>Error</title></head><body>unknown token</body></html>\n")) // as above
		return
	case rights.SecureOnly && r.PostFormValue("token_auth") == "":
		rights, known = Token{}, false
	}
	site, _ := strconv.ParseInt(r.FormValue("idSite"), 10, 64) // 0 is no site
	allowed := rights.Super || slices.Contains(rights.Sites, site)
	switch method := r.FormValue("method"); {
	case method == "API.getMatomoVersion" && known:
		if st.version == "" {
			http.Error(w, "database upgrade required", http.StatusServiceUnavailable)
			return
		}
		sendJSON(w, http.StatusOK, map[string]string{"value": st.version})
	case method == "API.getIpFromHeader" && known:
		sendJSON(w, http.StatusOK, map[string]string{"value": peer})
	case method == "SitesManager.getAllSitesId" && rights.Super:
		ids := make([]int64, 0, len(m.cfg.Sites))
		for _, s := range m.cfg.Sites {
			ids = append(ids, s.ID)
		}
		sendJSON(w, http.StatusOK, ids)
	case method == "SitesManager.getAllSites" && rights.Super:
		sites := map[int64]map[string]any{}
		for _, s := range m.cfg.Sites {
			sites[s.ID] = columns(describeSite(s), r.FormValue("showColumns"))
		}
		sendJSON(w, http.StatusOK, sites)
	case method == "CoreAdminHome.invalidateArchivedReports" && m.isAdmin(rights, r.FormValue("idSites")):
		dates := r.FormValue("dates")
		m.invalidate(Invalidation{Sites: r.FormValue("idSites"), Dates: dates, Period: r.FormValue("period")})
		sendJSON(w, http.StatusOK, []string{"Success. The following dates were invalidated successfully: " + strings.ReplaceAll(dates, ",", ", ")})
	case method == "SitesManager.getSitesIdWithAdminAccess" && known:
		ids := []int64{}
		if !rights.WriteOnly {
			ids = append(ids, rights.Sites...)
		}
		for _, s := range m.cfg.Sites {
			if rights.Super {
				ids = append(ids, s.ID)
			}
		}
		sendJSON(w, http.StatusOK, ids)
	case method == "SitesManager.getSitesIdWithWriteAccess" && known:
		ids := []int64{}
		if rights.WriteOnly {
			ids = append(ids, rights.Sites...)
		}
		sendJSON(w, http.StatusOK, ids)
	case method == "SitesManager.getSitesIdWithViewAccess" && known:
		sendJSON(w, http.StatusOK, append([]int64{}, rights.View...))
	case method == "SitesManager.getSiteFromId" && m.sites[site].ID == 0 && rights.Super:
		sendJSON(w, http.StatusOK, map[string]string{"result": "error", "message": "no such website"})
	case method == "SitesManager.getSiteFromId" && allowed:
		sendJSON(w, http.StatusOK, describeSite(m.sites[site]))
	case method == "Goals.getGoals" && allowed:
		goals := []map[string]any{}
		for _, id := range m.sites[site].Goals {
			goals = append(goals, map[string]any{"idsite": site, "idgoal": id, "name": "goal"})
		}
		sendJSON(w, http.StatusOK, goals)
	default:
		refuse("no access to this resource")
	}
}

// describeSite gives some of a site's columns.
func describeSite(s Site) map[string]any {
	return map[string]any{"idsite": s.ID, "name": "site " + s.Timezone,
		"timezone": s.Timezone, "ts_created": "2020-01-01 00:00:00", "type": "website"}
}

// columns leaves those of a row that showColumns names; all without it.
func columns(row map[string]any, show string) map[string]any {
	if show != "" {
		names := strings.Split(show, ",")
		maps.DeleteFunc(row, func(name string, _ any) bool { return !slices.Contains(names, name) })
	}
	return row
}

// isAdmin says whether a token has admin access to all of the listed sites.
func (m *Matomo) isAdmin(rights Token, sites string) bool {
	for text := range strings.SplitSeq(sites, ",") {
		site, err := strconv.ParseInt(text, 10, 64)
		if err != nil || m.sites[site].ID == 0 || !rights.Super && (rights.WriteOnly || !slices.Contains(rights.Sites, site)) {
			return false
		}
	}
	return true
}

// An Invalidation is one order to forget reports, as it was given.
type Invalidation struct{ Sites, Dates, Period string }

func (m *Matomo) invalidate(i Invalidation) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forgotten = append(m.forgotten, i)
}

// Invalidations gives the orders to forget reports that were carried out, in order.
func (m *Matomo) Invalidations() []Invalidation {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.forgotten)
}

func sendJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(jsonText(v)) // a client that went away is its own business
}
