package admin

import (
	"context"
	"errors"
	"net/http"
	"time"
)

// ErrNoAsset is joined to an error of [Assets] about a path or a version that is not
// there.
var ErrNoAsset = errors.New("no such copy")

// Assets are the copies of Matomo's public files. Errors are [ErrNoAsset] joined with
// what is missing, or say that the disk failed.
type Assets interface {
	List() []Asset
	// Purge compares a file, or all with "", with Matomo's. It takes a minute at most.
	Purge(ctx context.Context, path string) ([]PurgedAsset, error)
	// Pin has a version served until Unpin: "previous", the beginning of a hash, or ""
	// for what is served now.
	Pin(path, version string) (hash string, err error)
	Unpin(path string) error
}

// AssetList is the answer of GET /api/v1/assets.
type AssetList struct {
	V      int     `json:"v"`
	Assets []Asset `json:"assets"`
}

// An Asset is one file.
type Asset struct {
	Path      string     `json:"path"`
	Kind      string     `json:"kind"`
	Hash      string     `json:"hash"`  // of what is served
	Bytes     int        `json:"bytes"` // as it is
	Smallest  int        `json:"smallest_bytes"`
	Encodings []string   `json:"encodings"`
	Fetched   time.Time  `json:"fetched_at"`
	Checked   *time.Time `json:"checked_at"` // when Matomo last confirmed it
	Asked     *time.Time `json:"asked_at"`   // when a client last wanted it
	Stale     bool       `json:"stale"`
	Live      string     `json:"live"`     // hash of what Matomo has; "" when it has none
	Previous  string     `json:"previous"` // hash of the version before
	Pinned    bool       `json:"pinned"`
}

// PurgeAssets is the body of POST /api/v1/assets/purge: a path, or all.
type PurgeAssets struct {
	Path string `json:"path,omitempty"`
	All  bool   `json:"all,omitempty"`
}

// PurgedAssets is its answer.
type PurgedAssets struct {
	V      int           `json:"v"`
	Assets []PurgedAsset `json:"assets"`
}

// A PurgedAsset is what became of one file.
type PurgedAsset struct {
	Path    string `json:"path"`
	Outcome string `json:"outcome"` // unchanged, replaced, deleted, refused, failed, unstable, unsure or absent
	Hash    string `json:"hash"`    // of what is served now
}

// PinAsset is the body of POST /api/v1/assets/pin, and without Version of unpin.
type PinAsset struct {
	Path    string `json:"path"`
	Version string `json:"version,omitempty"` // "previous", the beginning of a hash, or "" for what is served now
}

// PinnedAsset is the answer of both.
type PinnedAsset struct {
	V      int    `json:"v"`
	Path   string `json:"path"`
	Hash   string `json:"hash,omitempty"`
	Pinned bool   `json:"pinned"`
}

// routeAssets serves what the assets commands ask.
func (s *Server) routeAssets(mux *http.ServeMux) {
	if s.parts.Assets == nil {
		return
	}
	mux.HandleFunc("GET /api/v1/assets", s.reading(func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, AssetList{shapeVersion, s.parts.Assets.List()})
	}))
	mux.HandleFunc("POST /api/v1/assets/purge", s.controlling(s.purgeAssets))
	mux.HandleFunc("POST /api/v1/assets/pin", s.controlling(s.pinAsset))
	mux.HandleFunc("POST /api/v1/assets/unpin", s.controlling(s.unpinAsset))
}

func (s *Server) purgeAssets(w http.ResponseWriter, r *http.Request) {
	var order PurgeAssets
	if !readOrder(w, r, &order) {
		return
	}
	if (order.Path == "") != order.All {
		refuse(w, http.StatusBadRequest, "want either a path or all", "")
		return
	}
	done, err := s.parts.Assets.Purge(r.Context(), order.Path)
	if err != nil {
		refuseAsset(w, err)
		return
	}
	answer(w, http.StatusOK, PurgedAssets{shapeVersion, done})
}

func (s *Server) pinAsset(w http.ResponseWriter, r *http.Request) {
	var order PinAsset
	if !readOrder(w, r, &order) {
		return
	}
	hash, err := s.parts.Assets.Pin(order.Path, order.Version)
	if err != nil {
		refuseAsset(w, err)
		return
	}
	answer(w, http.StatusOK, PinnedAsset{shapeVersion, order.Path, hash, true})
}

func (s *Server) unpinAsset(w http.ResponseWriter, r *http.Request) {
	var order PinAsset
	if !readOrder(w, r, &order) {
		return
	}
	if err := s.parts.Assets.Unpin(order.Path); err != nil {
		refuseAsset(w, err)
		return
	}
	answer(w, http.StatusOK, PinnedAsset{V: shapeVersion, Path: order.Path})
}

func refuseAsset(w http.ResponseWriter, err error) {
	if errors.Is(err, ErrNoAsset) {
		refuse(w, http.StatusNotFound, err.Error(), "sluice assets ls")
		return
	}
	refuse(w, http.StatusInternalServerError, err.Error(), "")
}

// Assets lists the copies of Matomo's files.
func (c *Client) Assets(ctx context.Context) (AssetList, error) {
	var list AssetList
	err := c.object(ctx, http.MethodGet, "/api/v1/assets", nil, &list)
	return list, err
}

// PurgeAssets has copies compared with Matomo's files; it may take a minute.
func (c *Client) PurgeAssets(ctx context.Context, order PurgeAssets) (PurgedAssets, error) {
	var done PurgedAssets
	err := c.object(ctx, http.MethodPost, "/api/v1/assets/purge", order, &done)
	return done, err
}

// PinAsset has a version of a file served until it is unpinned.
func (c *Client) PinAsset(ctx context.Context, order PinAsset) (PinnedAsset, error) {
	var done PinnedAsset
	err := c.object(ctx, http.MethodPost, "/api/v1/assets/pin", order, &done)
	return done, err
}

// UnpinAsset ends that.
func (c *Client) UnpinAsset(ctx context.Context, path string) (PinnedAsset, error) {
	var done PinnedAsset
	err := c.object(ctx, http.MethodPost, "/api/v1/assets/unpin", PinAsset{Path: path}, &done)
	return done, err
}
