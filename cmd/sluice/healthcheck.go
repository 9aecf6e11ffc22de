package main

import (
	"context"
	"time"

	"github.com/alecthomas/kong"

	"sluice/internal/config"
)

// healthcheckTimeout is shorter than the shortest interval that container engines
// give a check.
const healthcheckTimeout = 3 * time.Second

type healthcheckCommand struct {
	config.Client
}

// Run asks the running Sluice whether it can accept hits. Whatever is wrong, the
// exit code is 1: engines know no others.
func (c *healthcheckCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	client, err := dial(&c.Client, o.process, l, k)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, healthcheckTimeout)
		defer cancel()
		err = client.Ready(ctx)
	}
	if err != nil {
		return &failure{code: exitFailed, what: "not ready", err: err}
	}
	o.printf("ready\n")
	return nil
}
