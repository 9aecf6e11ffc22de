package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/alecthomas/kong"

	"sluice/internal/admin"
	"sluice/internal/config"
	"sluice/proxy/certs"
)

type reloadCommand struct {
	config.Client
	JSON bool `name:"json" help:"Answer as one JSON object."`
}

// Run has the running Sluice read its settings again.
func (c *reloadCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"reload", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		done, err := client.Reload(ctx, admin.ReloadOrder{Who: who(o.process)})
		if refused, ok := errors.AsType[*admin.RefusedError](err); ok && refused.Code == http.StatusUnprocessableEntity {
			return &failure{exitSettings, "reload", err, refused.Problem.Try}
		}
		if err != nil {
			return err
		}
		if c.JSON {
			return o.json(done)
		}
		if len(done.Changed) == 0 {
			o.printf("%s settings read again: nothing changed\n", o.mark(toneOK))
		} else {
			o.printf("%s settings read again, in force now: %s\n", o.mark(toneOK), strings.Join(done.Changed, ", "))
		}
		if len(done.Restart) > 0 {
			o.printf("%s these need a restart: %s\n", o.mark(toneWarn), strings.Join(done.Restart, ", "))
		}
		return nil
	})
}

// A reading is what one look at command line, environment, file and secret files gave.
type reading struct {
	settings *config.Settings
	secrets  config.Secrets
	values   []config.Value
	warnings config.Faults
	path     string // the settings file, "" for none
}

// readAgain parses the command line with which this process was started once more, and
// with it environment and file.
func readAgain(p *process) (*reading, error) {
	loader, err := config.NewLoader(p.env)
	if err != nil {
		return nil, err
	}
	var grammar commands
	parser, err := newParser(&grammar, loader, p, func(int) {})
	if err != nil {
		return nil, err
	}
	parser.Stdout, parser.Stderr = io.Discard, io.Discard
	parsed, err := parser.Parse(p.args)
	if err != nil {
		return nil, err // It was parsed once, so this does not happen.
	}
	return check(loader, parsed, &grammar.Serve.Settings, p)
}

// check completes parsed settings and reads what they name.
func check(l *config.Loader, k *kong.Context, s *config.Settings, p *process) (*reading, error) {
	s.Complete(p.env)
	secrets, faults, warnings := l.Check(k, s)
	if len(faults) > 0 {
		return nil, settingsFailure(faults, l)
	}
	return &reading{s, secrets, l.Effective(k), warnings, l.Path()}, nil
}

// warn writes what is doubtful into the log.
func (r *reading) warn(log *slog.Logger) {
	for _, w := range r.warnings {
		log.Warn("a setting is doubtful", "setting", w.Setting, "why", w.Why())
	}
}

// differences names the settings that the next reading has otherwise: those that take
// effect at once, and those that a restart is needed for. The content of a secret file
// counts as its setting.
func (r *reading) differences(next *reading) (changed, restart []string) {
	contents := map[string]bool{
		"admin.token-file":          r.secrets.AdminToken != next.secrets.AdminToken,
		"matomo.token-file":         r.secrets.MatomoToken != next.secrets.MatomoToken,
		"mysql.dsn-file":            r.secrets.MySQLDSN != next.secrets.MySQLDSN,
		"mysql.reader-dsn-file":     r.secrets.ReaderDSN != next.secrets.ReaderDSN,
		"tls.acme-eab-file":         r.secrets.ACME != next.secrets.ACME,
		"queue.encryption-key-file": !slices.Equal(r.secrets.QueueKeys, next.secrets.QueueKeys),
	}
	for i, v := range next.values {
		if v.Text == r.values[i].Text && !contents[v.Setting] {
			continue
		}
		if v.Reloads {
			changed = append(changed, v.Setting)
		} else {
			restart = append(restart, v.Setting)
		}
	}
	return changed, restart
}

// reloads is what a running edge knows of its settings' readings. Its methods may be
// called from any goroutine.
type reloads struct {
	path      string // the settings file, "" for none
	good, bad *metrics.Counter
	last      atomic.Bool  // the last reading was good
	at        atomic.Int64 // when the last good one was taken, in Unix seconds

	mu      sync.Mutex
	inForce *reading // guarded by mu; what needs a restart stays as it was at the start
}

