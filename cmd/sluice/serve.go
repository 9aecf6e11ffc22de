package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/VictoriaMetrics/metrics"
	"github.com/alecthomas/kong"

	"sluice/archivegate"
	"sluice/internal/admin"
	"sluice/internal/config"
	"sluice/internal/hit"
	"sluice/internal/systemd"
	"sluice/proxy"
	"sluice/proxy/assets"
	"sluice/proxy/certs"
	"sluice/queue"
	"sluice/sink"
)

type serveCommand struct {
	config.Settings
}

// Run runs the edge until it is told to stop.
func (c *serveCommand) Run(o *printer, l *config.Loader, k *kong.Context) error {
	start, err := check(l, k, &c.Settings, o.process)
	if err != nil {
		return err
	}
	return serve(o, start)
}

// An edge is everything that serve builds. Its parts meet here and nowhere else.
type edge struct {
	*printer
	settings    *config.Settings
	secrets     config.Secrets
	log         *slog.Logger
	level       *slog.LevelVar // of log
	files       int            // how many this process may open
	reloads     *reloads
	sockets     sockets
	begun       time.Time
	notify      *systemd.Notifier
	set         *metrics.Set
	queue       *queue.Queue
	sink        *sink.Sink
	certs       *certs.Keeper // nil with tls.mode off
	adminCerts  *certs.Keeper // nil without admin.cert-file
	proxy       *proxy.Server
	assets      *assets.Cache
	gate        *archivegate.Gate
	admin       *admin.Server
	adminAddr   string
	fingerprint string // of the self-signed certificate
	stopping    atomic.Bool
}

// serve builds the edge, lives through it and takes it down: settings, queue,
// private listener (live, not ready), sink, public listener, ready.
func serve(o *printer, start *reading) error {
	limitMemory(o.env, memoryLimit)
	s, level := start.settings, new(slog.LevelVar)
	level.Set(logLevel(string(s.Log.Level)))
	log := newLogger(o.stderr, string(s.Log.Format), level)
	start.warn(log)
	e := &edge{
		printer: o, settings: s, secrets: start.secrets, log: log, level: level, begun: o.now(),
		notify: systemd.NewNotifier(o.env, o.pid), set: metrics.NewSet(),
	}
	e.reloads = newReloads(start, e.begun, e.set)
	defer e.notify.Close()
	if err := e.takeSockets(); err != nil {
		return err
	}
	if err := e.openQueue(); err != nil {
		return err
	}
	err := e.build()
	if err == nil {
		err = e.live()
	}
	if errors.Is(err, errFailedDisk) || errors.Is(err, errSecondSignal) {
		// Nothing is closed: what runs still uses it, and a failed disk must not be
		// synced again. The process ends now.
		return err
	}
	pending := e.queue.Stats().Pending
	// The key is good for this run only; a stale one does no harm.
	_ = os.Remove(filepath.Join(s.DataDir, controlFile))
	if closeErr := e.queue.Close(); closeErr != nil {
		err = errors.Join(err, &failure{exitFailed, "close the queue", closeErr, ""})
	}
	log.Info("stopped; what waits is kept on disk", "pending", pending)
	return err
}

// How long a start waits for another process to leave the data directory.
const (
	lockPatience = 3 * time.Second
	lockInterval = 50 * time.Millisecond
)

// openQueue opens what is kept, and writes the control key once the directory is
// known to be ours.
func (e *edge) openQueue() error {
	dir := e.settings.DataDir
	if err := makeDataDir(dir); err != nil {
		return &failure{exitFailed, "data directory " + dir, err, "chown it to the user that Sluice runs as, or another --data-dir"}
	}
	keys, err := queueKeys(e.secrets.QueueKeys)
	if err != nil {
		return err
	}
	options := queue.Options{
		Dir: dir, Reserve: int64(e.settings.Queue.Reserve), MaxSize: int64(e.settings.Queue.MaxSize), DeadRetention: e.settings.Queue.DeadRetention,
		RememberImports: e.settings.Import.Remember, Keys: keys,
		Log: e.log.With("part", "queue"), Metrics: e.set,
	}
	q, err := queue.Open(options)
	for deadline := time.Now().Add(lockPatience); errors.Is(err, queue.ErrLocked) && time.Now().Before(deadline); q, err = queue.Open(options) {
		// A process that was killed a moment ago may still be ending.
		time.Sleep(lockInterval)
	}
	if err != nil {
		return queueFailure(dir, err)
	}
	e.queue = q
	return nil
}

