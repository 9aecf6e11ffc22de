package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"sluice/internal/admin"
	"sluice/internal/config"
	"sluice/internal/hit"
)

type queueCommands struct {
	Stats   queueStatsCommand   `cmd:"" help:"The sum, how far behind, the pace, the disk."`
	Ls      queueLsCommand      `cmd:"" help:"List waiting hits, oldest first, masked."`
	Show    queueShowCommand    `cmd:"" help:"Show one hit, waiting or buried."`
	Dead    queueDeadCommand    `cmd:"" help:"Buried hits: by reason, or with --list or --json one by one."`
	Requeue queueRequeueCommand `cmd:"" help:"Send buried hits again."`
	Verify  queueVerifyCommand  `cmd:"" help:"Read all that is kept and check it. Works without a running Sluice, too."`
	Export  queueExportCommand  `cmd:"" help:"Write all waiting hits, complete, as JSON lines."`
	Import  queueImportCommand  `cmd:"" help:"Take hits of exports into the queue, each once."`
}

type queueStatsCommand struct {
	config.Client
	JSON  bool `name:"json" help:"Answer as one JSON object; with --sites as JSON lines."`
	Sites bool `name:"sites" help:"The sum per site and UTC day instead."`
}

// Run prints the figures of the queue.
func (c *queueStatsCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"queue stats", &c.Client, true}.reach(ctx, o, l, k, func(client *admin.Client) error {
		if c.Sites {
			return c.sites(ctx, o, client)
		}
		stats, err := client.Stats(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return o.json(stats)
		}
		o.stats(stats)
		return nil
	})
}

func (o *printer) stats(s admin.QueueStats) {
	verdict := o.mark(toneOK)
	if s.Sum.Difference != 0 {
		verdict = o.mark(toneBad) + " off by " + number(s.Sum.Difference)
	}
	o.printf("accepted %s = delivered %s + invalid %s + dead %s + pending %s     %s\n",
		number(s.Sum.Accepted), number(s.Sum.Delivered), number(s.Sum.Invalid), number(s.Sum.Dead), number(s.Sum.Pending), verdict)
	o.printf("pending    %s hits, %s", number(s.Sum.Pending), size(s.Behind.PendingBytes))
	if s.Behind.OldestAt != nil {
		o.printf("    oldest %s (%s)", o.clock(*s.Behind.OldestAt), span(seconds(s.Behind.OldestAgeSeconds)))
	}
	o.printf("    on the way %s    uncertain %s\n", number(s.Behind.OnTheWay), number(s.Sum.Uncertain))
	if s.Pace.In == nil {
		o.printf("pace       not known yet\n")
	} else {
		o.printf("pace       in %s    out %s    %s\n", rate(*s.Pace.In), rate(*s.Pace.Out), o.empty(s))
	}
	o.printf("buried     %s kept    since the store was made %s sent again, %s expired\n", number(s.Dead.Kept), number(s.Dead.Requeued), number(s.Dead.Expired))
	o.printf("disk       %s used, %s free above reserve", size(s.Disk.UsedBytes), size(s.Disk.FreeBytes))
	if s.Disk.FreeBytes <= 0 {
		o.printf("  %s nothing is accepted", o.mark(toneBad))
	}
	if s.Disk.RoomSeconds != nil {
		o.printf(", room for %s without Matomo", room(*s.Disk.RoomSeconds))
	}
	o.printf("\n")
	if s.Store.DamagedBlocks != 0 || s.Store.MissingBlocks != 0 {
		o.printf("%s  %s damaged blocks, %s missing; see docs/operations.md, \"Damaged blocks\"\n",
			o.mark(toneBad), number(s.Store.DamagedBlocks), number(s.Store.MissingBlocks))
	}
}

// room writes a forecast of the disk; further than a year it means nothing.
func room(forSeconds float64) string {
	const year = 365 * 24 * 3600
	if forSeconds > year {
		return "more than a year"
	}
	return span(seconds(forSeconds))
}

// empty says when nothing will wait any more.
func (o *printer) empty(s admin.QueueStats) string {
	switch {
	case s.Sum.Pending == 0:
		return "empty"
	case s.Behind.EmptyAt == nil:
		return "not catching up at this pace"
	default:
		return fmt.Sprintf("empty about %s (in %s)", o.clock(*s.Behind.EmptyAt), span(s.Behind.EmptyAt.Sub(s.At)))
	}
}

