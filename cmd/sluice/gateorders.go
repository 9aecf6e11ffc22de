package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"sluice/archivegate"
	"sluice/internal/admin"
	"sluice/internal/config"
)

type gateHoldCommand struct {
	gateClient
	Name string        `arg:"" help:"Whose hold it is; one of the same name is replaced."`
	For  time.Duration `name:"for" default:"2h" min:"1s" max:"168h" placeholder:"TIME" help:"For how long at most; it ends by itself."`
	Date string        `name:"date" placeholder:"DAY" help:"The first day that is held, YYYY-MM-DD. Default: every day."`
	Site int64         `name:"site" placeholder:"N" help:"Only this site. Default: all."`
}

// Run holds days.
func (c *gateHoldCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	order := archivegate.HoldOrder{Name: c.Name, Who: who(o.process), Site: c.Site, Seconds: c.For.Seconds()}
	if c.Date != "" {
		d, err := archivegate.ParseDate(c.Date)
		if err != nil {
			return &failure{exitUsage, "--date", err, "sluice gate hold --help"}
		}
		order.Date = &d
	}
	var h archivegate.Hold
	if err := c.order(ctx, o, l, k, "gate hold", http.MethodPost, "holds", order, &h); err != nil {
		return err
	}
	o.printf("held by %s until %s%s; sluice gate release %s ends it\n", h.Name, o.clock(h.Until), heldWhat(&h), h.Name)
	return nil
}

// order gives an order and reads the answer.
func (c *gateClient) order(ctx context.Context, o *printer, l *config.Loader, k *kong.Context, what, method, path string, order, into any) error {
	client, err := c.dial(o, l, k)
	if err != nil {
		return err
	}
	if method != http.MethodPost || path != "rebuild" { // which takes as long as it takes
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, gateTimeout)
		defer cancel()
	}
	body, yes, err := client.Gate(ctx, method, path, order)
	if err == nil && !yes {
		err = errors.New("refused for now")
	}
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		return c.failure(what, err)
	}
	return nil
}

type gateReleaseCommand struct {
	gateClient
	Name string `arg:"" help:"The hold."`
}

// Run ends a hold.
func (c *gateReleaseCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	path := "holds/" + url.PathEscape(c.Name) + "?" + url.Values{"who": {who(o.process)}}.Encode()
	var done struct{}
	if err := c.order(ctx, o, l, k, "gate release", http.MethodDelete, path, nil, &done); err != nil {
		return err
	}
	o.printf("released\n")
	return nil
}

type gateRebuildCommand struct {
	gateClient
	JSON bool `name:"json" help:"Answer as one JSON object."`
}

// Run counts again.
func (c *gateRebuildCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	var r archivegate.Recount
	if err := c.order(ctx, o, l, k, "gate rebuild", http.MethodPost, "rebuild", struct{}{}, &r); err != nil {
		return err
	}
	if c.JSON {
		if err := o.json(r); err != nil {
			return err
		}
	} else {
		o.recount(&r)
	}
	if !r.OK {
		return &failure{code: exitFailed, what: "gate rebuild", err: errSilent}
	}
	return nil
}

func (o *printer) recount(r *archivegate.Recount) {
	if r.OK {
		o.printf("%s  the counters agree with the %s hits that wait\n", o.mark(toneOK), number(r.Hits))
		return
	}
	o.printf("%s  %d counters did not agree with the %s hits that were read\n", o.mark(toneBad), r.Differing, number(r.Hits))
	for _, s := range r.Slots {
		at := time.Unix(s.Quarter*900, 0)
		o.printf("    site %d, from %s: %s counted, %s found\n", s.Site, o.clock(at), number(s.Counted), number(s.Found))
	}
	if r.Unreadable > 0 {
		o.printf("    %s hits cannot be read any more. They stay counted, and the days that they may belong to are not complete; see docs/gate.md, \"Lost hits\"\n", number(r.Unreadable))
		return
	}
	o.printf("    they are put right\n")
}