// makeDataDir makes the data directory, and makes that durable, so that hits cannot
// be lost with the directory that holds them.
func makeDataDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for parent := filepath.Dir(filepath.Clean(dir)); ; parent = filepath.Dir(parent) {
		f, err := os.Open(parent)
		if errors.Is(err, os.ErrPermission) {
			return nil // Not ours, so it was there before.
		}
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
		if parent == filepath.Dir(parent) {
			return nil
		}
	}
}

// queueFailure says what to do about a queue that cannot be opened.
func queueFailure(dir string, err error) error {
	what, try := "data directory "+dir, ""
	switch {
	case errors.Is(err, queue.ErrKey):
		return &failure{exitSettings, what, err, missingKey}
	case errors.Is(err, queue.ErrLocked):
		try = "sluice queue stats, to see the Sluice that uses it; or another --data-dir"
	case errors.Is(err, queue.ErrNewerFormat):
		try = "the newer version of Sluice again; docs/operations.md, \"Downgrade\""
	case errors.Is(err, queue.ErrNoSpace):
		try = "free some disk space; delete nothing in the data directory"
	case errors.Is(err, queue.ErrDamaged):
		try = "sluice queue verify --data-dir " + dir + "; copy the directory before anything else"
	}
	return &failure{exitFailed, what, err, try}
}

// build makes the parts; nothing runs yet, but the private address is bound.
func (e *edge) build() error {
	key, err := writeControlKey(e.settings.DataDir)
	if err != nil {
		return &failure{exitFailed, "data directory " + e.settings.DataDir, err, ""}
	}
	c := sinkConfig(e.settings, e.secrets, e.queue)
	c.Pause, c.KeepPause = keptPause(e.settings.DataDir, e.log), keepPause(e.settings.DataDir)
	if e.sink, err = sink.New(c, e.queue, e.log, e.set); err != nil {
		return &failure{exitSettings, "settings", err, "sluice check"}
	}
	if err := e.buildAssets(); err != nil {
		return err
	}
	if err := e.buildProxy(); err != nil {
		return err
	}
	if err := e.buildGate(); err != nil {
		return err
	}
	return e.buildAdmin(key)
}

// sinkConfig translates the settings; q is nil where nothing is fed.
func sinkConfig(s *config.Settings, secrets config.Secrets, q *queue.Queue) sink.Config {
	c := sink.Config{
		Endpoint: s.Matomo.URL.String() + "/matomo.php",
		Token:    secrets.MatomoToken.Reveal(),
		DSN:      secrets.MySQLDSN.Reveal(), ReaderDSN: secrets.ReaderDSN.Reveal(), TablesPrefix: s.MySQL.TablesPrefix,
		Lanes: s.Sink.Lanes, BatchHits: s.Sink.BatchHits, BatchBytes: int(s.Sink.BatchBytes), OnUnknown: string(s.Sink.OnUnknown), ForwardHeader: s.Sink.ForwardHeader,
		BulkRequiresAuth: s.Matomo.BulkAuth == "on", AddressMask: string(s.Matomo.AddressMask),
		VisitorCookie: sink.VisitorCookie{
			On: s.Matomo.ThirdParty == "on", Name: s.Matomo.CookieVisitor, Path: s.Matomo.CookiePath, Domain: s.Matomo.CookieDomain, Expire: s.Matomo.CookieExpire,
		},
		RequestTimeout: s.Sink.RequestTimeout, ServerLimit: s.Sink.ServerLimit, Grace: s.Shutdown.Grace, ProbeInterval: s.Sink.ProbeInterval,
	}
	if q != nil {
		c.Pending = func() int64 { return q.Stats().Pending }
	}
	return c
}

