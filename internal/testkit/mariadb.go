package testkit

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/fstest"
	"time"
)

// How long the server may take to start or stop, and one statement to run. A
// loaded machine with two cores needs a tenth of it.
const (
	serverPatience    = 30 * time.Second
	statementPatience = 20 * time.Second
	portPatience      = 20 * time.Millisecond // between two looks at the port
)

// needMariaDB is what to do when a program is not there.
const needMariaDB = "MariaDB's server and client are needed (Debian: mariadb-server, mariadb-client); `make test` installs them"

//go:embed matomo.sql
var matomoTables string

// A MariaDB is a private server on loopback: its own port, socket and data, root
// without a password. It is tuned for speed: a power cut would lose what was
// committed, a kill does not.
type MariaDB struct {
	tb   testing.TB
	dir  string
	port int
	args []string
	user *syscall.Credential // nil = the test's own user

	mu   sync.Mutex
	cmd  *exec.Cmd
	gone chan struct{} // closed when cmd has ended
}

// StartMariaDB starts a server that ends with the test. args are added to its
// command line, for example "--max-connections=20". It takes part of a second, and a
// few times that for the first of a process. Without MariaDB on the machine it fails
// the test and says what to install.
func StartMariaDB(tb testing.TB, args ...string) *MariaDB {
	tb.Helper()
	return StartMariaDBIn(tb, "", args...)
}

// StartMariaDBIn is StartMariaDB with the data in a new folder below parent, for
// example on a [Tmpfs] that is to run full; "" = the system's temporary folder.
// User mysql must be able to reach it, and testing's TempDir is not such a place
// for root.
func StartMariaDBIn(tb testing.TB, parent string, args ...string) *MariaDB {
	tb.Helper()
	dir, err := os.MkdirTemp(parent, "sluice-mariadb-")
	if err != nil {
		tb.Fatalf("make a folder for MariaDB: %v", err)
	}
	db := &MariaDB{tb: tb, dir: dir, port: FreePort(tb), args: args}
	tb.Cleanup(db.cleanup)
	if os.Getuid() == 0 {
		db.user = mysqlUser(tb)
		if err := os.Chown(dir, int(db.user.Uid), int(db.user.Gid)); err != nil {
			tb.Fatalf("give MariaDB its folder: %v", err)
		}
	}
	db.prepare()
	db.Start()
	return db
}

// fresh is the data of a server that has just been installed, kept for the next servers
// of this process: installing takes several times as long as a start.
var fresh struct {
	sync.Mutex
	files fstest.MapFS // nil = not installed yet
}

// prepare makes the data that a new server starts with.
func (db *MariaDB) prepare() {
	db.tb.Helper()
	fresh.Lock()
	defer fresh.Unlock()
	var err error
	if fresh.files != nil {
		err = errors.Join(os.CopyFS(db.data(), fresh.files), db.giveAway())
	} else if err = db.install(); err == nil {
		fresh.files, err = readTree(db.data())
	}
	if err != nil {
		db.tb.Fatalf("prepare MariaDB's data: %v", err)
	}
}

func (db *MariaDB) install() error {
	cmd := exec.Command(program(db.tb, "mariadb-install-db"), "--no-defaults", "--datadir="+db.data(),
		"--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve", "--innodb-log-file-size=4M", "--tmpdir="+db.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: db.user}
	cmd.Dir = db.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// giveAway makes the server's user the owner of its data.
func (db *MariaDB) giveAway() error {
	if db.user == nil {
		return nil
	}
	return filepath.WalkDir(db.data(), func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, int(db.user.Uid), int(db.user.Gid)))
	})
}

// readTree reads all files below a folder.
func readTree(dir string) (fstest.MapFS, error) {
	files, tree := fstest.MapFS{}, os.DirFS(dir)
	err := fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := fs.ReadFile(tree, name)
		files[name] = &fstest.MapFile{Data: data, Mode: 0o600}
		return err
	})
	return files, err
}

