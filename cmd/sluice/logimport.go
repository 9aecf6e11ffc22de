package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"sluice/internal/accesslog"
	"sluice/internal/admin"
	"sluice/internal/config"
)

type importCommands struct {
	Logs     logImportCommand   `cmd:"" default:"withargs" help:"Take the tracking requests of access logs, each once and in their order."`
	Status   logStatusCommand   `cmd:"" help:"See the imports and what became of them."`
	Complete logCompleteCommand `cmd:"" help:"Have an import delivered that was left open."`
	Cancel   logCancelCommand   `cmd:"" help:"Give up an import of which nothing was taken in hand for Matomo."`
	Forget   logForgetCommand   `cmd:"" help:"Let the lines of an import be imported again."`
}

type logImportCommand struct {
	config.Client
	Files     []string         `arg:"" name:"file" help:"Logs, plain or compressed with gzip, zstd or bzip2, and patterns of them; - is standard input."`
	Format    string           `name:"format" help:"The logs' format by name; without it each file's is found by its first lines."`
	Nginx     string           `name:"nginx-format" placeholder:"TEXT" help:"The logs' format as the text of nginx's log_format."`
	Apache    string           `name:"apache-format" placeholder:"TEXT" help:"The logs' format as the text of Apache's LogFormat."`
	Timezone  string           `name:"timezone" placeholder:"ZONE" help:"Zone of times that do not say theirs, as of HAProxy."`
	Server    string           `name:"server" help:"Name of the server that wrote the logs, if equal lines of several servers are different requests."`
	Window    string           `name:"window" placeholder:"FROM..TO" help:"Only requests of these days, or moments with a zone."`
	Sites     admin.SiteRanges `name:"sites" placeholder:"N,N-N" help:"Only hits of these sites, as 1,4,7-9."`
	Status    string           `name:"status" placeholder:"FROM-TO" help:"Only requests that the server answered with such a status, as 500-599."`
	Memory    config.ByteSize  `name:"memory" default:"256MiB" min:"16MiB" max:"64GiB" help:"Memory for sorting; what does not fit is sorted on the disk."`
	Temporary string           `name:"temporary" placeholder:"DIR" help:"Where lines are sorted on the disk; the system's temporary directory without it."`
	DryRun    bool             `name:"dry-run" help:"Take nothing; say what would be taken."`
	AllowLate bool             `name:"allow-late" help:"Deliver hits, too, that are older than hits already recorded for the same visitors."`
	JSON      bool             `name:"json" help:"Answer as one JSON object."`
}

// reading checks what the flags say of the logs.
func (c *logImportCommand) reading() (logReading, error) {
	how := logReading{server: c.Server, sites: c.Sites}
	var err error
	given := 0
	for _, g := range []struct {
		text string
		make func(string) (*accesslog.Format, error)
	}{{c.Format, accesslog.Named}, {c.Nginx, accesslog.Nginx}, {c.Apache, accesslog.Apache}} {
		if g.text == "" {
			continue
		}
		given++
		if how.format, err = g.make(g.text); err != nil {
			return how, err
		}
	}
	if given > 1 {
		return how, errors.New("want one of --format, --nginx-format and --apache-format")
	}
	if c.Timezone != "" {
		if how.zone, err = time.LoadLocation(c.Timezone); err != nil {
			return how, fmt.Errorf("--timezone: %w", err)
		}
	}
	if c.Window != "" {
		if how.from, how.to, err = parseWindow(c.Window); err != nil {
			return how, fmt.Errorf("--window: %w", err)
		}
	}
	if c.Status != "" {
		first, last, ranged := strings.Cut(c.Status, "-")
		if !ranged {
			last = first
		}
		a, err1 := strconv.Atoi(first)
		b, err2 := strconv.Atoi(last)
		if errors.Join(err1, err2) != nil || a < 100 || b < a || b > 999 {
			return how, fmt.Errorf("--status: %q: want FROM-TO, as 500-599", c.Status)
		}
		how.statuses = [2]int{a, b}
	}
	return how, nil
}

