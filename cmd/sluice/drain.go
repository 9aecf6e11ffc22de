package main

import (
	"context"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"sluice/internal/admin"
	"sluice/internal/config"
)

type drainCommands struct {
	Status drainStatusCommand `cmd:"" help:"Is Matomo being fed, and if not, why."`
	Pause  drainPauseCommand  `cmd:"" help:"Stop feeding Matomo for a while. Hits are kept meanwhile."`
	Resume drainResumeCommand `cmd:"" help:"End a pause, or a hold for an upgrade of Matomo that is over. Tries at once."`
}

type drainStatusCommand struct {
	config.Client
	JSON bool `name:"json" help:"Answer as one JSON object."`
}

// Run prints how Matomo is fed.
func (c *drainStatusCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"drain status", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		status, err := client.Drain(ctx)
		return o.drained(c.JSON, status, err)
	})
}

type drainPauseCommand struct {
	config.Client
	For  time.Duration `name:"for" default:"1h" min:"1s" max:"24h" placeholder:"TIME" help:"For how long; it resumes by itself. At most 24h."`
	Why  string        `name:"why" default:"by hand" placeholder:"TEXT" help:"Why; everybody who looks will see it."`
	JSON bool          `name:"json" help:"Answer as one JSON object."`
}

// Run pauses.
func (c *drainPauseCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"drain pause", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		status, err := client.Pause(ctx, admin.Pause{Who: who(o.process), Why: c.Why, Seconds: c.For.Seconds()})
		return o.drained(c.JSON, status, err)
	})
}

type drainResumeCommand struct {
	config.Client
	JSON bool `name:"json" help:"Answer as one JSON object."`
}

// Run resumes.
func (c *drainResumeCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"drain resume", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		status, err := client.Resume(ctx, admin.Resume{Who: who(o.process)})
		return o.drained(c.JSON, status, err)
	})
}

// drained prints the answer that all drain commands get.
func (o *printer) drained(asJSON bool, s admin.DrainStatus, err error) error {
	if err != nil {
		return err
	}
	if asJSON {
		return o.json(s)
	}
	o.drainStatus(s)
	return nil
}

func (o *printer) drainStatus(s admin.DrainStatus) {
	tones := map[string]tone{"sending": toneOK, "holding": toneBad, "trying": toneBusy, "paused": toneWarn}
	t, ok := tones[s.State]
	if !ok {
		t = toneUnset
	}
	o.printf("%s", o.paint(t, s.State))
	if s.Since != nil {
		o.printf("    since %s (%s)", o.clock(*s.Since), span(o.now().Sub(*s.Since)))
	}
	if p := s.Pause; p != nil {
		o.printf(", by %s until %s: %s", printable(p.Who), o.clock(p.Until), printable(p.Why))
		s.NextTry = nil // the same moment
	} else if s.Reason != "" {
		o.printf(", reason: %s (%s)", s.Reason, printable(s.Detail))
	}
	if s.NextTry != nil {
		o.printf(", next try %s", o.clock(*s.NextTry))
	}
	if h := s.LastHold; h != nil && s.State == "sending" {
		o.printf(", reason of the last hold: %s (%s), held %s", h.Reason, printable(h.Detail), span(seconds(h.Seconds)))
	}
	if s.Ends != "" {
		o.printf("\nends       %s", s.Ends)
	}
	o.printf("\nlanes %d of %d   batch %d of %d   p50 %s   p95 %s   errors %d in 5 min   uncertain %d\n",
		s.Lanes, s.MaxLanes, s.Batch, s.MaxBatch, milliseconds(seconds(s.P50)), milliseconds(seconds(s.P95)), s.Errors, s.Uncertain)
	var unknown []string
	for _, p := range s.MySQL {
		switch p.State {
		case "ok":
		case "unknown":
			unknown = append(unknown, p.Name+" ("+printable(p.Detail)+")")
		default:
			o.printf("mysql      %s: %s, %s\n", p.Name, p.State, printable(p.Detail))
		}
	}
	if len(unknown) > 0 {
		o.printf("mysql      not known: %s\n", strings.Join(unknown, "; "))
	}
	if s.ReaderLag != nil {
		o.printf("replica    %s behind\n", span(seconds(*s.ReaderLag)))
	}
	if s.State == "holding" && (s.Reason == "auth" || s.Reason == "config") {
		o.printf("  try: sluice check --online\n")
	}
}