// mysqlUser finds whom the server runs as when the test is root.
func mysqlUser(tb testing.TB) *syscall.Credential {
	tb.Helper()
	u, err := user.Lookup("mysql")
	if err != nil {
		tb.Fatalf("%v: %s", err, needMariaDB)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		tb.Fatalf("read user mysql: %v", err)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// program finds a program, also where only root's PATH leads.
func program(tb testing.TB, name string) string {
	tb.Helper()
	for _, candidate := range []string{name, "/usr/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path
		}
	}
	tb.Fatalf("%s not found: %s", name, needMariaDB)
	return ""
}

func (db *MariaDB) data() string   { return filepath.Join(db.dir, "data") }
func (db *MariaDB) socket() string { return filepath.Join(db.dir, "s") }

// Start starts the server after Stop or Kill, on the same port with the same
// data, and waits until it answers.
func (db *MariaDB) Start() {
	db.tb.Helper()
	args := append([]string{"--no-defaults", "--datadir=" + db.data(), "--socket=" + db.socket(),
		"--tmpdir=" + db.dir, // a server that starts removes the temporary tables that it finds, also another's
		"--pid-file=" + filepath.Join(db.dir, "pid"), "--log-error=" + filepath.Join(db.dir, "log"),
		"--bind-address=127.0.0.1", "--port=" + strconv.Itoa(db.port), "--skip-name-resolve", "--skip-log-bin",
		"--innodb-buffer-pool-size=32M", "--innodb-log-file-size=4M", "--innodb-flush-log-at-trx-commit=2",
		"--skip-innodb-doublewrite", "--character-set-server=utf8mb4"}, db.args...)
	cmd := exec.Command(program(db.tb, "mariadbd"), args...)
	cmd.Dir = db.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: db.user, Pdeathsig: syscall.SIGKILL}
	gone := make(chan struct{})
	started := make(chan error, 1)
	// It ends when the server does, which cleanup sees to. It keeps its thread so
	// that the kernel's parent-death signal means the test's process.
	go func() {
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // how it ended is seen in its log
		}
		close(gone)
	}()
	if err := <-started; err != nil {
		db.tb.Fatalf("start MariaDB: %v", err)
	}
	db.mu.Lock()
	db.cmd, db.gone = cmd, gone
	db.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), serverPatience)
	defer cancel()
	if err := db.waitReady(ctx, gone); err != nil {
		log, _ := os.ReadFile(filepath.Join(db.dir, "log")) // only to show it
		db.tb.Fatalf("%v; its log says:\n%s", err, log)
	}
}

// waitReady waits for the server's greeting.
func (db *MariaDB) waitReady(ctx context.Context, gone <-chan struct{}) error {
	for {
		conn, err := net.DialTimeout("tcp", db.Addr(), time.Second)
		if err == nil {
			_ = conn.SetReadDeadline(time.Now().Add(time.Second)) // a failure shows in Read
			n, _ := conn.Read(make([]byte, 1))                    // so does this one
			_ = conn.Close()
			if n == 1 {
				return nil
			}
		}
		select {
		case <-gone:
			return errors.New("MariaDB ended at once")
		case <-ctx.Done():
			return errors.New("MariaDB does not answer")
		case <-time.After(portPatience):
		}
	}
}

// Addr is the server's host and port.
func (db *MariaDB) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(db.port)) }

// Port is the server's TCP port.
func (db *MariaDB) Port() int { return db.port }

// DSN is the address in the form of Go's MySQL driver. An empty user is root.
func (db *MariaDB) DSN(user, password, database string) string {
	if user == "" {
		user = "root"
	}
	return fmt.Sprintf("%s:%s@tcp(%s)/%s", user, password, db.Addr(), database)
}

// Pid is the server's process id, 0 when it does not run.
func (db *MariaDB) Pid() int {
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.cmd == nil {
		return 0
	}
	return db.cmd.Process.Pid
}