// Run takes the logs.
func (c *logImportCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	how, err := c.reading()
	if err != nil {
		return &failure{exitUsage, "import", err, "sluice import --help"}
	}
	limitMemory(o.env, int64(c.Memory)+importMemory)
	return call{"import", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		release, err := c.lock()
		if err != nil {
			return err
		}
		defer release()
		// A long reading in vain helps nobody.
		if _, err := client.Stats(ctx); err != nil {
			return err
		}
		sum := newLogSum(c.DryRun)
		progress := newLogProgress(o, c.JSON)
		err = c.run(ctx, client, how, sum, progress, who(o.process))
		progress.stop()
		if c.JSON {
			if jerr := o.json(sum); jerr != nil {
				return jerr
			}
		} else {
			o.logSum(sum)
		}
		switch {
		case err != nil && ctx.Err() != nil:
			return &failure{exitFailed, "import", errors.New("interrupted"), "the same command again: what was taken is not taken twice"}
		case errors.Is(err, admin.ErrLate):
			return &failure{exitFailed, "import", fmt.Errorf("%s; import %s is open, and nothing of it is delivered", lateText(sum.LateHits), sum.Import),
				fmt.Sprintf("sluice import complete %s --allow-late, or sluice import cancel %[1]s", sum.Import)}
		case err != nil:
			return err
		case len(sum.Faulty) > 0:
			return &failure{exitFailed, "import", errSilent, ""}
		}
		return nil
	})
}

// lock keeps a second import out of the way of the first one, as far as both are where the
// data directory is.
func (c *logImportCommand) lock() (release func() error, err error) {
	release = func() error { return nil }
	if c.DryRun {
		return release, nil
	}
	dir, err := os.Open(c.DataDir)
	if err != nil {
		return release, nil // it is elsewhere, or not for this user
	}
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, &failure{exitNotNow, "import", errors.Join(errors.New("another import is running here"), dir.Close()), "the same command again when that has ended"}
	}
	return dir.Close, nil // which ends the lock
}

// note says what an import is made from.
func (c *logImportCommand) note() string {
	note := strings.Join(c.Files, " ")
	if len(note) > maxNote {
		note = fmt.Sprintf("%s and more, %d in all", c.Files[0][:min(len(c.Files[0]), maxNote)], len(c.Files))
	}
	return note
}

// maxNote bounds what is remembered of an import's files, in bytes.
const maxNote = 200

func (c *logImportCommand) run(ctx context.Context, client *admin.Client, how logReading, sum *logSum, progress *logProgress, who string) error {
	sorter, err := accesslog.OpenSorter(accesslog.SortConfig{Dir: cmp.Or(c.Temporary, os.TempDir()), Memory: int64(c.Memory)})
	if err != nil {
		return &failure{exitUsage, "import", err, ""}
	}
	defer sorter.Close()
	l := &logReader{how: how, sorter: sorter, sum: sum, progress: progress}
	if err := l.read(ctx, c.Files); err != nil {
		return &failure{exitFailed, "import", err, ""}
	}
	if sum.From == nil {
		return nil // nothing tracks
	}
	empty := false // so is the import
	if !c.DryRun {
		fresh := true
		i, err := client.BeginLogImport(ctx, admin.BeginLogImport{Note: c.note(), From: *sum.From, To: *sum.To, Who: who})
		if errors.Is(err, admin.ErrImportOpen) {
			progress.say("import " + i.ID + " was left open, and goes on")
			fresh, err = i.Accepted == 0, nil
		}
		if err != nil {
			return err
		}
		sum.Import, sum.State, empty = i.ID, i.State, fresh
	}
	l.phase = progress.begin("taking", l.kept)
	for batch, err := range l.batches(ctx) {
		if err != nil {
			return &failure{exitFailed, "import", err, "the same command again: what was taken is not taken twice"}
		}
		if err := l.send(ctx, client, batch); err != nil {
			return err
		}
	}
	if c.DryRun {
		return nil
	}
	if empty && sum.Hits == 0 {
		id := sum.Import
		sum.Import, sum.State = "", ""
		return client.EndLogImport(ctx, id, "cancel", who)
	}
	progress.begin("looking for late hits", 0)
	if sum.LateHits, err = client.CompleteLogImport(ctx, sum.Import, c.AllowLate, who); err != nil {
		return err
	}
	sum.State = "complete"
	return nil
}

