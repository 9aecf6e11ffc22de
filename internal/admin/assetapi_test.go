package admin

import (
	"context"
	"errors"
	"testing"
)

// fakeAssets knows one path.
type fakeAssets struct{}

func (fakeAssets) List() []Asset { return []Asset{{Path: "/matomo.js", Hash: "ab"}} }

func (fakeAssets) Purge(_ context.Context, path string) ([]PurgedAsset, error) {
	return []PurgedAsset{{Path: path, Outcome: "unchanged"}}, known(path)
}

func (fakeAssets) Pin(path, version string) (string, error) {
	if version == "full" {
		return "", errors.New("the disk is full")
	}
	return "ab", known(path)
}

func (fakeAssets) Unpin(path string) error { return known(path) }

func known(path string) error {
	if path == "" || path == "/matomo.js" {
		return nil
	}
	return errors.Join(ErrNoAsset, errors.New("no copy"))
}

func TestAssetOrders(t *testing.T) {
	s := newServer(t, newWorld(), Config{Token: token})
	s.parts.Assets = fakeAssets{}
	for _, tt := range []struct {
		name, method, path, body, key string
		want                          int
	}{
		{"listing needs the token", "GET", "", "", "", 401},
		{"listing", "GET", "", "", token, 200},
		{"purging needs the token", "POST", "/purge", `{"all":true}`, "", 401},
		{"purging all", "POST", "/purge", `{"all":true}`, control, 200},
		{"purging one", "POST", "/purge", `{"path":"/matomo.js"}`, token, 200},
		{"purging what is not there", "POST", "/purge", `{"path":"/x.js"}`, token, 404},
		{"purging nothing", "POST", "/purge", `{}`, token, 400},
		{"purging one and all", "POST", "/purge", `{"path":"/matomo.js","all":true}`, token, 400},
		{"purging with a typing error", "POST", "/purge", `{"pth":"/matomo.js"}`, token, 400},
		{"pinning needs the token", "POST", "/pin", `{"path":"/matomo.js"}`, "", 401},
		{"pinning", "POST", "/pin", `{"path":"/matomo.js","version":"previous"}`, token, 200},
		{"pinning what is not there", "POST", "/pin", `{"path":"/x.js"}`, token, 404},
		{"pinning on a full disk", "POST", "/pin", `{"path":"/matomo.js","version":"full"}`, token, 500},
		{"unpinning needs the token", "POST", "/unpin", `{"path":"/matomo.js"}`, "", 401},
		{"unpinning", "POST", "/unpin", `{"path":"/matomo.js"}`, token, 200},
		{"unpinning what is not there", "POST", "/unpin", `{"path":"/x.js"}`, token, 404},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var header []string
			if tt.key != "" {
				header = append(header, bearer+tt.key)
			}
			if w := ask(s, tt.method, "/api/v1/assets"+tt.path, tt.body, header...); w.Code != tt.want {
				t.Errorf("got %d %s, want %d", w.Code, w.Body, tt.want)
			}
		})
	}
}
