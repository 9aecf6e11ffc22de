package sink

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	jsonType = "application/json"
	htmlType = "text/html; charset=UTF-8"
)

// TestJudge has every row of the table by which answers are read.
func TestJudge(t *testing.T) {
	ok := func(body string) *answer { return &answer{status: 200, contentType: jsonType, body: []byte(body)} }
	status := func(code int, kind, body string) *answer {
		return &answer{status: code, contentType: kind, body: []byte(body)}
	}
	tests := []struct {
		name   string
		a      *answer
		n      int
		theirs bool
		want   verdict // detail is not compared
	}{
		{"all tracked", ok(`{"status":"success","tracked":3,"invalid":0,"invalid_indices":[]}`), 3, false,
			verdict{kind: delivered, super: true}},
		{"some invalid and named", ok(`{"status":"success","tracked":1,"invalid":2,"invalid_indices":[0,2]}`), 3, false,
			verdict{kind: delivered, super: true, invalid: []int{0, 2}}},
		{"all invalid and named", ok(`{"status":"success","tracked":0,"invalid":2,"invalid_indices":[0,1]}`), 2, false,
			verdict{kind: delivered, super: true, invalid: []int{0, 1}}},
		{"spaces around the JSON", ok(" \n{\"status\":\"success\",\"tracked\":1,\"invalid\":0,\"invalid_indices\":[]}\n"), 1, false,
			verdict{kind: delivered, super: true}},
		{"list shorter than its count", ok(`{"status":"success","tracked":1,"invalid":2,"invalid_indices":[0]}`), 3, false,
			verdict{kind: unknown, super: true, reason: ReasonConfig}},
		{"list out of range", ok(`{"status":"success","tracked":2,"invalid":1,"invalid_indices":[3]}`), 3, false,
			verdict{kind: unknown, super: true, reason: ReasonConfig}},
		{"list with a repetition", ok(`{"status":"success","tracked":1,"invalid":2,"invalid_indices":[1,1]}`), 3, false,
			verdict{kind: unknown, super: true, reason: ReasonConfig}},
		{"more than was sent", ok(`{"status":"success","tracked":4,"invalid":0,"invalid_indices":[]}`), 3, false,
			verdict{kind: unknown, reason: ReasonConfig}},
		{"negative counts", ok(`{"status":"success","tracked":-1,"invalid":0,"invalid_indices":[]}`), 3, false,
			verdict{kind: unknown, reason: ReasonConfig}},
		{"nothing tracked of many", ok(`{"status":"success","tracked":0,"invalid":0}`), 3, false,
			verdict{kind: split, buried: BuriedPoison, reason: ReasonMaintenance}},
		{"nothing tracked of one", ok(`{"status":"success","tracked":0,"invalid":0,"invalid_indices":[]}`), 1, false,
			verdict{kind: split, buried: BuriedPartial, reason: ReasonMaintenance}},
		{"short sum, lock wait timeout", ok(`{"status":"success","tracked":2,"invalid":0,"invalid_indices":[]}`), 3, false,
			verdict{kind: partial, super: true}},
		{"short sum with invalid", ok(`{"status":"success","tracked":1,"invalid":1,"invalid_indices":[2]}`), 3, false,
			verdict{kind: partial, super: true, invalid: []int{2}}},
		{"no list and all invalid: token refused", ok(`{"status":"success","tracked":0,"invalid":3}`), 3, false,
			verdict{kind: refusedToken, reason: ReasonAuth}},
		{"no list and all tracked: a write token", ok(`{"status":"success","tracked":3,"invalid":0}`), 3, false,
			verdict{kind: delivered}},
		{"no list and a mixture", ok(`{"status":"success","tracked":2,"invalid":1}`), 3, false,
			verdict{kind: partial}},
		{"no list and a short sum", ok(`{"status":"success","tracked":2,"invalid":0}`), 3, false,
			verdict{kind: partial}},
		{"their token, one tracked", ok(`{"status":"success","tracked":1,"invalid":0}`), 1, true,
			verdict{kind: delivered}},
		{"their token, one invalid", ok(`{"status":"success","tracked":0,"invalid":1}`), 1, true,
			verdict{kind: delivered, invalid: []int{0}}},
		{"their token, all invalid", ok(`{"status":"success","tracked":0,"invalid":2}`), 2, true,
			verdict{kind: delivered, invalid: []int{0, 1}}},
		{"their token, a mixture", ok(`{"status":"success","tracked":1,"invalid":1}`), 2, true,
			verdict{kind: partial}},
		{"their superuser token", ok(`{"status":"success","tracked":1,"invalid":1,"invalid_indices":[0]}`), 2, true,
			verdict{kind: delivered, super: true, invalid: []int{0}}},
		{"status says error under 200", ok(`{"status":"error","tracked":1,"invalid":0}`), 3, false,
			verdict{kind: split, from: 1, pinned: true, buried: BuriedPoison, reason: ReasonDown}},
		{"error text", status(200, htmlType, "Error: there is no active transaction"), 3, false,
			verdict{kind: unknown, reason: ReasonDown}},
		{"not installed", status(200, htmlType, "As Matomo is not installed yet, the Tracking API cannot proceed and will exit without error."), 3, false,
			verdict{kind: retryWhole, reason: ReasonConfig}},
		{"login page", status(200, htmlType, "<!DOCTYPE html><html><form>"), 3, false,
			verdict{kind: retryWhole, reason: ReasonConfig}},
		{"image of a queue", status(200, "image/gif", "GIF89a\x01\x00"), 3, false,
			verdict{kind: unknown, reason: ReasonConfig}},
		{"JSON behind a PHP warning", status(200, htmlType, `<b>Warning</b>: x {"status":"success","tracked":3,"invalid":0}`), 3, false,
			verdict{kind: unknown, reason: ReasonConfig}},
		{"empty 200", status(200, htmlType, ""), 3, false,
			verdict{kind: unknown, reason: ReasonDown}},
		{"other JSON", ok(`{"ok":true}`), 3, false,
			verdict{kind: unknown, reason: ReasonDown}},
		{"counts that are texts", ok(`{"status":"success","tracked":"3","invalid":"0"}`), 3, false,
			verdict{kind: unknown, reason: ReasonConfig}},
		{"no content", status(204, htmlType, ""), 3, false,
			verdict{kind: unknown, reason: ReasonDown}},
		{"redirect", status(302, htmlType, "<html>"), 3, false,
			verdict{kind: retryWhole, reason: ReasonConfig}},
		{"permanent redirect", status(301, htmlType, ""), 3, false,
			verdict{kind: retryWhole, reason: ReasonConfig}},
		{"400 in JSON: bulk needs authentication", status(400, jsonType, `{"status":"error","tracked":0,"invalid":0}`), 3, false,
			verdict{kind: split, buried: BuriedRefused, reason: ReasonConfig}},
		{"400 with a page: not taken as bulk", status(400, htmlType, "This resource is part of Matomo."), 3, false,
			verdict{kind: split, buried: BuriedRefused, reason: ReasonConfig}},
		{"401", status(401, htmlType, ""), 3, false, verdict{kind: split, buried: BuriedRefused, reason: ReasonConfig}},
		{"403", status(403, htmlType, ""), 3, false, verdict{kind: split, buried: BuriedRefused, reason: ReasonConfig}},
		{"404", status(404, htmlType, ""), 3, false, verdict{kind: split, buried: BuriedRefused, reason: ReasonConfig}},
		{"405", status(405, htmlType, ""), 3, false, verdict{kind: split, buried: BuriedRefused, reason: ReasonConfig}},
		{"408", status(408, htmlType, ""), 3, false, verdict{kind: retryWhole, reason: ReasonOverload}},
		{"429 with a wait", &answer{status: 429, retryAfter: 7 * time.Second}, 3, false,
			verdict{kind: retryWhole, reason: ReasonOverload, wait: 7 * time.Second}},
		{"503 with a wait", &answer{status: 503, retryAfter: time.Minute}, 3, false,
			verdict{kind: retryWhole, reason: ReasonOverload, wait: time.Minute}},
		{"502", status(502, htmlType, ""), 3, false, verdict{kind: unknown, reason: ReasonDown}},
		{"504", status(504, htmlType, ""), 3, false, verdict{kind: unknown, reason: ReasonDown}},
		{"520 of a CDN", status(520, htmlType, ""), 3, false, verdict{kind: unknown, reason: ReasonDown}},
		{"413", status(413, htmlType, ""), 3, false, verdict{kind: tooLarge, buried: BuriedTooLarge}},
		{"500 in JSON, rolled back at the third", status(500, jsonType, `{"status":"error","tracked":2,"invalid":0}`), 5, false,
			verdict{kind: split, from: 2, pinned: true, buried: BuriedPoison, reason: ReasonDown}},
		{"500 in JSON with a list", status(500, jsonType, `{"status":"error","tracked":0,"invalid":0,"invalid_indices":[]}`), 5, false,
			verdict{kind: split, from: 0, pinned: true, buried: BuriedPoison, reason: ReasonDown}},
		{"500 in JSON after the last hit", status(500, jsonType, `{"status":"error","tracked":5,"invalid":0}`), 5, false,
			verdict{kind: unknown, reason: ReasonDown}},
		{"500 empty", status(500, htmlType, ""), 3, false, verdict{kind: split, buried: BuriedPoison, reason: ReasonDown}},
		{"500 with a page", status(500, htmlType, "<html>"), 3, false, verdict{kind: split, buried: BuriedPoison, reason: ReasonDown}},
		{"never sent", &answer{err: errors.New("refused")}, 3, false, verdict{kind: retryWhole, reason: ReasonDown}},
		{"cut after sending", &answer{err: errors.New("reset"), sent: true}, 3, false, verdict{kind: unknown, reason: ReasonDown}},
		{"body cut in the middle of a 200", &answer{status: 200, err: errors.New("unexpected EOF"), sent: true, body: []byte(`{"status":"success","tracked":3,"invalid":0,"invalid_indices":[]}`)}, 3, false,
			verdict{kind: unknown, reason: ReasonDown}},
		{"answer without an end", &answer{status: 200, truncated: true, body: []byte("{")}, 3, false, verdict{kind: unknown, reason: ReasonDown}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := judge(tt.a, tt.n, tt.theirs)
			if got.kind != delivered && got.detail == "" {
				t.Errorf("no detail for people")
			}
			got.detail = ""
			if !slices.Equal(got.invalid, tt.want.invalid) {
				t.Errorf("invalid = %v, want %v", got.invalid, tt.want.invalid)
			}
			got.invalid, tt.want.invalid = nil, nil
			if got.kind != tt.want.kind || got.super != tt.want.super || got.from != tt.want.from || got.pinned != tt.want.pinned ||
				got.buried != tt.want.buried || got.reason != tt.want.reason || got.wait != tt.want.wait {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// FuzzJudge checks what must hold for any answer: nothing counts as delivered
// unless the counts say so, and places stay within the request.
func FuzzJudge(f *testing.F) {
	f.Add(200, []byte(`{"status":"success","tracked":2,"invalid":1,"invalid_indices":[1]}`), 3, false)
	f.Add(200, []byte(`{"status":"success","tracked":1,"invalid":0}`), 1, true)
	f.Add(500, []byte(`{"status":"error","tracked":2,"invalid":0}`), 3, false)
	f.Add(200, []byte("Error: x"), 1, false)
	f.Fuzz(func(t *testing.T, status int, body []byte, n int, theirs bool) {
		if n < 1 || n > 10000 {
			t.Skip()
		}
		v := judge(&answer{status: status, body: body}, n, theirs)
		for _, i := range v.invalid {
			if i < 0 || i >= n {
				t.Errorf("invalid place %d of %d", i, n)
			}
		}
		if v.kind == split && (v.from < 0 || v.from >= n) {
			t.Errorf("split at %d of %d", v.from, n)
		}
		b, ok := parseBulk(body)
		if v.kind == delivered && (status != 200 || !ok || *b.Tracked+*b.Invalid != n) {
			t.Errorf("delivered by status %d and body %q for %d hits", status, body, n)
		}
		if v.kind != delivered && v.kind != partial && len(v.invalid) > 0 {
			t.Errorf("%v names invalid hits", v.kind)
		}
	})
}

func TestAnEndedRequestIsNotWaitedFor(t *testing.T) {
	tests := []struct {
		name string
		a    answer
		want bool
	}{
		{"Matomo failed in words", answer{sent: true, status: 200, body: []byte("Error: gone")}, true},
		{"a gateway whose PHP refused or died", answer{sent: true, status: 502}, true},
		{"a gateway that did not wait", answer{sent: true, status: 504}, false},
		{"a proxy's own timeout", answer{sent: true, status: 524}, false},
		{"a connection that broke", answer{sent: true, err: errors.New("reset")}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := judge(&tt.a, 3, false)
			if v.kind != unknown || v.over != tt.want {
				t.Errorf("kind %v, over %v, want unknown, %v", v.kind, v.over, tt.want)
			}
		})
	}
}

func TestDSNWithoutAnAddressIsRefusedWithoutItsPassword(t *testing.T) {
	_, err := newDatabase("sluice:geheim(db:3306)/matomo", "matomo_")
	if err == nil || strings.Contains(err.Error(), "geheim") {
		t.Errorf("newDatabase = %v, want an error without the password", err)
	}
}