func (c *queueStatsCommand) sites(ctx context.Context, o *printer, client *admin.Client) error {
	var rows [][]string
	for s, err := range client.Sites(ctx) {
		if err != nil {
			return err
		}
		if c.JSON {
			if err := o.json(s); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{number(s.Site), s.Day, number(s.Accepted), number(s.Delivered), number(s.Invalid), number(s.Dead), number(s.Pending)})
	}
	if !c.JSON {
		o.table([]string{"SITE ", "DAY (UTC)", "ACCEPTED ", "DELIVERED ", "INVALID ", "DEAD ", "PENDING "}, rows)
	}
	return nil
}

type queueLsCommand struct {
	config.Client
	Site  *int64 `name:"site" placeholder:"N" help:"Only this site."`
	Limit int    `name:"limit" default:"20" min:"0" max:"1000000000" help:"At most so many; 0 is all."`
	After string `name:"after" placeholder:"ID" help:"Begin behind this hit."`
	JSON  bool   `name:"json" help:"Answer as JSON lines."`
}

// Run lists waiting hits.
func (c *queueLsCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	f := admin.PeekFilter{Site: c.Site, Limit: c.Limit}
	if c.After != "" {
		id, err := parseID(c.After)
		if err != nil {
			return err
		}
		f.After = id
	}
	return call{"queue ls", &c.Client, true}.reach(ctx, o, l, k, func(client *admin.Client) error {
		var rows [][]string
		for h, err := range client.Hits(ctx, f, admin.Masked) {
			if err != nil {
				return err
			}
			if c.JSON {
				if err := o.json(h); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, []string{
				h.ID, o.clock(h.ReceivedAt), o.clock(h.At), number(h.Site), h.Kind, printable(h.Path), h.Address,
				printable(h.Visitor), number(int64(h.Bytes)), h.State,
			})
		}
		if !c.JSON {
			o.table([]string{"ID", "ACCEPTED", "HIT TIME", "SITE ", "KIND", "PATH", "NETWORK", "VISITOR", "BYTES ", "STATE"}, rows)
		}
		return nil
	})
}

type queueShowCommand struct {
	config.Client
	ID   string `arg:"" help:"The hit, GENERATION-BLOCK-INDEX."`
	Full bool   `name:"full" help:"With the request: address, ids, parameters. Needs control of the running Sluice."`
	JSON bool   `name:"json" help:"Answer as one JSON object."`
}

// Run shows one hit.
func (c *queueShowCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	id, err := parseID(c.ID)
	if err != nil {
		return err
	}
	view := admin.Masked
	if c.Full {
		view = admin.Full
	}
	return call{"queue show", &c.Client, true}.reach(ctx, o, l, k, func(client *admin.Client) error {
		shown, err := client.Show(ctx, id, view)
		switch {
		case err != nil:
			return err
		case c.JSON && shown.Dead != nil:
			return o.json(shown.Dead)
		case c.JSON:
			return o.json(shown.Hit)
		}
		o.hit(shown)
		return nil
	})
}

// hit prints one hit, a line a fact.
func (o *printer) hit(s admin.Shown) {
	h := s.Hit
	line := func(name, value string) {
		if value != "" {
			o.printf("%-12s%s\n", name, printable(value))
		}
	}
	line("id", h.ID)
	line("state", h.State)
	line("site", number(h.Site))
	line("accepted", o.clock(h.ReceivedAt))
	line("hit time", o.clock(h.At))
	line("kind", h.Kind)
	line("path", h.Path)
	line("network", h.Address)
	line("visitor", h.Visitor)
	line("form", h.Form+", "+h.Rights)
	if d := s.Dead; d != nil {
		line("buried", o.clock(d.BuriedAt))
		line("reason", d.Reason)
		line("status", fmt.Sprint(d.Code))
		line("answer", d.Answer)
	}
	if r := h.Request; r != nil {
		line("address", r.ClientIP)
		line("user agent", r.UserAgent+r.UserAgentBase64)
		line("language", r.AcceptLanguage+r.AcceptLanguageBase64)
		line("referer", r.Referer+r.RefererBase64)
		line("hints", r.ClientHints+r.ClientHintsBase64)
		line("cookie", r.VisitorCookie+r.VisitorCookieBase64)
		line("headers", strings.ReplaceAll(strings.TrimSuffix(r.Headers, "\n"), "\n", "; "))
		line("token", r.Token)
		line("parameters", r.Params+r.ParamsBase64)
	}
}

