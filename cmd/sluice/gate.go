package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"sluice/archivegate"
	"sluice/internal/admin"
	"sluice/internal/config"
)

type gateCommands struct {
	Check   gateCheckCommand   `cmd:"" help:"Is a day complete? Exit 0 if it is, 75 if not yet or not known."`
	Wait    gateWaitCommand    `cmd:"" help:"Wait until a day is complete."`
	Sites   gateSitesCommand   `cmd:"" help:"List sites; with --complete the numbers for core:archive --force-idsites."`
	Status  gateStatusCommand  `cmd:"" help:"The sites and their last day, for people."`
	Hold    gateHoldCommand    `cmd:"" help:"Keep days from being complete while something is imported that Sluice does not see."`
	Release gateReleaseCommand `cmd:"" help:"End a hold."`
	Rebuild gateRebuildCommand `cmd:"" help:"Count again what waits, and compare."`
	Lock    gateLockCommand    `cmd:"" help:"Run a command unless another server runs it already."`
}

// gateClient is where a gate command finds its gate.
type gateClient struct {
	config.Client
	URL string `name:"url" placeholder:"URL" help:"Address of another edge's private listener, such as http://edge-1:8444; its token is read from admin.token-file. Default: admin.listen."`
}

// dial makes the client.
func (c *gateClient) dial(o *printer, l *config.Loader, k *kong.Context) (*admin.Client, error) {
	if c.URL == "" {
		return dial(&c.Client, o.process, l, k)
	}
	c.Complete(o.env)
	token, faults := l.CheckClient(k, &c.Client)
	if len(faults) > 0 {
		return nil, settingsFailure(faults, l)
	}
	trust, err := adminClientTLS(&c.Admin)
	if err != nil {
		return nil, &failure{exitSettings, "settings", err, "sluice check"}
	}
	client, err := admin.NewClientAt(c.URL, token.Reveal(), trust)
	if err != nil {
		return nil, &failure{exitUsage, "--url " + c.URL, err, ""}
	}
	return client, nil
}

// failure gives an error of the gate its exit code. Whatever is not known for good is
// "not now".
func (c *gateClient) failure(what string, err error) error {
	if _, ok := errors.AsType[*failure](err); ok {
		return err
	}
	refused, ok := errors.AsType[*admin.RefusedError](err)
	switch {
	case ok && (refused.Code == http.StatusBadRequest || refused.Code == http.StatusNotFound):
		return &failure{exitUsage, what, err, refused.Problem.Try}
	case ok && refused.Code >= http.StatusInternalServerError:
		return &failure{exitNotNow, what, err, refused.Problem.Try}
	case ok && c.URL != "" && refused.Code == http.StatusUnauthorized:
		return &failure{exitDenied, what + " at " + c.URL, err, "--admin.token-file with that edge's token"}
	case c.URL != "" && errors.Is(err, admin.ErrNotRunning):
		return &failure{exitNotNow, what + " at " + c.URL, err, ""}
	}
	return remoteFailure(what, &c.Client, err)
}

// gateTimeout bounds one question. The gate may have to ask Matomo for its sites first.
const gateTimeout = time.Minute

// ask asks the gate once.
func ask(ctx context.Context, client *admin.Client, path string) (body []byte, yes bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, gateTimeout)
	defer cancel()
	return client.Gate(ctx, http.MethodGet, path, nil)
}

// gateQuestion is what is asked.
type gateQuestion struct {
	Date    string        `name:"date" default:"finished" placeholder:"DAY" help:"YYYY-MM-DD, yesterday, today (never complete), or finished: all days that are over. Each site has its own days."`
	MaxHold time.Duration `name:"max-hold" default:"0" min:"1m" max:"8760h" zero:"as gate.max-hold" placeholder:"TIME" help:"Let archiving through that long after a day's end, complete or not. Default: gate.max-hold."`
	JSON    bool          `name:"json" help:"Answer as JSON."`
}