func (e *edge) buildProxy() error {
	s := e.settings
	e.files = raiseFiles(e.log)
	connections := capConnections(s.Proxy.MaxConnections, e.files, s.Proxy.UpstreamConnections)
	if connections < s.Proxy.MaxConnections {
		e.log.Info("the limit on open files lowers the number of connections", "connections", connections, "files", e.files)
	}
	if err := e.openCertificates(); err != nil {
		return err
	}
	tunables := proxyTunables(s, connections)
	https, http := string(s.Listen), string(s.ListenHTTP)
	if s.TLS.Mode == "off" && https != "" {
		https, http = "", https
	}
	cfg := proxy.Config{
		Listen: https, ListenHTTP: http, Listeners: e.sockets.public,
		Upstream: s.Matomo.URL.URL, Trusted: tunables.Trusted, MaskAddress: s.Proxy.MaskAddress, CollapseRetries: s.Proxy.CollapseRetries == "on", Expose: string(s.Proxy.Expose),
		Limits: tunables.Limits, RateLimits: tunables.RateLimits, AccessLog: tunables.AccessLog, ProxyProtocol: tunables.ProxyProtocol, ResponseHeaders: tunables.ResponseHeaders, HSTS: tunables.HSTS,
		CookieIgnoreName: s.Matomo.CookieIgnore, CookieVisitorName: s.Matomo.CookieVisitor,
		ThirdPartyCookie: s.Matomo.ThirdParty == "on", CookiePath: s.Matomo.CookiePath, CookieDomain: s.Matomo.CookieDomain,
		CookieExpire: s.Matomo.CookieExpire, DoNotTrack: s.Matomo.DoNotTrack == "on", KeepHeaders: keptHeaders(s.Sink.HeaderGroups),
		CustomTimestampAge: s.Matomo.CustomTimestamp, BulkRequiresAuth: s.Matomo.BulkAuth == "on", OpenTracking: s.Matomo.TrackingAuth == "off",
		Host: string(s.Proxy.Host), HTTP: string(s.Proxy.HTTP), HTTPSPort: s.Proxy.HTTPSPort, AddressHeader: s.Sink.ForwardHeader,
		Way: proxy.Upstream{
			ConnectTimeout: s.Proxy.ConnectTimeout, ResponseTimeout: s.Proxy.ResponseTimeout, StallTimeout: s.Proxy.StallTimeout, Connections: s.Proxy.UpstreamConnections,
		},
		ShutdownDelay: s.Shutdown.Delay, Grace: s.Shutdown.Grace,
		PassThrough: passThrough(e.sink.Healthy, e.queue.PendingOf), Ready: e.queue.Ready, Files: publicFiles{e.assets},
	}
	if e.certs != nil {
		cfg.TLSConfig, cfg.AnswerChallenge = e.certs.TLSConfig(), e.certs.AnswerChallenge
	}
	var err error
	if e.proxy, err = proxy.New(cfg, appender{e.queue}, sites{e.sink.Sites()}, e.log, e.set); err != nil {
		return &failure{exitSettings, "settings", err, "sluice check"}
	}
	return nil
}

// proxyTunables translates what of the proxy can be changed while it runs.
func proxyTunables(s *config.Settings, connections int) proxy.Tunables {
	p := &s.Proxy
	perAddress := p.PerAddress
	if perAddress == 0 {
		perAddress = -1 // zero is the default there
	}
	return proxy.Tunables{
		Trusted: prefixes(p.Trusted),
		Limits: proxy.Limits{
			HeaderBytes: int(p.MaxHeader), BodyBytes: int64(p.MaxBody), BodyMemory: int64(p.BodyMemory),
			Connections: connections, PerAddress: perAddress, HeaderTimeout: p.HeaderTimeout, BodyTimeout: p.BodyTimeout,
			WriteTimeout: p.WriteTimeout, IdleTimeout: p.IdleTimeout, ProxyTimeout: p.ForwardTimeout,
		},
		RateLimits: proxy.RateLimits{
			PerAddress: p.AddressRate, AddressBurst: p.AddressBurst, PerSite: p.SiteRate, SiteBurst: p.SiteBurst, Exempt: prefixes(p.RateExempt),
		},
		AccessLog: proxy.AccessLog{
			Format: string(p.AccessLog), File: p.AccessLogFile, MaskAddress: p.AccessLogMask, Query: p.AccessLogQuery == "on",
		},
		ProxyProtocol: prefixes(p.ProtocolTrusted), ResponseHeaders: responseHeaders(p.ResponseHeaders), HSTS: p.HSTS,
	}
}

