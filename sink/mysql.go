package sink

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/go-sql-driver/mysql"
)

const (
	mysqlConnect = 2 * time.Second
	mysqlIO      = 3 * time.Second
	// mysqlStatement bounds a statement on the server, which goes on when the
	// client has left.
	mysqlStatement = 2 * time.Second
)

// A database is one read-only connection to Matomo's MySQL or MariaDB. It never
// holds a transaction open, which would keep metadata locked and block Matomo's
// own upgrades.
//
// Methods may be called from any goroutine; they take turns.
type database struct {
	config *mysql.Config
	prefix string
	name   string // the database's own name

	mu      sync.Mutex
	pool    *sql.DB
	conn    *sql.Conn // nil when not connected
	mariaDB bool
	version string
	user    string // CURRENT_USER(), for GRANT statements
}

// newDatabase checks a DSN; it connects at the first use.
func newDatabase(dsn, prefix string) (*database, error) {
	cfg, err := mysql.ParseDSN(dsn)
	if err != nil {
		return nil, errors.New("the MySQL DSN is not readable (want user:password@tcp(host:port)/database)")
	}
	if cfg.Net != "tcp" && cfg.Net != "unix" {
		// Without tcp(…) the driver takes what stands before the address, a password
		// perhaps, for the name of a network, and would show it in its errors.
		return nil, errors.New("the MySQL DSN names no tcp or unix address (want user:password@tcp(host:port)/database)")
	}
	if cfg.DBName == "" {
		return nil, errors.New("the MySQL DSN names no database")
	}
	if !plainName(prefix) {
		return nil, fmt.Errorf("tables prefix %q: want letters, digits and underscores", prefix)
	}
	cfg.Timeout, cfg.ReadTimeout, cfg.WriteTimeout = mysqlConnect, mysqlIO, mysqlIO
	cfg.ParseTime, cfg.Loc = true, time.UTC
	cfg.Logger = &mysql.NopLogger{}
	cfg.MultiStatements, cfg.AllowAllFiles = false, false
	connector, err := mysql.NewConnector(cfg)
	if err != nil {
		return nil, errors.New("the MySQL DSN is not usable")
	}
	pool := sql.OpenDB(connector)
	pool.SetMaxOpenConns(1)
	pool.SetMaxIdleConns(1)
	return &database{config: cfg, prefix: prefix, name: cfg.DBName, pool: pool}, nil
}

func plainName(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool {
		return r != '_' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
	}) < 0
}

func (d *database) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.conn != nil {
		d.conn.Close() // the pool's error is the one that counts
		d.conn = nil
	}
	return d.pool.Close()
}

// table quotes one of Matomo's tables.
func (d *database) table(name string) string { return "`" + d.prefix + name + "`" }

// query runs a statement and hands each row to scan. It connects when needed, and
// forgets a connection that broke.
func (d *database) query(ctx context.Context, scan func(*sql.Rows) error, text string, args ...any) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.connectLocked(ctx); err != nil {
		return err
	}
	err := d.queryLocked(ctx, scan, text, args...)
	if broken(err) {
		d.conn.Close() // already broken
		d.conn = nil
	}
	return err
}