func (q *gateQuestion) values() url.Values {
	values := url.Values{"date": {q.Date}}
	if q.MaxHold != 0 {
		values.Set("max_hold", q.MaxHold.String())
	}
	return values
}

// gateTarget is which sites are meant.
type gateTarget struct {
	Site string `name:"site" placeholder:"N" help:"One site, or all. Default: all."`
	All  bool   `name:"all" help:"All sites."`
}

func (t *gateTarget) site() (string, error) {
	if t.Site == "" || t.Site == "all" {
		return "all", nil
	}
	if id, err := strconv.ParseInt(t.Site, 10, 64); err != nil || id <= 0 || t.All {
		return "", &failure{exitUsage, "--site " + t.Site, errors.New("want one site's number, or all"), "sluice gate check --help"}
	}
	return t.Site, nil
}

type gateCheckCommand struct {
	gateClient
	gateTarget
	gateQuestion
	Quiet    bool          `name:"quiet" short:"q" help:"Print no answer."`
	Wait     time.Duration `name:"wait" default:"0" min:"1s" max:"168h" zero:"not at all" placeholder:"TIME" help:"Ask again for that long until the answer is yes."`
	Interval time.Duration `name:"interval" default:"10s" min:"1s" max:"1h" placeholder:"TIME" help:"How often, with --wait."`
}

// Run asks about one site or all.
func (c *gateCheckCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	client, err := c.dial(o, l, k)
	if err != nil {
		return err
	}
	site, err := c.site()
	if err != nil {
		return err
	}
	values := c.values()
	values.Set("site", site)
	deadline := o.now().Add(c.Wait)
	for {
		body, yes, err := ask(ctx, client, "complete?"+values.Encode())
		final := yes || c.Wait <= 0 || !o.now().Add(c.Interval).Before(deadline) || ctx.Err() != nil
		if err != nil {
			failed := c.failure("gate check", err)
			if f, ok := errors.AsType[*failure](failed); final || ok && f.code != exitNotNow && f.code != exitFailed {
				return failed
			}
		}
		if final {
			return c.show(o, site, body, yes)
		}
		select {
		case <-ctx.Done():
		case <-time.After(c.Interval):
		}
	}
}

func (c *gateCheckCommand) show(o *printer, site string, body []byte, yes bool) error {
	var err error
	switch {
	case c.Quiet:
	case c.JSON:
		_, err = o.stdout.Write(body)
	case site == "all":
		var sum archivegate.Summary
		if err = json.Unmarshal(body, &sum); err == nil {
			o.printf("%s\n", o.summary(&sum))
		}
	default:
		var a archivegate.Answer
		if err = json.Unmarshal(body, &a); err == nil {
			o.printf("%s\n", o.siteDay(&a))
		}
	}
	if err != nil {
		return &failure{exitNotNow, "gate check", fmt.Errorf("read the answer: %w", err), ""}
	}
	return yesOrNotNow(yes)
}

func yesOrNotNow(yes bool) error {
	if yes {
		return nil
	}
	return &failure{code: exitNotNow, what: "gate", err: errSilent}
}

// gateTones: only what is complete is well.
var gateTones = map[archivegate.State]tone{
	archivegate.StateComplete: toneOK, archivegate.StateForced: toneWarn, archivegate.StateOpen: toneBusy, archivegate.StateSealing: toneBusy,
	archivegate.StateDraining: toneBusy, archivegate.StateReopened: toneWarn, archivegate.StateUnknown: toneBad,
}

func (o *printer) gateState(s archivegate.State) string {
	t, ok := gateTones[s]
	if !ok {
		t = toneUnset
	}
	return o.paint(t, string(s))
}

