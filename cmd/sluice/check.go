package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"sluice/internal/config"
	"sluice/queue"
)

type checkCommand struct {
	config.Settings
	Online bool `name:"online" help:"Ask Matomo and MySQL, too, and measure the disk."`
	List   bool `name:"list" help:"List every setting that is in force, and where it comes from."`
	JSON   bool `name:"json" help:"Answer as one JSON object; with --list as JSON lines."`
}

// Levels of a finding.
const (
	levelOK    = "ok"
	levelWarn  = "warn"
	levelFault = "fault"
	levelUnset = "unset" // not set, or not asked: never printed as if it were wrong
)

// A finding is one line of the answer.
type finding struct {
	Name    string `json:"name"`
	Subject string `json:"subject,omitempty"`
	Level   string `json:"level"`
	Text    string `json:"text"`
	Try     string `json:"try,omitempty"`
}

// checked is the answer as JSON.
type checked struct {
	V        int       `json:"v"`
	OK       bool      `json:"ok"`
	Faults   int       `json:"faults"`
	Warnings int       `json:"warnings"`
	Checks   []finding `json:"checks"`
}

// checkTimeout bounds everything that is asked over the network.
const checkTimeout = 60 * time.Second

// warnBefore is how long before its end a certificate is worth a warning, as in the
// alert.
const warnBefore = 14 * 24 * time.Hour

// Run looks at everything and prints a line for each thing. Faults are exit code 78.
func (c *checkCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	c.Complete(o.env)
	secrets, faults, warnings := l.Check(k, &c.Settings)
	if c.List {
		return c.list(o, l, k)
	}
	findings := settingsFindings(l, k, faults, warnings)
	findings = append(findings, c.disk(o), c.encryption(secrets), c.listen(secrets, o.now()))
	if len(faults) == 0 {
		findings = append(findings, c.far(ctx, o, secrets)...)
	}
	answer := checked{V: 1, Checks: findings}
	for _, f := range findings {
		switch f.Level {
		case levelFault:
			answer.Faults++
		case levelWarn:
			answer.Warnings++
		}
	}
	answer.OK = answer.Faults == 0
	if c.JSON {
		if err := o.json(answer); err != nil {
			return err
		}
	} else {
		o.findings(answer)
	}
	if !answer.OK {
		return &failure{exitSettings, "check", errSilent, ""}
	}
	return nil
}

func (c *checkCommand) list(o *printer, l *config.Loader, k *kong.Context) error {
	values := l.Effective(k)
	if c.JSON {
		for _, v := range values {
			if err := o.json(v); err != nil {
				return err
			}
		}
		return nil
	}
	rows := make([][]string, len(values))
	for i, v := range values {
		rows[i] = []string{v.Setting, v.Text, v.Source}
	}
	o.table([]string{"SETTING", "VALUE", "FROM"}, rows)
	return nil
}

// settingsFindings sums up where settings come from and names what is wrong.
func settingsFindings(l *config.Loader, k *kong.Context, faults, warnings config.Faults) []finding {
	byFlag, byEnv, byFile := 0, 0, 0
	for _, v := range l.Effective(k) {
		switch v.Source {
		case "default":
		case "flag":
			byFlag++
		case "environment":
			byEnv++
		default:
			byFile++
		}
	}
	text := fmt.Sprintf("%d set in the file, %d by environment, %d by flag, rest default", byFile, byEnv, byFlag)
	findings := []finding{{Name: "settings", Subject: l.Path(), Level: levelOK, Text: text}}
	for _, f := range faults {
		findings = append(findings, finding{Name: "settings", Subject: f.Setting, Level: levelFault, Text: f.Why()})
	}
	for _, f := range warnings {
		findings = append(findings, finding{Name: "settings", Subject: f.Setting, Level: levelWarn, Text: f.Why()})
	}
	return findings
}

// disk looks at where the queue is, or will be, kept.
func (c *checkCommand) disk(o *printer) finding {
	f := finding{Name: "disk", Subject: c.DataDir, Level: levelFault}
	dir, err := existing(c.DataDir)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		f.Text = err.Error()
		return f
	}
	defer table.Close()
	m, err := findMount(table, dir)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	free, total, err := queue.FreeSpace(dir)
	if err != nil {
		f.Text = err.Error()
		return f
	}
	reserve := cmp.Or(int64(c.Queue.Reserve), queue.DefaultReserve(total))
	return c.judgeDisk(f, m, dir, free, reserve, syncSpeed)
}

// slowSync is a mean time of a sync from which on visitors notice.
const slowSync = 50 * time.Millisecond

// judgeDisk makes one line of what is known of the disk.
func (c *checkCommand) judgeDisk(f finding, m mount, dir string, free, reserve int64,
	measure func(dir string) (mean, worst time.Duration, err error),
) finding {
	f.Level = levelOK
	parts := []string{m.kind}
	if c.Online {
		mean, worst, err := measure(dir)
		if err != nil {
			f.Level, f.Text = levelFault, err.Error()
			f.Try = "chown it to the user that Sluice runs as"
			return f
		}
		parts = append(parts, fmt.Sprintf("sync %s (max %s)", milliseconds(mean), milliseconds(worst)))
		if mean > slowSync {
			f.Level = levelWarn
			parts = append(parts, "slow: visitors wait that long for an answer")
		}
	}
	above := free - reserve
	if above > 0 {
		parts = append(parts, size(above)+" above reserve")
	} else {
		f.Level = levelFault
		parts = append(parts, fmt.Sprintf("%s free is below the reserve of %s: nothing would be accepted", size(free), size(reserve)))
		f.Try = "free some space, or lower queue.reserve"
	}
	if doubt := m.doubt(); doubt != "" {
		if f.Level == levelOK {
			f.Level = levelWarn
		}
		parts = append(parts, doubt)
	}
	f.Text = strings.Join(parts, ", ")
	return f
}

