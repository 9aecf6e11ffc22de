package proxy

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"sluice/internal/hit"
)

// nullQueue stores nothing, so that only the proxy is measured.
type nullQueue struct{}

func (nullQueue) Append(context.Context, ...*hit.RequestSet) error { return nil }

// benchQuery is a page view as matomo.js sends it, 606 bytes long.
const benchQuery = "action_name=Page+%E2%80%93+%2F+9&idsite=4&rec=1&r=834909&h=18&m=37&s=27&url=https%3A%2F%2Fsite3.example.org%2Fshop%2Fitem%2F12345" +
	"&_id=00fdfeae8e903fd9&_idn=1&send_image=0&_refts=0&pv_id=cwDamt&pf_net=89&pf_srv=12&pf_tfr=69&pf_dm1=172" +
	"&uadata=%7B%22fullVersionList%22%3A%5B%5D%2C%22mobile%22%3Afalse%2C%22model%22%3A%22%22%2C%22platform%22%3A%22%22%2C%22platformVersion%22%3A%22%22%7D" +
	"&pdf=1&qt=0&realp=0&wma=0&fla=0&java=0&ag=0&cookie=1&res=390x844&urlref=https%3A%2F%2Ft.co%2Fabc&dimension1=member&dimension2=checkout&cvar=%7B%221%22%3A%5B%22a%22%2C%22b%22%5D%7D"

const benchHeaders = "Host: stats.example.org\r\nConnection: keep-alive\r\n" +
	"User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36\r\n" +
	"Accept: image/avif,image/webp,*/*;q=0.8\r\nAccept-Language: de-DE,de;q=0.9,en;q=0.8\r\nReferer: https://site3.example.org/\r\n" +
	"Accept-Encoding: gzip, deflate, br\r\nSec-CH-UA-Mobile: ?0\r\n"

var (
	benchGet  = "GET /matomo.php?" + benchQuery + " HTTP/1.1\r\n" + benchHeaders + "\r\n"
	benchPost = "POST /matomo.php HTTP/1.1\r\n" + benchHeaders +
		"Content-Type: application/x-www-form-urlencoded; charset=UTF-8\r\nContent-Length: " + itoa(len(benchQuery)) + "\r\n\r\n" + benchQuery
)

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// BenchmarkFast measures parsing, judging and answering without a socket.
func BenchmarkFast(b *testing.B) {
	for _, bm := range []struct{ name, raw string }{{"hit=get", benchGet}, {"hit=post", benchPost}} {
		b.Run(bm.name, func(b *testing.B) {
			e, _ := newEndpoint(nil)
			e.queue = nullQueue{}
			c := fastConn{s: &Server{cfg: *e.cfg, endpoint: *e, metrics: e.metrics}, buf: []byte(bm.raw)}
			c.end = len(c.buf)
			c.request.peerText = "192.0.2.1"
			b.SetBytes(int64(len(bm.raw)))
			b.ReportAllocs()
			for b.Loop() {
				h, result := parseHead(c.buf, &c.request, defaultBodyBytes)
				if result != headTaken {
					b.Fatal("declined")
				}
				a := c.handle(h)
				c.out = a.append(c.out[:0], c.request.origin, c.s.date(c.request.receivedAt), false)
			}
		})
	}
}

// BenchmarkCollapse measures what looking for retries costs, 64 connections at the
// same time. Only a hit in a body can be retried, and only by an image.
func BenchmarkCollapse(b *testing.B) {
	const beacon = "POST /matomo.php?" + benchQuery + " HTTP/1.1\r\n" + benchHeaders + "Content-Length: 0\r\n\r\n"
	image := strings.Replace(benchGet, "send_image=0", "send_image=1", 1)
	for _, hit := range []struct{ name, raw string }{{"image", image}, {"beacon", beacon}, {"post", benchPost}} {
		for _, setting := range []struct {
			name string
			*retries
		}{{"off", nil}, {"on", newRetries()}} {
			b.Run("hit="+hit.name+"/collapse="+setting.name, func(b *testing.B) {
				e, _ := newEndpoint(nil)
				e.queue, e.retries = nullQueue{}, setting.retries
				if e.retries != nil {
					e.retries.expect(retryKey{}) // so that there is something to look for
				}
				s := &Server{cfg: *e.cfg, endpoint: *e, metrics: e.metrics}
				b.SetParallelism(64 / runtime.GOMAXPROCS(0))
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					c := fastConn{s: s, buf: []byte(hit.raw)}
					c.end = len(c.buf)
					c.request.peerText = "192.0.2.1"
					for pb.Next() {
						h, _ := parseHead(c.buf, &c.request, defaultBodyBytes)
						a := c.handle(h)
						c.out = a.append(c.out[:0], c.request.origin, c.s.date(c.request.receivedAt), false)
					}
				})
			})
		}
	}
}

// BenchmarkLibrary measures the same requests through net/http's parser and our
// handler.
func BenchmarkLibrary(b *testing.B) {
	for _, bm := range []struct{ name, raw string }{{"hit=get", benchGet}, {"hit=post", benchPost}} {
		b.Run(bm.name, func(b *testing.B) {
			e, _ := newEndpoint(nil)
			e.queue = nullQueue{}
			s := &Server{cfg: *e.cfg, endpoint: *e, metrics: e.metrics, hard: context.Background()}
			s.bodies.limit.Store(defaultBodyMemory)
			reader := bufio.NewReader(nil)
			b.SetBytes(int64(len(bm.raw)))
			b.ReportAllocs()
			for b.Loop() {
				reader.Reset(strings.NewReader(bm.raw))
				r, err := http.ReadRequest(reader)
				if err != nil {
					b.Fatal(err)
				}
				r.RemoteAddr = "192.0.2.1:1234"
				s.ServeHTTP(httptest.NewRecorder(), r)
			}
		})
	}
}

// BenchmarkSocket measures one keep-alive connection on loopback, both ways in.
func BenchmarkSocket(b *testing.B) {
	for _, bm := range []struct {
		name, first, raw string
	}{
		{"way=fast/hit=get", "", benchGet},
		{"way=fast/hit=post", "", benchPost},
		{"way=library/hit=get", get("/-/livez"), benchGet},
		{"way=library/hit=post", get("/-/livez"), benchPost},
	} {
		b.Run(bm.name, func(b *testing.B) {
			r := newRig(b, func(c *Config) { c.Now = nil })
			r.endpoint.queue = nullQueue{}
			conn := r.dial(b)
			if err := conn.SetDeadline(time.Time{}); err != nil {
				b.Fatal(err)
			}
			reader := bufio.NewReader(conn)
			if bm.first != "" {
				io.WriteString(conn, bm.first)
				if _, err := readAnswer(reader, "GET"); err != nil {
					b.Fatal(err)
				}
			}
			raw := []byte(bm.raw)
			var answer [4096]byte
			b.ReportAllocs()
			for b.Loop() {
				if _, err := conn.Write(raw); err != nil {
					b.Fatal(err)
				}
				n, err := reader.Read(answer[:])
				if err != nil || !bytes.Contains(answer[:n], []byte(" 204 ")) {
					b.Fatalf("%v %q", err, answer[:n])
				}
			}
		})
	}
}
