package main

import (
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"
)

// unitLines gives the values of a key of a unit, in their order.
func unitLines(t *testing.T, path, key string) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(read(t, path)) {
		if value, ok := strings.CutPrefix(line, key+"="); ok {
			out = append(out, strings.TrimSpace(value))
		}
	}
	return out
}

// unitCommand splits a command as systemd does for words without quotes, and puts the
// stand-ins into it. It refuses what systemd would read in another way than this.
func (s *scene) unitCommand(line string) []string {
	s.t.Helper()
	if strings.ContainsAny(line, `"'\%$;`) || !strings.HasPrefix(line, "/") {
		s.t.Fatalf("%s: want plain words and an absolute path", line)
	}
	argv := strings.Fields(line)
	if dir := path.Dir(argv[0]); dir != "/usr/bin" {
		s.t.Fatalf("%s: want /usr/bin, as in deploy/sluice.service", line)
	}
	argv[0] = filepath.Join(s.bin, path.Base(argv[0]))
	return argv
}

// start does what systemd does: after a condition that is not met nothing is started,
// which is no failure unless its exit code is 255.
func (s *scene) start(more map[string]string) (failed bool) {
	s.t.Helper()
	for _, line := range unitLines(s.t, unitPath, "ExecCondition") {
		if code, _ := s.run(s.unitCommand(line), "", more); code != 0 {
			return code == 255
		}
	}
	for _, line := range unitLines(s.t, unitPath, "ExecStart") {
		if code, _ := s.run(s.unitCommand(line), "", more); code != 0 {
			return true
		}
	}
	return false
}

func TestTheArchivingUnit(t *testing.T) {
	s := newScene(t)
	const asked, archived = "sluice gate check --all --date finished", "php /var/www/matomo/console core:archive --no-ansi"
	if s.start(nil) {
		t.Error("the unit fails with an open gate")
	}
	s.want("the gate is open", asked, archived)
	for _, code := range []string{"75", "64", "77"} {
		if s.start(map[string]string{"GATE_CHECK": code}) {
			t.Errorf("the unit fails when the gate exits with %s", code)
		}
		s.want("the gate exits with "+code, asked)
	}
	for key, want := range map[string]string{"Type": "oneshot", "User": "www-data", "TimeoutStartSec": "infinity"} {
		if got := unitLines(t, unitPath, key); !slices.Equal(got, []string{want}) {
			t.Errorf("%s=%v, want %s", key, got, want)
		}
	}
	// A oneshot has no other way to come again, and never runs twice at the same time.
	for key, want := range map[string]string{"OnBootSec": "10min", "OnUnitInactiveSec": "10min", "WantedBy": "timers.target"} {
		if got := unitLines(t, timerPath, key); !slices.Equal(got, []string{want}) {
			t.Errorf("%s=%v, want %s", key, got, want)
		}
	}
}