// send sends one batch and adds up what became of it.
func (l *logReader) send(ctx context.Context, client *admin.Client, batch []*loggedLine) error {
	text, err := encodeBatch(batch)
	if err != nil {
		return err
	}
	taken, err := client.TakeLogged(ctx, l.sum.Import, l.how.sites, text)
	if err != nil {
		if refused, ok := errors.AsType[*admin.RefusedError](err); ok && refused.Code == http.StatusConflict {
			return &failure{exitFailed, "import", err, "sluice import complete " + l.sum.Import + ", or sluice import cancel " + l.sum.Import + ", and then this again"}
		}
		return err
	}
	if len(taken.Verdicts) != len(batch) {
		return errors.New("not all requests were answered")
	}
	l.sum.Hits += taken.Hits
	l.sum.LateHits.Add(taken.LateHits)
	for site, n := range taken.Sites {
		l.sum.Sites[site] += n
	}
	for i, verdict := range taken.Verdicts {
		switch verdict {
		case "taken":
		case "elsewhere":
			l.sum.skip("not_tracking", batch[i].file, batch[i].line)
		case "known", "nothing", "refused", "without_body", "other_sites":
			l.sum.skip(verdict, batch[i].file, batch[i].line)
		case "mixed_sites":
			l.sum.fault(verdict, batch[i].file, batch[i].line, "")
		default:
			l.sum.fault("not_parsed", batch[i].file, batch[i].line, "its address or its path is none")
		}
	}
	l.sent(int64(len(batch)))
	return nil
}

type logStatusCommand struct {
	config.Client
	JSON bool `name:"json" help:"Answer as one JSON object."`
}

// Run lists imports.
func (c *logStatusCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"import status", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		list, err := client.LogImports(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return o.json(list)
		}
		if len(list.Imports) == 0 {
			o.printf("no imports\n")
			return nil
		}
		rows := make([][]string, 0, len(list.Imports))
		for _, i := range list.Imports {
			state := i.State
			if i.Forgotten {
				state += ", forgotten"
			}
			rows = append(rows, []string{i.ID, state, i.From.UTC().Format(time.DateTime), i.To.UTC().Format(time.DateTime), number(i.Accepted), number(i.Delivered), number(i.Pending), number(i.Invalid), number(i.Dead), printable(i.Note)})
		}
		o.table([]string{"IMPORT", "STATE", "FROM (UTC)", "TO (UTC)", "HITS", "DELIVERED", "PENDING", "INVALID", "BURIED", "FILES"}, rows)
		return nil
	})
}

type logCompleteCommand struct {
	config.Client
	ID        string `arg:"" name:"import" help:"The import, as import status has it."`
	AllowLate bool   `name:"allow-late" help:"Also with hits that are older than hits already recorded for the same visitors."`
}

// Run completes an import.
func (c *logCompleteCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return call{"import complete", &c.Client, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		late, err := client.CompleteLogImport(ctx, c.ID, c.AllowLate, who(o.process))
		if errors.Is(err, admin.ErrLate) {
			return &failure{exitFailed, "import complete", errors.New(lateText(late)), "the same with --allow-late"}
		}
		if err != nil {
			return err
		}
		o.printf("%s  import %s is complete and is delivered\n", o.mark(toneOK), c.ID)
		return nil
	})
}

type logCancelCommand struct {
	config.Client
	ID string `arg:"" name:"import" help:"The import, as import status has it."`
}

// Run cancels an import.
func (c *logCancelCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return endLogImport(ctx, o, l, k, &c.Client, c.ID, "cancel", "is given up; nothing of it was delivered")
}

type logForgetCommand struct {
	config.Client
	ID string `arg:"" name:"import" help:"The import, as import status has it."`
}

// Run forgets the lines of an import.
func (c *logForgetCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	return endLogImport(ctx, o, l, k, &c.Client, c.ID, "forget", "is forgotten; its lines can be imported again, and Matomo may then record them twice")
}

func endLogImport(ctx context.Context, o *printer, l *config.Loader, k *kong.Context, c *config.Client, id, what, done string) error {
	return call{"import " + what, c, false}.reach(ctx, o, l, k, func(client *admin.Client) error {
		if err := client.EndLogImport(ctx, id, what, who(o.process)); err != nil {
			return err
		}
		o.printf("%s  import %s %s\n", o.mark(toneOK), id, done)
		return nil
	})
}