func newReloads(start *reading, now time.Time, set *metrics.Set) *reloads {
	r := &reloads{
		path: start.path,
		good: set.NewCounter(`sluice_config_reloads_total{result="loaded"}`), bad: set.NewCounter(`sluice_config_reloads_total{result="failed"}`),
		inForce: start,
	}
	r.last.Store(true)
	r.at.Store(now.Unix())
	set.NewGauge("sluice_config_last_reload_successful", func() float64 {
		if r.last.Load() {
			return 1
		}
		return 0
	})
	set.NewGauge("sluice_config_last_reload_success_timestamp_seconds", func() float64 { return float64(r.at.Load()) })
	return r
}

// reloader lets the private listener reload.
type reloader struct{ *edge }

// Reload is part of [admin.Reloader].
func (r reloader) Reload(who string) (admin.Reloaded, error) {
	changed, restart, err := r.reload(who)
	if err != nil {
		try := "sluice check"
		if r.reloads.path != "" {
			try += " --config " + r.reloads.path
		}
		return admin.Reloaded{}, &admin.ReloadError{Why: err.Error(), Try: try}
	}
	return admin.Reloaded{Changed: changed, Restart: restart}, nil
}

// reload reads the settings again and puts into force what can be changed while the
// edge runs. After an error the old ones stay, all of them; only certificates may be
// newer, since their files are followed anyway. Only one runs at a time.
func (e *edge) reload(who string) (changed, restart []string, err error) {
	r := e.reloads
	r.mu.Lock()
	defer r.mu.Unlock()
	e.notify.Reloading()
	defer func() { e.notify.Ready(e.sentence()) }()
	changed, restart, err = e.reloadLocked()
	r.last.Store(err == nil)
	if err != nil {
		r.bad.Inc()
		e.log.Error("settings not reloaded, the old ones stay", "who", who, "err", err)
		return nil, nil, err
	}
	r.good.Inc()
	r.at.Store(e.now().Unix())
	e.log.Info("settings reloaded", "who", who, "changed", changed, "need_restart", restart)
	return changed, restart, nil
}

func (e *edge) reloadLocked() (changed, restart []string, err error) {
	next, err := readAgain(e.process)
	if err != nil {
		return nil, nil, err
	}
	// The new settings may want another private listener; this one stays until a restart.
	if a := &e.settings.Admin; next.secrets.AdminToken == "" && a.ClientCAFile == "" && !config.IsLoopback(a.Listen) {
		return nil, nil, fmt.Errorf("others can reach the private listener %s, which would be without a token: want admin.token-file until the restart", a.Listen)
	}
	for _, k := range []*certs.Keeper{e.certs, e.adminCerts} {
		if k == nil {
			continue
		}
		if err := k.Reload(); err != nil {
			return nil, nil, fmt.Errorf("certificates: %w", err)
		}
	}
	// The proxy takes all or nothing; nothing after it fails.
	s := next.settings
	if err := e.proxy.Reload(proxyTunables(s, capConnections(s.Proxy.MaxConnections, e.files, e.settings.Proxy.UpstreamConnections))); err != nil {
		return nil, nil, err
	}
	if err := e.proxy.Reopen(); err != nil {
		// The file was there a moment ago, or is the old one: lines go on into that.
		e.log.Error("access log not opened again", "err", err)
	}
	e.level.Set(logLevel(string(s.Log.Level)))
	e.admin.SetToken(next.secrets.AdminToken.Reveal())
	e.assets.Tune(assetTunables(s))
	changed, restart = e.reloads.inForce.differences(next)
	next.warn(e.log)
	e.reloads.inForce = e.reloads.inForce.with(next)
	return changed, restart, nil
}

// with gives what is in force after next was read: its values where they take effect,
// and the old ones where they do not.
func (r *reading) with(next *reading) *reading {
	inForce := *r
	inForce.values = make([]config.Value, len(r.values))
	for i, v := range r.values {
		if v.Reloads {
			v = next.values[i]
		}
		inForce.values[i] = v
	}
	inForce.secrets.AdminToken = next.secrets.AdminToken
	return &inForce
}