func TestSystemdTakesTheUnits(t *testing.T) {
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("SKIPPED: there is no systemd-analyze on this machine, so nobody has checked the units")
	}
	s := newScene(t)
	dir := t.TempDir()
	put := func(change func(string) string) []string {
		var files []string
		for _, p := range []string{unitPath, timerPath} {
			// It wants the commands to be there.
			text := strings.NewReplacer("=/usr/bin/sluice ", "="+s.bin+"/sluice ", "=/usr/bin/php ", "="+s.bin+"/php ").Replace(read(t, p))
			files = append(files, filepath.Join(dir, path.Base(p)))
			if err := os.WriteFile(files[len(files)-1], []byte(change(text)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return files
	}
	analyze := func(files []string) (string, error) {
		out, err := exec.CommandContext(t.Context(), verify, append([]string{"verify", "--man=no"}, files...)...).CombinedOutput()
		return string(out), err
	}
	if out, err := analyze(put(func(text string) string { return text })); err != nil || out != "" {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	if out, _ := analyze(put(func(text string) string { return strings.ReplaceAll(text, "ExecCondition=", "ExecConditions=") })); !strings.Contains(out, "ExecConditions") {
		t.Errorf("systemd-analyze verify does not see a wrong key: %q", out)
	}
}

// A cronJob is what the recipe for Kubernetes uses of one; any other key is a fault.
type cronJob struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Metadata   struct{ Name string }
	Spec       struct {
		Schedule                   string
		ConcurrencyPolicy          string                 `yaml:"concurrencyPolicy"`
		StartingDeadlineSeconds    int                    `yaml:"startingDeadlineSeconds"`
		SuccessfulJobsHistoryLimit int                    `yaml:"successfulJobsHistoryLimit"`
		FailedJobsHistoryLimit     int                    `yaml:"failedJobsHistoryLimit"`
		JobTemplate                struct{ Spec jobSpec } `yaml:"jobTemplate"`
	}
}

type jobSpec struct {
	BackoffLimit          *int `yaml:"backoffLimit"`
	ActiveDeadlineSeconds int  `yaml:"activeDeadlineSeconds"`
	PodFailurePolicy      struct {
		Rules []struct {
			Action      string
			OnExitCodes struct {
				ContainerName string `yaml:"containerName"`
				Operator      string
				Values        []int
			} `yaml:"onExitCodes"`
		}
	} `yaml:"podFailurePolicy"`
	Template struct {
		Spec struct {
			RestartPolicy                string `yaml:"restartPolicy"`
			AutomountServiceAccountToken *bool  `yaml:"automountServiceAccountToken"`
			SecurityContext              struct {
				FSGroup             int    `yaml:"fsGroup"`
				FSGroupChangePolicy string `yaml:"fsGroupChangePolicy"`
			} `yaml:"securityContext"`
			InitContainers []container `yaml:"initContainers"`
			Containers     []container
			Volumes        []struct {
				Name   string
				Secret *struct {
					SecretName  string `yaml:"secretName"`
					DefaultMode int    `yaml:"defaultMode"`
				}
				PersistentVolumeClaim *struct {
					ClaimName string `yaml:"claimName"`
				} `yaml:"persistentVolumeClaim"`
			}
		}
	}
}

type container struct {
	Name, Image     string
	Command, Args   []string
	Env             []struct{ Name, Value string }
	SecurityContext struct {
		RunAsUser                int   `yaml:"runAsUser"`
		AllowPrivilegeEscalation *bool `yaml:"allowPrivilegeEscalation"`
		ReadOnlyRootFilesystem   bool  `yaml:"readOnlyRootFilesystem"`
	} `yaml:"securityContext"`
	VolumeMounts []struct {
		Name      string
		MountPath string `yaml:"mountPath"`
		ReadOnly  bool   `yaml:"readOnly"`
	} `yaml:"volumeMounts"`
}

func readCronJob(t *testing.T) cronJob {
	t.Helper()
	var job cronJob
	decoder := yaml.NewDecoder(strings.NewReader(read(t, kubernetesPath)))
	decoder.KnownFields(true)
	if err := decoder.Decode(&job); err != nil {
		t.Fatal(err)
	}
	if err := decoder.Decode(&struct{}{}); err != io.EOF {
		t.Fatalf("%s has a second document: %v", kubernetesPath, err)
	}
	return job
}

// pod does what Kubernetes does: containers begin when all that prepare for them have
// ended with 0.
func (s *scene) pod(job *cronJob, more map[string]string) int {
	s.t.Helper()
	pod := job.Spec.JobTemplate.Spec.Template.Spec
	for _, c := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
		argv := append(slices.Clone(c.Command), c.Args...)
		if len(c.Command) == 0 { // the image's own
			argv = append([]string{"sluice"}, argv...)
		}
		argv[0] = filepath.Join(s.bin, argv[0])
		if code, _ := s.run(argv, "", more); code != 0 {
			return code
		}
	}
	return 0
}

func TestTheCronJob(t *testing.T) {
	s, job := newScene(t), readCronJob(t)
	const asked = "sluice gate check --all --date=finished --wait=45m --url=http://sluice:8444"
	if code := s.pod(&job, nil); code != 0 {
		t.Errorf("exit %d with an open gate", code)
	}
	s.want("the gate is open", asked, "php /var/www/html/console core:archive --no-ansi")
	if code := s.pod(&job, map[string]string{"GATE_CHECK": "75"}); code != 75 {
		t.Errorf("exit %d, want the gate's", code)
	}
	s.want("the gate exits with 75", asked)

	spec := job.Spec
	if job.APIVersion != "batch/v1" || job.Kind != "CronJob" || spec.ConcurrencyPolicy != "Forbid" || spec.StartingDeadlineSeconds < 60 {
		t.Errorf("%+v", job)
	}
	// After 75 nothing is tried again before the next hour.
	of := spec.JobTemplate.Spec
	if of.BackoffLimit == nil || *of.BackoffLimit != 0 || of.Template.Spec.RestartPolicy != "Never" {
		t.Errorf("backoffLimit %v, restartPolicy %q; want 0 and Never", of.BackoffLimit, of.Template.Spec.RestartPolicy)
	}
	if rules := of.PodFailurePolicy.Rules; len(rules) != 1 || rules[0].Action != "FailJob" || rules[0].OnExitCodes.Operator != "In" ||
		!slices.Equal(rules[0].OnExitCodes.Values, []int{exitNotNow}) || rules[0].OnExitCodes.ContainerName != of.Template.Spec.InitContainers[0].Name {
		t.Errorf("podFailurePolicy %+v, want FailJob for %d of the gate", rules, exitNotNow)
	}
	if got, least := time.Duration(of.ActiveDeadlineSeconds)*time.Second, 45*time.Minute+4*time.Hour; got < least {
		t.Errorf("activeDeadlineSeconds is %s, want the wait and hours for archiving", got)
	}
}

// TestTheCronJobCanReadItsToken follows the token from the secret to the setting.
func TestTheCronJobCanReadItsToken(t *testing.T) {
	pod := readCronJob(t).Spec.JobTemplate.Spec.Template.Spec
	volumes := map[string]bool{}
	mode := 0
	for _, v := range pod.Volumes {
		volumes[v.Name] = true
		if v.Secret != nil {
			mode = v.Secret.DefaultMode
		}
	}
	// Sluice refuses a file that others may read; its user reads it as one of the group.
	if mode != 0o440 || pod.SecurityContext.FSGroup == 0 {
		t.Errorf("secret of mode %04o with fsGroup %d, want 0440 and a group", mode, pod.SecurityContext.FSGroup)
	}
	gate := pod.InitContainers[0]
	for _, c := range append(slices.Clone(pod.InitContainers), pod.Containers...) {
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s mounts %s, which is no volume", c.Name, m.Name)
			}
		}
	}
	if len(gate.Env) != 1 || gate.Env[0].Name != "SLUICE_ADMIN_TOKEN_FILE" || !strings.HasPrefix(gate.Env[0].Value, gate.VolumeMounts[0].MountPath+"/") || gate.VolumeMounts[0].Name != "token" {
		t.Errorf("environment %v with %v, want the token's file", gate.Env, gate.VolumeMounts)
	}
	if key := path.Base(gate.Env[0].Value); !strings.Contains(read(t, kubernetesPath), "--from-file="+key+"=") {
		t.Errorf("the comment does not make a secret with the key %s", key)
	}
}