// Stop ends the server in an orderly way and waits for that.
func (db *MariaDB) Stop() { db.tb.Helper(); db.end(syscall.SIGTERM) }

// Kill ends the server as a crash does and waits for that.
func (db *MariaDB) Kill() { db.tb.Helper(); db.end(syscall.SIGKILL) }

// Restart is Kill and Start.
func (db *MariaDB) Restart() {
	db.tb.Helper()
	db.Kill()
	db.Start()
}

// Pause freezes the server: connections are accepted by the kernel and never
// answered.
func (db *MariaDB) Pause() { db.tb.Helper(); db.signal(syscall.SIGSTOP) }

// Continue ends Pause.
func (db *MariaDB) Continue() { db.tb.Helper(); db.signal(syscall.SIGCONT) }

func (db *MariaDB) signal(s syscall.Signal) {
	db.tb.Helper()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.cmd == nil {
		db.tb.Fatalf("send MariaDB %v: it does not run", s)
	}
	if err := db.cmd.Process.Signal(s); err != nil {
		db.tb.Fatalf("send MariaDB %v: %v", s, err)
	}
}

func (db *MariaDB) end(s syscall.Signal) {
	db.tb.Helper()
	db.mu.Lock()
	defer db.mu.Unlock()
	if db.cmd == nil {
		return
	}
	_ = db.cmd.Process.Signal(s)               // it may have ended by itself
	_ = db.cmd.Process.Signal(syscall.SIGCONT) // a paused server would not hear SIGTERM
	select {
	case <-db.gone:
	case <-time.After(serverPatience):
		db.tb.Errorf("MariaDB did not end after %v", s)
		_ = db.cmd.Process.Kill() // as above
		<-db.gone
	}
	db.cmd = nil
}

func (db *MariaDB) cleanup() {
	db.Kill()
	if err := os.RemoveAll(db.dir); err != nil {
		db.tb.Errorf("remove MariaDB's folder: %v", err)
	}
}

// Exec runs SQL as root and fails the test when that fails. It returns the rows
// as the client prints them: columns split by tabs, NULL as text, no header.
func (db *MariaDB) Exec(sql string) [][]string {
	db.tb.Helper()
	rows, err := db.TryExec(sql)
	if err != nil {
		db.tb.Fatal(err)
	}
	return rows
}

// TryExec is Exec that returns the error instead.
func (db *MariaDB) TryExec(sql string) ([][]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), statementPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(db.tb, "mariadb"), "--no-defaults", "--batch", "--skip-column-names",
		"--default-character-set=utf8mb4", "--socket="+db.socket(), "--user=root")
	cmd.Stdin = strings.NewReader(sql)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("run SQL: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	var rows [][]string
	for line := range strings.Lines(out.String()) {
		rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "\t"))
	}
	return rows, nil
}

// The accounts that [MariaDB.CreateMatomo] makes.
const (
	ReaderUser     = "sluice" // reads only, every table of the database, no PROCESS
	ReaderPassword = "reader"
	WriterUser     = "matomo" // may change rows and tables, and has no SUPER, so that read_only stops it
	WriterPassword = "writer"
)

// CreateMatomo creates a database with the tables that probes and reconciling
// read, empty but for the four sites and the version, and the two accounts. The
// columns are those of Matomo 5 that Sluice may look at; there are no others.
// prefix is tables_prefix.
func (db *MariaDB) CreateMatomo(database, prefix string) {
	db.tb.Helper()
	db.Exec(fmt.Sprintf("CREATE DATABASE `%s`; USE `%s`;\n", database, database) +
		strings.NewReplacer("{prefix}", prefix, "{database}", database, "{version}", Version,
			"{reader}", ReaderUser, "{reader_password}", ReaderPassword,
			"{writer}", WriterUser, "{writer_password}", WriterPassword).Replace(matomoTables))
}