type gateLockCommand struct {
	gateClient
	Name    string        `name:"name" default:"archive" placeholder:"NAME" help:"What is locked."`
	For     time.Duration `name:"for" default:"5m" min:"10s" max:"24h" placeholder:"TIME" help:"For how long a lock lasts when whoever has it dies; it is renewed meanwhile."`
	Quiet   bool          `name:"quiet" short:"q" help:"Do not say who has the lock."`
	Command []string      `arg:"" passthrough:"" help:"The command and its arguments."`
}

// lockStop is how long a command has to end when it is told to.
const lockStop = 30 * time.Second

// Run runs a command under a lock, and ends with its exit code; with 75 if another has
// the lock, or if it was lost, in which case the command is ended.
func (c *gateLockCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	client, err := c.dial(o, l, k)
	if err != nil {
		return err
	}
	command := c.Command
	if len(command) > 0 && command[0] == "--" {
		command = command[1:]
	}
	if len(command) == 0 || strings.HasPrefix(command[0], "-") {
		return &failure{exitUsage, "gate lock", errors.New("want a command, with flags of its own behind it"), "sluice gate lock --help"}
	}
	asking, asked := context.WithTimeout(ctx, gateTimeout)
	lease, err := c.take(asking, client, archivegate.LockOrder{Name: c.Name, Who: who(o.process), Seconds: c.For.Seconds()})
	asked()
	if f, ok := errors.AsType[*failure](err); ok && c.Quiet {
		f.err = errSilent
	}
	if err != nil {
		return c.failure("gate lock", err)
	}
	running, stop := context.WithCancel(ctx)
	defer stop()
	lost := make(chan error, 1)
	go func() { lost <- c.renew(running, client, lease) }() // ends with running
	cmd := exec.CommandContext(running, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = o.stdin, o.stdout, o.stderr, o.env
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = lockStop
	if err := cmd.Start(); err != nil {
		c.unlock(client, lease)
		return &failure{exitUsage, "gate lock", err, ""}
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }() // ends with the command
	var gone error
	select {
	case err = <-ended:
		stop()
		<-lost
	case gone = <-lost:
		stop()
		err = <-ended
	}
	c.unlock(client, lease)
	if gone != nil {
		return &failure{exitNotNow, "gate lock", gone, ""}
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() >= 0 {
		return &failure{code: exit.ExitCode(), what: command[0], err: errSilent}
	}
	if err != nil {
		return &failure{exitFailed, command[0], err, ""}
	}
	return nil
}

func (c *gateLockCommand) take(ctx context.Context, client *admin.Client, order archivegate.LockOrder) (archivegate.Lease, error) {
	var lease archivegate.Lease
	body, yes, err := client.Gate(ctx, http.MethodPost, "lock", order)
	if err == nil {
		err = json.Unmarshal(body, &lease)
	}
	if err == nil && !yes {
		err = &failure{exitNotNow, "gate lock", fmt.Errorf("%s has it until %s", strconv.Quote(lease.Who), lease.Until.Format(time.RFC3339)), ""}
	}
	return lease, err
}

// renew makes the lease longer until ctx is done, and returns an error when it is lost.
func (c *gateLockCommand) renew(ctx context.Context, client *admin.Client, lease archivegate.Lease) error {
	const parts = 3
	held := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.For / parts):
		}
		asked := time.Now()
		attempt, end := context.WithTimeout(ctx, c.For/parts/2)
		_, err := c.take(attempt, client, archivegate.LockOrder{Name: lease.Name, Who: lease.Who, Key: lease.Key, Seconds: c.For.Seconds()})
		end()
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			held = asked
			continue
		}
		if _, taken := errors.AsType[*failure](err); taken || time.Since(held) > c.For*(parts-1)/parts {
			return fmt.Errorf("the lock is lost, so the command was ended: %w", err)
		}
	}
}

// unlock gives the lease back; if that fails it ends by its time.
func (c *gateLockCommand) unlock(client *admin.Client, lease archivegate.Lease) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_, _, _ = client.Gate(ctx, http.MethodPost, "unlock", archivegate.LockOrder{Name: lease.Name, Who: lease.Who, Key: lease.Key})
}