// summary is one line about all sites.
func (o *printer) summary(s *archivegate.Summary) string {
	text := fmt.Sprintf("%s  %s of %s sites", o.gateState(s.State), number(int64(s.SitesComplete)), number(int64(s.Sites)))
	if s.SitesForced > 0 {
		text += fmt.Sprintf(" and %s let through", number(int64(s.SitesForced)))
	}
	text += ", " + dayWord(s.Date)
	if s.Pending > 0 {
		text += fmt.Sprintf(", %s hits wait", number(s.Pending))
	}
	text += o.about(s.ETASeconds)
	if len(s.Reasons) > 0 {
		text += ": " + printable(strings.Join(s.Reasons, "; "))
	} else if len(s.Waiting) > 0 {
		w := &s.Waiting[0]
		text += fmt.Sprintf(": first site %d%s on %s, %s", w.Site, named(w.Name), w.Date, printable(strings.Join(w.Reasons, "; ")))
	}
	return text
}

// siteDay is one line about one site.
func (o *printer) siteDay(a *archivegate.Answer) string {
	text := fmt.Sprintf("%s  site %d%s, %s", o.gateState(a.State), a.Site, named(a.Name), a.Date)
	if a.Zone != "" {
		text += " in " + printable(a.Zone)
	}
	text += o.about(a.ETASeconds)
	if a.Since != nil && a.Complete {
		text += ", since " + o.clock(*a.Since)
	}
	if len(a.Reasons) > 0 {
		text += ": " + printable(strings.Join(a.Reasons, "; "))
	}
	if a.Dead > 0 {
		text += fmt.Sprintf(" (%s buried)", number(a.Dead))
	}
	return text
}

func named(name string) string {
	if name == "" {
		return ""
	}
	return " (" + printable(name) + ")"
}

func dayWord(date string) string {
	if date == archivegate.Finished {
		return "all days that are over"
	}
	return date
}

func (o *printer) about(eta *float64) string {
	if eta == nil {
		return ""
	}
	return ", about " + o.clock(o.now().Add(seconds(*eta)))
}

type gateWaitCommand struct {
	gateClient
	gateTarget
	gateQuestion
	Quiet    bool          `name:"quiet" short:"q" help:"Print no answer."`
	For      time.Duration `name:"for" default:"12h" min:"1s" max:"168h" placeholder:"TIME" help:"For how long at most; then exit 75."`
	Interval time.Duration `name:"interval" default:"10s" min:"1s" max:"1h" placeholder:"TIME" help:"How often to ask."`
}

// Run is check --wait.
func (c *gateWaitCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	check := gateCheckCommand{gateClient: c.gateClient, gateTarget: c.gateTarget, gateQuestion: c.gateQuestion, Quiet: c.Quiet, Wait: c.For, Interval: c.Interval}
	return check.Run(ctx, o, l, k)
}

type gateSitesCommand struct {
	gateClient
	gateQuestion
	Complete bool          `name:"complete" help:"Print the numbers of the sites whose day is complete, with commas between them. Prints nothing, and exits with 75, when there is none: core:archive takes an empty list for all sites."`
	State    config.Choice `name:"state" oneof:"any,open,sealing,draining,reopened,complete,unknown,forced" default:"any" help:"Only sites in this state."`
}

// Run lists sites.
func (c *gateSitesCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	client, err := c.dial(o, l, k)
	if err != nil {
		return err
	}
	values := c.values()
	switch {
	case c.Complete && (c.State != "any" || c.JSON):
		return &failure{exitUsage, "--complete", errors.New("goes with neither --state nor --json"), "sluice gate sites --help"}
	case c.Complete:
		values.Set("state", "complete")
		values.Set("format", "ids")
	case c.State != "any":
		values.Set("state", string(c.State))
	}
	body, yes, err := ask(ctx, client, "sites?"+values.Encode())
	if err != nil {
		return c.failure("gate sites", err)
	}
	if !yes {
		return yesOrNotNow(false)
	}
	if c.Complete || c.JSON {
		if _, err := o.stdout.Write(body); err != nil {
			return &failure{exitNotNow, "gate sites", err, ""}
		}
		return nil
	}
	answers, err := siteAnswers(body)
	if err != nil {
		return &failure{exitNotNow, "gate sites", err, ""}
	}
	o.sites(answers)
	return nil
}