func prefixes(list []config.Prefix) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, p := range list {
		out[i] = netip.Prefix(p)
	}
	return out
}

func responseHeaders(list []config.ResponseHeader) []proxy.Header {
	out := make([]proxy.Header, len(list))
	for i, h := range list {
		out[i] = proxy.Header(h)
	}
	return out
}

// keptHeaders puts names in the order in which the proxy wants them.
func keptHeaders(names []config.HeaderName) []string {
	kept := make([]string, len(names))
	for i, name := range names {
		kept[i] = string(name)
	}
	slices.Sort(kept)
	return slices.Compact(kept)
}

// passThrough allows a hit straight to Matomo, past a full queue: only while Matomo
// takes hits and none of the site waits, since it would overtake those.
func passThrough(healthy func() bool, pendingOf func(site int64) int64) func(site int64) bool {
	return func(site int64) bool { return healthy() && pendingOf(site) == 0 }
}

func (e *edge) buildAdmin(key string) error {
	s := e.settings
	hosts := make([]string, len(s.AdminHosts))
	for i, h := range s.AdminHosts {
		hosts[i] = string(h)
	}
	room := queueRoom{e.queue}
	adminTLS, err := e.openAdminCertificates()
	if err != nil {
		return &failure{exitSettings, "settings", err, "sluice check"}
	}
	e.admin, err = admin.New(admin.Config{
		Listen: string(s.Admin.Listen), Hosts: hosts, Token: e.secrets.AdminToken.Reveal(), Control: key, Listener: e.sockets.admin, TLS: adminTLS,
		Edge: s.EdgeID, Version: build().Version,
	}, admin.Parts{
		Queue: room, Reader: room, DeadLetters: room, Importer: room, LogImports: logImportRoom{e.queue, e.proxy, e.sink, e.set}, Drain: drainRoom{e.sink}, Assets: assetRoom{e.assets}, Reloader: reloader{e}, Gate: e.gate.Handler(), Checks: e.checks(),
		Metrics: []*metrics.Set{e.set}, Log: e.log.With("part", "admin"),
	})
	if err != nil {
		return err
	}
	addr, err := e.admin.Listen()
	if err != nil {
		return &failure{exitFailed, "start", err, "another --admin.listen"}
	}
	e.adminAddr = addr.String()
	return nil
}

// checks is what readiness depends on: being able to store, and not stopping.
// Matomo is not among them.
func (e *edge) checks() []admin.Check {
	return []admin.Check{
		{Name: "queue", Probe: e.queue.Ready},
		{Name: "listener", Probe: func() error {
			select {
			case <-e.proxy.Started():
				return nil
			default:
				return errors.New("the public listener is not open yet")
			}
		}},
		{Name: "running", Probe: func() error {
			if e.stopping.Load() {
				return errors.New("the edge is stopping")
			}
			return nil
		}},
	}
}

// statusInterval is how often systemd gets a new sentence.
const statusInterval = 10 * time.Second

