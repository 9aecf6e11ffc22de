package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/alecthomas/kong"

	"sluice/internal/admin"
	"sluice/internal/config"
)

type queueDeadCommand struct {
	config.Client
	Site   *int64 `name:"site" placeholder:"N" help:"Only this site."`
	Reason string `name:"reason" placeholder:"WORD" help:"Only hits buried for this reason."`
	Limit  int    `name:"limit" default:"0" min:"0" max:"1000000000" help:"List at most so many; 0 is all."`
	List   bool   `name:"list" help:"List single hits instead of reasons."`
	Full   bool   `name:"full" help:"With --json: the request and Matomo's answer, too. Needs control of the running Sluice."`
	JSON   bool   `name:"json" help:"Answer as JSON lines, one a hit."`
}

// Run shows buried hits: by reason first, since one cause often buries many.
func (c *queueDeadCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"queue dead", &c.Client, true}.reach(ctx, o, l, k, func(client *admin.Client) error {
		f := admin.DeadFilter{Site: c.Site, Reason: c.Reason, Limit: c.Limit}
		if c.List || c.JSON {
			return c.list(ctx, o, client, f)
		}
		summary, err := client.DeadSummary(ctx, f)
		if err != nil {
			return err
		}
		o.deadSummary(summary)
		return nil
	})
}

// list prints single hits.
func (c *queueDeadCommand) list(ctx context.Context, o *printer, client *admin.Client, f admin.DeadFilter) error {
	view := admin.Masked
	if c.Full {
		view = admin.Full
	}
	var rows [][]string
	for d, err := range client.Dead(ctx, f, view) {
		if err != nil {
			return err
		}
		if c.JSON {
			if err := o.json(d); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{d.ID, o.clock(d.BuriedAt), number(d.Site), d.Reason, fmt.Sprint(d.Code), d.Hit.Kind, printable(d.Hit.Path)})
	}
	if !c.JSON {
		o.table([]string{"ID", "BURIED", "SITE ", "REASON", "STATUS ", "KIND", "PATH"}, rows)
	}
	return nil
}

func (o *printer) deadSummary(s admin.DeadSummary) {
	if s.Damaged > 0 {
		o.printf("%s  %s buried hits cannot be read\n", o.mark(toneBad), number(s.Damaged))
	}
	if s.Total == 0 {
		o.printf("%s  nothing is buried\n", o.mark(toneOK))
		return
	}
	var rows [][]string
	for _, g := range s.Groups {
		sites := strings.Trim(fmt.Sprint(g.Sites), "[]")
		rows = append(rows, []string{g.Reason, number(g.Count), o.between(g.First, g.Last), sites, g.Sample})
	}
	o.table([]string{"REASON", "HITS ", "BURIED", "SITES", "FOR EXAMPLE"}, rows)
	o.printf("look at one:  sluice queue show ID --full      send again:  sluice queue requeue --reason REASON\n")
}

type queueRequeueCommand struct {
	config.Client
	IDs    []string `arg:"" optional:"" name:"id" help:"Hits to send again."`
	Site   *int64   `name:"site" placeholder:"N" help:"All of this site."`
	Reason string   `name:"reason" placeholder:"WORD" help:"All that were buried for this reason."`
	All    bool     `name:"all" help:"All."`
	Yes    bool     `name:"yes" short:"y" help:"Do not ask."`
	JSON   bool     `name:"json" help:"Answer as one JSON object; needs --yes or ids."`
}

// Run sends buried hits again: those named, or those that a filter has counted and
// that were buried before the count.
func (c *queueRequeueCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	filtered := c.Site != nil || c.Reason != "" || c.All
	if len(c.IDs) > 0 == filtered {
		return &failure{exitUsage, "usage", errors.New("want either ids or a filter: --reason, --site or --all"), "sluice queue dead"}
	}
	for _, id := range c.IDs {
		if _, err := parseID(id); err != nil {
			return err
		}
	}
	return call{"queue requeue", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		order := admin.Requeue{Who: who(o.process), IDs: c.IDs, Site: c.Site, Reason: c.Reason}
		if filtered {
			summary, err := client.DeadSummary(ctx, admin.DeadFilter{Site: c.Site, Reason: c.Reason})
			if err != nil {
				return err
			}
			if summary.Total == 0 {
				return c.done(o, 0)
			}
			if err := c.confirm(o, summary.Total); err != nil {
				return err
			}
			order.UpTo = summary.Newest
		}
		n, err := client.Requeue(ctx, order)
		if err != nil {
			return err
		}
		return c.done(o, n)
	})
}

func (c *queueRequeueCommand) done(o *printer, n int) error {
	if c.JSON {
		return o.json(admin.Requeued{V: 1, Requeued: n})
	}
	o.printf("%s hits are pending again\n", number(int64(n)))
	return nil
}

// confirm asks once, with the number.
func (c *queueRequeueCommand) confirm(o *printer, total int64) error {
	if c.Yes {
		return nil
	}
	if c.JSON || !isTerminal(o.stdin) {
		return &failure{exitUsage, "usage", fmt.Errorf("%s hits would be sent again, and there is nobody to ask: want --yes", number(total)), ""}
	}
	fmt.Fprintf(o.stderr, "Send %s buried hits again? [y/N] ", number(total))
	answer, _ := bufio.NewReader(o.stdin).ReadString('\n') // No answer is no.
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return &failure{exitFailed, "queue requeue", errors.New("nothing was done"), ""}
	}
	return nil
}