func siteAnswers(body []byte) ([]archivegate.Answer, error) {
	var out []archivegate.Answer
	decoder := json.NewDecoder(strings.NewReader(string(body)))
	for decoder.More() {
		var a archivegate.Answer
		if err := decoder.Decode(&a); err != nil {
			return nil, fmt.Errorf("read the answer: %w", err)
		}
		out = append(out, a)
	}
	return out, nil
}

func (o *printer) sites(answers []archivegate.Answer) {
	rows := make([][]string, len(answers))
	for i := range answers {
		a := &answers[i]
		waiting, when := "-", ""
		if a.Pending > 0 {
			waiting = number(a.Pending)
		}
		switch {
		case a.Complete && a.Since != nil:
			when = "since " + o.clock(*a.Since)
		case a.State == archivegate.StateOpen && a.End != nil:
			when = o.clock(*a.End) + " at the earliest"
		case a.ETASeconds != nil:
			when = o.clock(o.now().Add(seconds(*a.ETASeconds)))
		}
		rows[i] = []string{strconv.FormatInt(a.Site, 10), printable(a.Name), printable(a.Zone), a.Date.String(), string(a.State), waiting, when}
	}
	o.table([]string{"SITE ", "NAME", "ZONE", "DAY", "STATE", "WAITING ", "COMPLETE ABOUT"}, rows)
}

type gateStatusCommand struct {
	gateClient
	gateQuestion
}

// Run shows the sites with the holds and all that holds for all of them.
func (c *gateStatusCommand) Run(ctx context.Context, o *printer, l *config.Loader, k *kong.Context) error {
	client, err := c.dial(o, l, k)
	if err != nil {
		return err
	}
	var status struct {
		V       int                  `json:"v"`
		Summary archivegate.Summary  `json:"summary"`
		Sites   []archivegate.Answer `json:"sites"`
		Holds   []archivegate.Hold   `json:"holds"`
	}
	status.V = 1
	read := func(path string, into any) error {
		body, _, err := ask(ctx, client, path)
		if err == nil {
			err = json.Unmarshal(body, into)
		}
		return err
	}
	values := c.values()
	values.Set("site", "all")
	if err := read("complete?"+values.Encode(), &status.Summary); err != nil {
		return c.failure("gate status", err)
	}
	body, yes, err := ask(ctx, client, "sites?"+c.values().Encode())
	if refused, ok := errors.AsType[*admin.RefusedError](err); ok && refused.Code == http.StatusBadRequest {
		err, yes = nil, false // gate.scope is all-only
	}
	if err == nil && yes {
		status.Sites, err = siteAnswers(body)
	}
	if err != nil {
		return c.failure("gate status", err)
	}
	var holds archivegate.Holds
	if err := read("holds", &holds); err != nil {
		return c.failure("gate status", err)
	}
	status.Holds = holds.Holds
	if c.JSON {
		return o.json(status)
	}
	if len(status.Sites) > 0 {
		o.sites(status.Sites)
	}
	for _, h := range status.Holds {
		o.printf("%s  held by %s (%s) until %s%s\n", o.mark(toneWarn), printable(h.Name), printable(h.Who), o.clock(h.Until), heldWhat(&h))
	}
	o.printf("%s\n", o.summary(&status.Summary))
	if status.Summary.SitesComplete > 0 && !status.Summary.Complete {
		o.printf("complete ones:  sluice gate sites --complete --date %s\n", c.Date)
	}
	return nil
}

func heldWhat(h *archivegate.Hold) string {
	text := ""
	if h.Site != 0 {
		text += fmt.Sprintf(", site %d", h.Site)
	}
	if h.Date != nil {
		text += fmt.Sprintf(", from %s on", h.Date)
	}
	return text
}
