package main

import (
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestTheSettingDecidesOnRetries(t *testing.T) {
	const text = "action_name=a&idsite=1&rec=1&r=834909&h=18&m=37&s=27&_id=00fdfeae8e903fd9&pv_id=cwDamt&send_image="
	for _, tt := range []struct {
		name   string
		args   []string
		stored string
	}{
		{"by default", nil, `sluice_proxy_hits_total{answer="stored"} 1`},
		{"off", []string{"--proxy.collapse-retries=off"}, `sluice_proxy_hits_total{answer="stored"} 2`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := startServer(t, t.TempDir(), nobody, tt.args...)
			resp, err := s.client.Post(s.public+"/matomo.php", "application/x-www-form-urlencoded; charset=UTF-8", strings.NewReader(text+"0"))
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if code := s.hit(text + "1"); resp.StatusCode != http.StatusNoContent || code != http.StatusOK {
				t.Errorf("answered %d and %d, want 204 and 200", resp.StatusCode, code)
			}
			resp, err = s.client.Get("http://" + s.private + "/metrics")
			if err != nil {
				t.Fatal(err)
			}
			all, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || !strings.Contains(string(all), tt.stored+"\n") {
				t.Errorf("no %s", tt.stored)
			}
		})
	}
}