// live runs the parts until something ends them.
func (e *edge) live() error {
	interval := statusInterval
	if watchdog := e.notify.Interval(); watchdog > 0 {
		interval = min(interval, watchdog)
	}
	l := &life{
		parts: []part{
			{name: "admin", run: e.admin.Run},
			{name: "sink", run: e.sink.Run},
			{name: "gate", run: e.gate.Run},
			{name: "assets", run: e.assets.Run},
			{name: "memory", run: e.followConnections},
			{name: "proxy", run: e.proxy.Run, up: e.proxy.Started()},
		},
		signals: e.signals, failed: e.queue.Failed(), ready: e.ready, interval: interval,
		stopping: func(why string) {
			e.stopping.Store(true)
			e.notify.Stopping("stopping: " + why)
			e.log.Info("stopping", "why", why, "delay", e.settings.Shutdown.Delay, "grace", e.settings.Shutdown.Grace)
		},
		hangup: func() { _, _, _ = e.reload("SIGHUP") }, // what is wrong stands in the log
		beat: func() {
			e.notify.Alive()
			e.notify.Status(e.sentence())
		},
	}
	if e.certs != nil {
		// Last, since an authority looks for answers on the public listener.
		l.parts = append(l.parts, part{name: "certificates", run: e.certs.Run})
	}
	err := l.live()
	switch {
	case errors.Is(err, errFailedDisk):
		e.stopping.Store(true)
		e.notify.Stopping("the disk failed")
		e.log.Error("the disk failed; stopping at once, what was acknowledged is kept", "err", e.queue.Err())
		return &failure{exitFailed, "data directory " + e.settings.DataDir, errors.Join(err, e.queue.Err()), "docs/operations.md, \"SluiceSyncFailed\""}
	case errors.Is(err, errSecondSignal):
		e.log.Warn("stopping at once", "err", err)
		return &failure{exitFailed, "stop", err, ""}
	case errors.Is(err, queue.ErrKey):
		return queueFailure(e.settings.DataDir, err)
	case err != nil:
		return &failure{exitFailed, "stopped", err, ""}
	}
	return nil
}

// sentence is what "systemctl status" shows.
func (e *edge) sentence() string {
	st, drain := e.queue.Stats(), e.sink.Status()
	text := string(drain.State)
	if drain.Ends != "" {
		text += fmt.Sprintf(" (%s), ends %s", drain.Reason, drain.Ends)
	}
	text += fmt.Sprintf("; %s hits waiting", number(st.Pending))
	if st.OldestReceivedAt != 0 {
		text += ", the oldest for " + span(e.now().Sub(time.Unix(0, st.OldestReceivedAt)))
	}
	return text
}

// appender gives the queue to the proxy. It marks the error after which hits may be
// on disk all the same, so that they go no other way.
type appender struct{ *queue.Queue }

// Append is part of [proxy.Appender].
func (a appender) Append(ctx context.Context, sets ...*hit.RequestSet) error {
	err := a.Queue.Append(ctx, sets...)
	if errors.Is(err, queue.ErrStopped) {
		return uncertainError{err}
	}
	return err
}

// An uncertainError says that hits may have been stored although they were not
// acknowledged.
type uncertainError struct{ error }

// Uncertain is what [proxy.Appender] asks for.
func (uncertainError) Uncertain() bool { return true }

// Unwrap gives the queue's own error.
func (e uncertainError) Unwrap() error { return e.error }

// sites gives what the sink knows of sites to the proxy.
type sites struct{ *sink.Sites }

// Lookup is part of [proxy.Sites].
func (s sites) Lookup(ctx context.Context, site int64) proxy.SiteAnswer {
	switch s.Sites.Lookup(ctx, site) {
	case sink.SiteExists:
		return proxy.SiteExists
	case sink.SiteAbsent:
		return proxy.SiteAbsent
	}
	return proxy.SiteUnknown
}

// tryDSN reads the account on MySQL without asking anybody.
func tryDSN(s *config.Settings, secrets config.Secrets) error {
	_, err := sink.New(sinkConfig(s, secrets, nil), nil, slog.New(slog.DiscardHandler), metrics.NewSet())
	return err
}

// askAround asks Matomo and MySQL.
func askAround(ctx context.Context, s *config.Settings, secrets config.Secrets) ([]finding, error) {
	if s.Matomo.URL.URL == nil {
		return nil, errNoURL
	}
	snk, err := sink.New(sinkConfig(s, secrets, nil), nil, slog.New(slog.DiscardHandler), metrics.NewSet())
	if err != nil {
		return nil, err
	}
	subjects := map[string]string{"matomo": s.Matomo.URL.String(), "cookie": s.Matomo.CookieVisitor, "token": s.Matomo.TokenFile, "mysql": s.MySQL.DSNFile}
	var findings []finding
	for _, f := range snk.Check(ctx) {
		findings = append(findings, finding{f.Name, subjects[f.Name], string(f.Level), f.Text, strings.TrimSpace(f.Try)})
	}
	return ordered(append(findings, checkSites(ctx, snk))), nil
}
