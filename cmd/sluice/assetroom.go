package main

import (
	"context"
	"errors"
	"net/url"
	"path/filepath"

	"sluice/internal/admin"
	"sluice/internal/config"
	"sluice/proxy"
	"sluice/proxy/assets"
)

// assetsDir is the directory of the copies of Matomo's files, in the data directory.
const assetsDir = "assets"

// buildAssets makes what keeps Matomo's files, and reads what is kept.
func (e *edge) buildAssets() error {
	s := e.settings
	var err error
	e.assets, err = assets.New(assets.Config{
		Dir: filepath.Join(s.DataDir, assetsDir), Origin: assetOrigin(s.Assets.Origin.URL, s.Matomo.URL.URL), Off: s.Assets.Cache == "off",
		Tunables: assetTunables(s),
	}, e.log, e.set)
	if err != nil {
		return &failure{exitSettings, "settings", err, "sluice check"}
	}
	e.assets.Load()
	return nil
}

// assetTunables translates what of the copies can be changed while they are served.
func assetTunables(s *config.Settings) assets.Tunables {
	return assets.Tunables{Revalidate: s.Assets.Revalidate, MaxStale: s.Assets.MaxStale, MaxSize: int64(s.Assets.MaxSize)}
}

// assetOrigin is whose files are served.
func assetOrigin(named, matomo *url.URL) *url.URL {
	if named != nil {
		return named
	}
	return matomo
}

// publicFiles gives the copies to the proxy.
type publicFiles struct{ *assets.Cache }

// Named is part of [proxy.Files].
func (publicFiles) Named(path []byte) bool { return assets.Names(path) }

// Wire is part of [proxy.Files].
func (f publicFiles) Wire(q proxy.FileQuery) (b []byte, status int) {
	return f.Cache.Wire(assets.Query(q))
}

// assetRoom gives the copies to the private listener.
type assetRoom struct{ *assets.Cache }

// List is part of [admin.Assets].
func (r assetRoom) List() []admin.Asset {
	list := r.Cache.List()
	shown := make([]admin.Asset, len(list))
	for i, a := range list {
		shown[i] = admin.Asset{
			Path: a.Path, Kind: a.Kind, Hash: a.Hash, Bytes: a.Bytes, Smallest: a.Smallest, Encodings: a.Encodings, Fetched: a.Fetched,
			Stale: a.Stale, Live: a.Live, Previous: a.Previous, Pinned: a.Pinned,
		}
		if !a.Checked.IsZero() {
			shown[i].Checked = &a.Checked
		}
		if !a.Asked.IsZero() {
			shown[i].Asked = &a.Asked
		}
	}
	return shown
}

// Purge is part of [admin.Assets].
func (r assetRoom) Purge(ctx context.Context, path string) ([]admin.PurgedAsset, error) {
	list, err := r.Cache.Purge(ctx, path)
	shown := make([]admin.PurgedAsset, len(list))
	for i, p := range list {
		shown[i] = admin.PurgedAsset{Path: p.Path, Outcome: p.Outcome, Hash: p.Hash}
	}
	return shown, assetError(err)
}

// Pin is part of [admin.Assets].
func (r assetRoom) Pin(path, version string) (hash string, err error) {
	hash, err = r.Cache.Pin(path, version)
	return hash, assetError(err)
}

// Unpin is part of [admin.Assets].
func (r assetRoom) Unpin(path string) error { return assetError(r.Cache.Unpin(path)) }

// assetError marks the errors that are about what was asked for.
func assetError(err error) error {
	if errors.Is(err, assets.ErrNoCopy) || errors.Is(err, assets.ErrNoVersion) || errors.Is(err, assets.ErrOff) {
		return errors.Join(admin.ErrNoAsset, err)
	}
	return err
}
