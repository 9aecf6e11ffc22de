package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/alecthomas/kong"

	"sluice/internal/admin"
	"sluice/internal/config"
)

type assetsCommands struct {
	Ls    assetsListCommand  `cmd:"" help:"List the copies of Matomo's public files, and how old they are."`
	Purge assetsPurgeCommand `cmd:"" help:"Compare copies with Matomo's files at once. Nobody is left without a copy."`
	Pin   assetsPinCommand   `cmd:"" help:"Serve one version of a file whatever Matomo has, until it is unpinned."`
	Unpin assetsUnpinCommand `cmd:"" help:"Serve again what Matomo has."`
}

type assetsListCommand struct {
	config.Client
	JSON bool `name:"json" help:"Answer as one JSON object."`
}

// Run lists the copies.
func (c *assetsListCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"assets ls", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		list, err := client.Assets(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return o.json(list)
		}
		o.assets(list.Assets)
		return nil
	})
}

func (o *printer) assets(list []admin.Asset) {
	if len(list) == 0 {
		o.printf("%s  no copies yet: a file is fetched when it is first asked for\n", o.mark(toneUnset))
		return
	}
	var rows [][]string
	for _, a := range list {
		state, checked := o.mark(toneOK)+"  current", "never"
		switch {
		case a.Pinned && a.Live != a.Hash:
			state = o.mark(toneWarn) + "  pinned; Matomo has " + cmp.Or(a.Live, "none")
		case a.Pinned:
			state = o.mark(toneWarn) + "  pinned"
		case a.Stale:
			state = o.mark(toneBad) + "  stale"
		}
		if a.Checked != nil {
			checked = span(o.now().Sub(*a.Checked)) + " ago"
		}
		rows = append(rows, []string{printable(a.Path), size(int64(a.Bytes)), size(int64(a.Smallest)), a.Hash, cmp.Or(a.Previous, "-"), checked, state})
	}
	o.table([]string{"PATH", "SIZE ", "SMALLEST ", "HASH", "PREVIOUS", "CONFIRMED", "STATE"}, rows)
}

type assetsPurgeCommand struct {
	config.Client
	Path string `arg:"" optional:"" name:"path" help:"Path of the file, as clients ask for it."`
	All  bool   `name:"all" help:"All files."`
	JSON bool   `name:"json" help:"Answer as one JSON object."`
}

// Run compares copies with Matomo's files. It fails when one of them could not be
// compared.
func (c *assetsPurgeCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	if (c.Path == "") != c.All {
		return &failure{exitUsage, "usage", errors.New("want either a path or --all"), "sluice assets ls"}
	}
	return call{"assets purge", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		done, err := client.PurgeAssets(ctx, admin.PurgeAssets{Path: c.Path, All: c.All})
		if err != nil {
			return err
		}
		if c.JSON {
			err = o.json(done)
		}
		bad := 0
		for _, a := range done.Assets {
			t, word := toneOK, a.Outcome
			switch a.Outcome {
			case "failed":
				t, word = toneBad, "Matomo did not answer with the file; the copy stays"
			case "refused", "unstable", "unsure":
				t, word = toneBad, a.Outcome+": what Matomo answers is not taken; the copy stays"
			}
			if t == toneBad {
				bad++
			}
			if !c.JSON {
				o.printf("%s  %s  %s\n", o.mark(t), printable(a.Path), word)
			}
		}
		if err == nil && bad > 0 {
			err = &failure{exitFailed, "assets purge", fmt.Errorf("%d of %d files could not be compared", bad, len(done.Assets)), "the log of sluice serve"}
		}
		return err
	})
}

type assetsPinCommand struct {
	config.Client
	Path     string `arg:"" name:"path" help:"Path of the file, as clients ask for it."`
	Version  string `arg:"" optional:"" name:"hash" help:"Version, as assets ls shows it. Default: what is served now."`
	Previous bool   `name:"previous" help:"The version before the one that Matomo has."`
	JSON     bool   `name:"json" help:"Answer as one JSON object."`
}

// Run pins.
func (c *assetsPinCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	if c.Previous {
		if c.Version != "" {
			return &failure{exitUsage, "usage", errors.New("want either a hash or --previous"), "sluice assets ls"}
		}
		c.Version = "previous"
	}
	return call{"assets pin", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		done, err := client.PinAsset(ctx, admin.PinAsset{Path: c.Path, Version: c.Version})
		return o.pinned(c.JSON, done, err)
	})
}

type assetsUnpinCommand struct {
	config.Client
	Path string `arg:"" name:"path" help:"Path of the file, as clients ask for it."`
	JSON bool   `name:"json" help:"Answer as one JSON object."`
}

// Run unpins.
func (c *assetsUnpinCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"assets unpin", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		done, err := client.UnpinAsset(ctx, c.Path)
		return o.pinned(c.JSON, done, err)
	})
}

func (o *printer) pinned(asJSON bool, done admin.PinnedAsset, err error) error {
	if err != nil {
		return err
	}
	if asJSON {
		return o.json(done)
	}
	if done.Pinned {
		o.printf("%s  %s is pinned at %s until: sluice assets unpin %s\n", o.mark(toneWarn), printable(done.Path), done.Hash, printable(done.Path))
		return nil
	}
	o.printf("%s  %s follows Matomo again\n", o.mark(toneOK), printable(done.Path))
	return nil
}
