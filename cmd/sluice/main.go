// Command sluice is a durable tracking edge for Matomo: it takes tracking hits,
// keeps them on disk before it answers, and feeds them to Matomo when Matomo can
// take them.
//
// Exit codes: 0 done, 1 failed, 64 the command line is wrong, 75 not now (no Sluice
// is running there), 77 not allowed, 78 the settings are wrong.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
	_ "time/tzdata" // a container without a system has no time zones

	"github.com/alecthomas/kong"

	"sluice/internal/config"
)

// Exit codes, as sysexits.h has them.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 64
	exitNotNow   = 75
	exitDenied   = 77
	exitSettings = 78
)

// A process is what a command may touch of the world, so that a test can run
// several in one.
type process struct {
	args    []string // without the program's name
	env     []string // in the form of [os.Environ]
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer
	signals <-chan os.Signal
	now     func() time.Time
	zone    *time.Location
	pid     int
}

func main() {
	signals := make(chan os.Signal, 2) // a second one may come before the first is handled
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	os.Exit(run(&process{
		args: os.Args[1:], env: os.Environ(), stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		signals: signals, now: time.Now, zone: time.Local, pid: os.Getpid(),
	}))
}

// commands is the grammar of the command line.
type commands struct {
	Color config.Choice `name:"color" oneof:"auto,always,never" default:"auto" help:"Colour on what commands print: auto, always or never."`

	Serve       serveCommand       `cmd:"" help:"Run the edge. Needs nothing but --matomo.url."`
	Check       checkCommand       `cmd:"" help:"Look at the settings and, with --online, at everything around."`
	Queue       queueCommands      `cmd:"" help:"Look at what is kept and at what was buried."`
	Import      importCommands     `cmd:"" help:"Access logs of Matomo into the queue, each line once."`
	Drain       drainCommands      `cmd:"" help:"See, pause and resume the feeding of Matomo."`
	Assets      assetsCommands     `cmd:"" help:"See, compare and pin the copies of Matomo's public files."`
	Gate        gateCommands       `cmd:"" help:"Is a day complete, so that Matomo may archive it?"`
	Reload      reloadCommand      `cmd:"" help:"Have the running Sluice read its settings again."`
	Healthcheck healthcheckCommand `cmd:"" help:"For containers: exit 0 when hits can be accepted, 1 when not."`
	Version     versionCommand     `cmd:"" help:"Print the version."`
}

const description = `A durable tracking edge for Matomo.

Every setting has one name: --sink.lanes here, sink.lanes in the file, SLUICE_SINK_LANES in the environment.`

// run carries out one command line and returns the exit code.
func run(p *process) int {
	loader, err := config.NewLoader(p.env)
	if err != nil {
		return report(p, err)
	}
	var grammar commands
	helped := false
	// Help is printed while parsing; what parsing says after that does not matter.
	parser, err := newParser(&grammar, loader, p, func(int) { helped = true })
	if err != nil {
		return report(p, err)
	}
	args := p.args
	if len(args) == 1 && args[0] == "--version" {
		args = []string{"version"}
	}
	parsed, err := parser.Parse(args)
	if helped {
		return exitOK
	}
	if err != nil {
		return report(p, usage(parser.Model.Node, args, err))
	}
	out := &printer{process: p, color: colorWanted(string(grammar.Color), p)}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if parsed.Command() != "serve" {
		go p.interrupt(ctx, cancel)
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	return report(p, parsed.Run(out))
}

// newParser makes the parser of one command line.
func newParser(grammar *commands, loader *config.Loader, p *process, exit func(int)) (*kong.Kong, error) {
	options := append(loader.Options(),
		kong.Name("sluice"), kong.Description(description), kong.Writers(p.stdout, p.stderr), kong.Exit(exit),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true, WrapUpperBound: 100}),
		kong.Bind(p, loader),
	)
	parser, err := kong.New(grammar, options...)
	if err != nil {
		return nil, fmt.Errorf("command line grammar: %w", err)
	}
	return parser, nil
}

// interrupt ends a command when a signal comes. It ends with ctx itself. Serve
// listens to signals in its own way.
func (p *process) interrupt(ctx context.Context, cancel context.CancelFunc) {
	select {
	case <-p.signals:
		signal.Reset(os.Interrupt, syscall.SIGTERM) // the next one ends also what waits for a terminal
		cancel()
	case <-ctx.Done():
	}
}

// A failure is an error that knows its exit code and what to try.
type failure struct {
	code int
	what string // what was being done, or with what
	err  error
	try  string // a command, or ""
}

func (f *failure) Error() string { return f.what + ": " + f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// errSilent ends a command with an exit code whose reason was printed already.
var errSilent = errors.New("said already")

// usage is the failure of a command line that cannot be parsed. It names the help of
// the command as far as there is one.
func usage(model *kong.Node, args []string, err error) error {
	try := "sluice"
	for _, arg := range args {
		i := slices.IndexFunc(model.Children, func(n *kong.Node) bool { return n.Name == arg })
		if i < 0 {
			break
		}
		model = model.Children[i]
		try += " " + arg
	}
	return &failure{exitUsage, "usage", err, try + " --help"}
}

// report prints an error as "sluice: WHAT: WHY" and "  try: COMMAND", and gives the
// exit code.
func report(p *process, err error) int {
	if err == nil {
		return exitOK
	}
	f, ok := errors.AsType[*failure](err)
	if !ok {
		f = &failure{code: exitFailed, what: "error", err: err}
	}
	if errors.Is(f.err, errSilent) {
		return f.code
	}
	if faults, ok := errors.AsType[config.Faults](f.err); ok {
		for _, fault := range faults {
			fmt.Fprintf(p.stderr, "sluice: %s: %v\n", f.what, fault)
		}
	} else {
		fmt.Fprintf(p.stderr, "sluice: %s: %v\n", f.what, f.err)
	}
	if f.try != "" {
		fmt.Fprintf(p.stderr, "  try: %s\n", f.try)
	}
	return f.code
}

// settingsFailure is the failure of settings that are wrong.
func settingsFailure(faults config.Faults, l *config.Loader) error {
	try := "sluice check"
	if l.Path() != "" {
		try += " --config " + l.Path()
	}
	return &failure{exitSettings, "settings", faults, try}
}