func (d *database) queryLocked(ctx context.Context, scan func(*sql.Rows) error, text string, args ...any) error {
	rows, err := d.conn.QueryContext(ctx, text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (d *database) connectLocked(ctx context.Context) error {
	if d.conn != nil {
		return nil
	}
	conn, err := d.pool.Conn(ctx)
	if err != nil {
		return err
	}
	d.conn = conn
	scan := func(rows *sql.Rows) error { return rows.Scan(&d.version, &d.user) }
	err = d.queryLocked(ctx, scan, "SELECT VERSION(), CURRENT_USER()")
	d.mariaDB = strings.Contains(strings.ToLower(d.version), "mariadb")
	limit := fmt.Sprintf("SET SESSION max_execution_time=%d", mysqlStatement.Milliseconds())
	if d.mariaDB {
		limit = fmt.Sprintf("SET SESSION max_statement_time=%d", int(mysqlStatement.Seconds()))
	}
	for _, text := range []string{"SET SESSION lock_wait_timeout=1, innodb_lock_wait_timeout=2", limit} {
		if err == nil {
			_, err = conn.ExecContext(ctx, text)
		}
		if errorNumber(err) != 0 {
			err = nil // a server that does not know the limit is still worth asking
		}
	}
	if err != nil {
		conn.Close()
		d.conn = nil
	}
	return err
}

// one reads a single value; ok is false when there is no row or it is NULL.
func (d *database) one(ctx context.Context, text string, args ...any) (value string, ok bool, err error) {
	err = d.query(ctx, func(rows *sql.Rows) error {
		var v sql.NullString
		if err := rows.Scan(&v); err != nil {
			return err
		}
		value, ok = v.String, v.Valid
		return nil
	}, text, args...)
	return value, ok, err
}

// pairs reads rows of two columns.
func (d *database) pairs(ctx context.Context, text string, args ...any) (map[string]string, error) {
	out := map[string]string{}
	err := d.query(ctx, func(rows *sql.Rows) error {
		var name string
		var v sql.NullString
		if err := rows.Scan(&name, &v); err != nil {
			return err
		}
		out[strings.ToLower(name)] = v.String
		return nil
	}, text, args...)
	return out, err
}

// rows reads whatever columns there are; their names are in lower case. NULL is
// not in a row's map.
func (d *database) rows(ctx context.Context, text string) ([]map[string]string, error) {
	var out []map[string]string
	err := d.query(ctx, func(rows *sql.Rows) error {
		names, err := rows.Columns()
		if err != nil {
			return err
		}
		values, into := make([]sql.NullString, len(names)), make([]any, len(names))
		for i := range values {
			into[i] = &values[i]
		}
		if err := rows.Scan(into...); err != nil {
			return err
		}
		row := map[string]string{}
		for i, v := range values {
			if v.Valid {
				row[strings.ToLower(names[i])] = v.String
			}
		}
		out = append(out, row)
		return nil
	}, text)
	return out, err
}

// numbers reads a column of integers.
func (d *database) numbers(ctx context.Context, text string, args ...any) ([]int64, error) {
	var out []int64
	err := d.query(ctx, func(rows *sql.Rows) error {
		var n int64
		if err := rows.Scan(&n); err != nil {
			return err
		}
		out = append(out, n)
		return nil
	}, text, args...)
	return out, err
}

// errorNumber gives the server's error number, or 0.
func errorNumber(err error) uint16 {
	if e, ok := errors.AsType[*mysql.MySQLError](err); ok {
		return e.Number
	}
	return 0
}

// broken reports whether the connection cannot be used after err.
func broken(err error) bool {
	switch errorNumber(err) {
	case 0:
		return err != nil && !errors.Is(err, sql.ErrNoRows)
	case 1053, 1152, 1158, 1159, 1160, 1161, 1927, 2006, 2013, 4031:
		return true
	}
	return false
}

// A fault is a class of MySQL errors.
type fault uint8

const (
	faultNone        fault = iota
	faultUnreachable       // nobody answers; perhaps only us
	faultBusy              // too many connections, a lock
	faultReadOnly          // the server takes no writes
	faultSchema            // tables or columns are missing
	faultAccount           // our account or its privileges
	faultLimit             // a packet too large, a statement too slow
	faultOther
)

// classify sorts an error of the driver or the server.
func classify(err error) fault {
	switch errorNumber(err) {
	case 0:
	case 1040, 1203, 1226, 1205, 1213, 1317:
		return faultBusy
	case 1153, 1969, 3024:
		return faultLimit
	case 1129, 1053, 2006, 2013:
		return faultUnreachable
	case 1290, 1836, 1792, 1047, 3100, 1114, 1021, 3:
		return faultReadOnly
	case 1054, 1146, 1364:
		return faultSchema
	case 1044, 1045, 1049, 1142, 1143, 1227, 1698, 3118:
		return faultAccount
	default:
		return faultOther
	}
	if err == nil {
		return faultNone
	}
	_, network := errors.AsType[net.Error](err)
	if network || errors.Is(err, driver.ErrBadConn) || errors.Is(err, mysql.ErrInvalidConn) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return faultUnreachable
	}
	return faultUnreachable
}

// mysqlText words an error for people, without the account's password, which the
// driver does not put into errors.
func mysqlText(err error) string {
	if n := errorNumber(err); n != 0 {
		return fmt.Sprintf("MySQL %d", n)
	}
	return "MySQL does not answer"
}

// account gives the account as GRANT takes it.
func (d *database) account() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	name, host, _ := strings.Cut(d.user, "@")
	return "'" + name + "'@'" + host + "'"
}

func (d *database) serverVersion() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.version
}
