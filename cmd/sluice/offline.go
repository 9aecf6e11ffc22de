package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/alecthomas/kong"

	"sluice/internal/admin"
	"sluice/internal/config"
	"sluice/queue"
)

// A call is one conversation with a Sluice.
type call struct {
	what   string // the command, for its errors
	client *config.Client
	// offline says that the command can do without a running Sluice, on a copy of
	// what is kept.
	offline bool
}

// reach lets use talk to the running Sluice, or, where that makes sense, to the
// data that none is serving.
func (c call) reach(ctx context.Context, o *printer, l *config.Loader, k *kong.Context, use func(*admin.Client) error) error {
	client, err := dial(c.client, o.process, l, k)
	if err != nil {
		return err
	}
	err = use(client)
	if c.offline && errors.Is(err, admin.ErrNotRunning) {
		fmt.Fprintf(o.stderr, "no Sluice is running at %s: reading %s\n", c.client.Admin.Listen, c.client.DataDir)
		return offlineFailure(c.what, c.client.DataDir, offline(c.client, l, k, use))
	}
	if err != nil {
		return remoteFailure(c.what, c.client, err)
	}
	return nil
}

// offline opens a copy of the queue and lets use talk to it.
func offline(c *config.Client, l *config.Loader, k *kong.Context, use func(*admin.Client) error) error {
	secrets, faults := l.CheckKeys(k, c)
	if len(faults) > 0 {
		return settingsFailure(faults, l)
	}
	keys, err := queueKeys(secrets)
	if err != nil {
		return err
	}
	return queue.WithCopy(c.DataDir, keys, func(q *queue.Queue) error {
		const key = "local"
		room := queueRoom{q}
		server, err := admin.New(admin.Config{Control: key, Version: build().Version}, admin.Parts{
			Queue: room, Reader: room, DeadLetters: room, Importer: room, Drain: noDrain{}, Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return err
		}
		client, stop := admin.NewLocalClient(server.Handler(), key)
		defer stop()
		return use(client)
	})
}

// noDrain stands where nothing is fed.
type noDrain struct{}

// Status is part of [admin.Drain].
func (noDrain) Status() admin.DrainStatus { return admin.DrainStatus{} }

// Pause is part of [admin.Drain].
func (noDrain) Pause(string, string, time.Time) {}

// Resume is part of [admin.Drain].
func (noDrain) Resume(string) {}

// offlineFailure gives an error of reading the directory its exit code and a way on.
func offlineFailure(what, dir string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, queue.ErrLocked):
		return &failure{exitNotNow, what, err, "--admin.listen as the running Sluice has it"}
	case errors.Is(err, queue.ErrKey):
		return &failure{exitSettings, what, err, missingKey}
	case errors.Is(err, queue.ErrNotFound):
		return &failure{exitFailed, what, errors.New("there is no queue in " + dir), "--data-dir or --config as Sluice has it"}
	}
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	return &failure{exitFailed, what, err, ""}
}