// listen looks at the certificate; the port may be in use by the Sluice that runs.
func (c *checkCommand) listen(secrets config.Secrets, now time.Time) finding {
	f := finding{Name: "listen", Subject: string(c.Listen), Level: levelOK}
	switch c.TLS.Mode {
	case "off":
		f.Text = "plain HTTP"
	case "self-signed":
		f.Text = "certificate: self-signed"
	case "files":
		f.Level, f.Text = certificate(c.TLS.CertFile, c.TLS.KeyFile, now)
	case "acme":
		f.Level, f.Text = c.authority(secrets, now)
	}
	if c.ListenHTTP != "" {
		f.Text += ", plain HTTP on " + string(c.ListenHTTP)
	}
	return f
}

func certificate(certFile, keyFile string, now time.Time) (level, text string) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return levelFault, "certificate: " + err.Error()
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	switch {
	case err != nil:
		return levelFault, "certificate: " + err.Error()
	case now.After(leaf.NotAfter):
		return levelFault, "certificate ended " + leaf.NotAfter.Format(time.DateOnly)
	case leaf.NotAfter.Sub(now) < warnBefore:
		return levelWarn, "certificate ends " + leaf.NotAfter.Format(time.DateOnly)
	default:
		return levelOK, "certificate until " + leaf.NotAfter.Format(time.DateOnly)
	}
}

// far looks at Matomo and MySQL: with --online by asking them.
func (c *checkCommand) far(ctx context.Context, o *printer, secrets config.Secrets) []finding {
	if c.Online {
		ctx, cancel := context.WithTimeout(ctx, checkTimeout)
		defer cancel()
		findings, err := askAround(ctx, &c.Settings, secrets)
		if err != nil {
			return []finding{{Name: "sink", Level: levelFault, Text: err.Error()}}
		}
		return findings
	}
	set := func(name, subject string, secret config.Secret, level, without string) finding {
		if secret == "" {
			return finding{Name: name, Level: level, Text: "not set: " + without}
		}
		return finding{Name: name, Subject: subject, Level: levelOK, Text: "set; not asked without --online"}
	}
	findings := []finding{
		{Name: "matomo", Subject: c.Matomo.URL.String(), Level: levelUnset, Text: "not asked without --online"},
		set("token", c.Matomo.TokenFile, secrets.MatomoToken, levelWarn, withoutToken),
		set("mysql", c.MySQL.DSNFile, secrets.MySQLDSN, levelUnset, withoutMySQL(c.Sink.OnUnknown)),
	}
	// A DSN that cannot be read is known without asking anybody.
	if err := tryDSN(&c.Settings, secrets); err != nil {
		findings[2].Level, findings[2].Text = levelFault, err.Error()
	}
	return findings
}

// withoutToken says what a missing token means.
const withoutToken = "hits are kept, and nothing is sent to Matomo"

// withoutMySQL says what a missing account means.
func withoutMySQL(onUnknown config.Choice) string {
	if onUnknown == "hold" {
		return "hits of unknown outcome wait for a human (sink.on-unknown: hold)"
	}
	return "hits of unknown outcome are sent again (sink.on-unknown: resend)"
}

// findings prints the answer for a human.
func (o *printer) findings(answer checked) {
	tones := map[string]tone{levelOK: toneOK, levelWarn: toneWarn, levelFault: toneBad, levelUnset: toneUnset}
	name, subject := 0, 0
	for _, f := range answer.Checks {
		name, subject = max(name, len(f.Name)), max(subject, len(f.Subject))
	}
	for _, f := range answer.Checks {
		o.printf("%-*s  %-*s  %s  %s\n", name, f.Name, subject, f.Subject, o.mark(tones[f.Level]), printable(f.Text))
		if f.Try != "" {
			o.printf("    try: %s\n", printable(f.Try))
		}
	}
	var sums []string
	for _, n := range []struct {
		count     int
		one, many string
	}{{answer.Faults, "fault", "faults"}, {answer.Warnings, "warning", "warnings"}} {
		switch n.count {
		case 0:
		case 1:
			sums = append(sums, "1 "+n.one)
		default:
			sums = append(sums, fmt.Sprintf("%d %s", n.count, n.many))
		}
	}
	if len(sums) == 0 {
		sums = append(sums, "all is well")
	}
	o.printf("%s\n", strings.Join(sums, ", "))
}

// errNoURL cannot happen behind a check of the settings.
var errNoURL = errors.New("matomo.url is not set")

// ordered sorts the findings of the sink as the operator reads them.
func ordered(findings []finding) []finding {
	order := []string{"matomo", "token", "forward", "clock", "cookie", "mysql", "sites"}
	slices.SortStableFunc(findings, func(a, b finding) int {
		return slices.Index(order, a.Name) - slices.Index(order, b.Name)
	})
	return findings
}