// printable keeps what visitors sent from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || 0x7f <= r && r < 0xa0 || r == '\u2028' || 0x202a <= r && r <= 0x202e || 0x2066 <= r && r <= 0x2069 {
			return '?'
		}
		return r
	}, s)
}

func parseID(text string) (hit.ID, error) {
	id, err := hit.ParseID(text)
	if err != nil {
		return hit.ID{}, &failure{exitUsage, "usage", fmt.Errorf("%q: %w", text, err), "sluice queue ls"}
	}
	return id, nil
}

type queueVerifyCommand struct {
	config.Client
	JSON bool `name:"json" help:"Answer as one JSON object."`
}

// Run verifies; problems are exit code 1.
func (c *queueVerifyCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"queue verify", &c.Client, true}.reach(ctx, o, l, k, func(client *admin.Client) error {
		result, err := client.Verify(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			err = o.json(result)
		} else {
			o.verified(result)
		}
		if err == nil && !result.OK {
			return &failure{exitFailed, "queue verify", errSilent, ""}
		}
		return err
	})
}

func (o *printer) verified(r admin.VerifyResult) {
	for _, problem := range r.Problems {
		o.printf("%s  %s\n", o.mark(toneBad), printable(problem))
	}
	t := toneOK
	if !r.OK {
		t = toneBad
	}
	o.printf("%s  %s pending hits in %s blocks on %s shelves, %s buried, %d problems\n",
		o.mark(t), number(r.Pending), number(r.Blocks), number(r.Shelves), number(r.Dead), len(r.Problems))
}

type queueExportCommand struct {
	config.Client
	File string `arg:"" optional:"" help:"File to make, readable by its owner only; it must not exist. Default: standard output."`
	Dead bool   `name:"dead" help:"The buried hits instead."`
	Site *int64 `name:"site" placeholder:"N" help:"Only this site."`
}

// Run writes hits as they were received, tokens included.
func (c *queueExportCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"queue export", &c.Client, true}.reach(ctx, o, l, k, func(client *admin.Client) error {
		// The first answer decides whether there is anything to make a file for.
		if _, err := client.Stats(ctx); err != nil {
			return err
		}
		if c.File == "" {
			return c.export(ctx, o, o.stdout, client)
		}
		f, err := os.OpenFile(c.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return &failure{exitFailed, "queue export", err, ""}
		}
		err = c.export(ctx, o, f, client)
		if err == nil {
			err = f.Sync()
		}
		return errors.Join(err, f.Close())
	})
}

// export writes one hit a line and says how many there were.
func (c *queueExportCommand) export(ctx context.Context, o *printer, w io.Writer, client *admin.Client) error {
	buffered := bufio.NewWriter(w)
	encoder := json.NewEncoder(buffered)
	encoder.SetEscapeHTML(false)
	n := int64(0)
	for line, err := range c.lines(ctx, client) {
		if err == nil {
			err = encoder.Encode(line)
		}
		if err != nil {
			return errors.Join(err, buffered.Flush())
		}
		n++
	}
	if err := buffered.Flush(); err != nil {
		return fmt.Errorf("write the hits: %w", err)
	}
	fmt.Fprintf(o.stderr, "%s hits\n", number(n))
	return nil
}

// lines yields the hits that are meant, waiting or buried.
func (c *queueExportCommand) lines(ctx context.Context, client *admin.Client) iter.Seq2[any, error] {
	return func(yield func(any, error) bool) {
		if c.Dead {
			for d, err := range client.Dead(ctx, admin.DeadFilter{Site: c.Site}, admin.Export) {
				if !yield(d, err) {
					return
				}
			}
			return
		}
		for h, err := range client.Hits(ctx, admin.PeekFilter{Site: c.Site}, admin.Export) {
			if !yield(h, err) {
				return
			}
		}
	}
}

// between writes a span of clock times.
func (o *printer) between(first, last time.Time) string {
	if first.Equal(last) {
		return o.clock(first)
	}
	return o.clock(first) + " to " + o.clock(last)
}
