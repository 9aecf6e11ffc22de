package testkit

import (
	"net/http"
	"slices"
	"strconv"
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
		sendJSON(w, http.StatusOK, map[string]any{"idsite": site, "name": "site " + m.sites[site].Timezone,
			"timezone": m.sites[site].Timezone, "ts_created": "2020-01-01 00:00:00", "type": "website"})
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

func sendJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(jsonText(v)) // a client that went away is its own business
}
