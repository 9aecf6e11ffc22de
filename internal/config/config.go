// Package config holds the settings of Sluice: their names, defaults, allowed
// ranges and meanings, in one struct.
//
// # Contract
//
// A setting has one name in the flag, the file and the environment:
// --sink.batch-hits, sink.batch-hits and SLUICE_SINK_BATCH_HITS. A flag overrules
// the environment, the environment the file, the file the default. A name that is
// not known is a fault, wherever it stands. All faults are collected, and each
// names the setting, its value, where it came from and what is allowed. Secrets
// are never settings: the settings that end in -file name a file that holds one,
// and no fault and no listing shows what is in it.
//
// # Use
//
// A command line grammar embeds [Settings] or [Client], the few settings that
// tools need. A [Loader] gives the parser its mappers and its resolver, and has the
// faults after parsing. A Loader serves one parse and one goroutine; the settings it
// filled are plain data.
package config

import (
	"net/netip"
	"net/url"
	"time"
)

// Client is what a command needs that talks to a running Sluice.
type Client struct {
	Config  string `name:"config" placeholder:"FILE" help:"Settings file (YAML)." group:"Settings"`
	DataDir string `name:"data-dir" placeholder:"DIR" help:"Directory of the queue. Default: ./sluice-data, or what systemd names in STATE_DIRECTORY." group:"Settings"`
	// QueueKeyFile is here because tools read the queue themselves while no Sluice runs.
	QueueKeyFile string        `name:"queue.encryption-key-file" placeholder:"FILE" help:"File with the keys that encrypt what is kept of visitors: one a line, 32 bytes as 64 hex digits or in base64 (openssl rand -hex 32). The first encrypts, all decrypt. Default: no encryption." group:"Settings"`
	Admin        AdminSettings `embed:"" prefix:"admin." group:"Settings"`
}

// AdminSettings says where the private listener is and what opens it.
type AdminSettings struct {
	Listen       Address `name:"listen" default:"127.0.0.1:8444" help:"Private listener: health, metrics, queue control. Off the loopback it needs admin.token-file."`
	TokenFile    string  `name:"token-file" placeholder:"FILE" help:"File with the token that everything on the private listener but the health paths then asks for." reload:"yes"`
	CertFile     string  `name:"cert-file" placeholder:"FILE" help:"Certificate chain (PEM) of the private listener, which then speaks HTTPS only. Followed when it changes."`
	KeyFile      string  `name:"key-file" placeholder:"FILE" help:"Private key (PEM) with it."`
	ClientCAFile string  `name:"client-ca-file" placeholder:"FILE" help:"Authority (PEM) whose client certificates open the private listener as the token does."`
	CAFile       string  `name:"ca-file" placeholder:"FILE" help:"Authority (PEM) by which commands know the private listener. Default: they want the very certificate of admin.cert-file."`
	ClientCert   string  `name:"client-cert-file" placeholder:"FILE" help:"Client certificate (PEM) that commands show to the private listener."`
	ClientKey    string  `name:"client-key-file" placeholder:"FILE" help:"Private key (PEM) of that."`
}

// Settings is everything that can be set.
type Settings struct {
	Client
	AdminHosts []Host `name:"admin.hosts" placeholder:"NAME" help:"Further host names under which the private listener may be addressed. Addresses and localhost always may." group:"Settings"`

	EdgeID     string  `name:"edge.id" placeholder:"NAME" help:"Name of this edge. Default: the host's name." group:"Settings"`
	Listen     Address `name:"listen" default:":8443" help:"Public listener: HTTPS, or plain HTTP with tls.mode off." group:"Settings"`
	ListenHTTP Address `name:"listen-http" default:"off" help:"A second public listener in plain HTTP." group:"Settings"`

	Matomo   MatomoSettings   `embed:"" prefix:"matomo." group:"Matomo"`
	MySQL    MySQLSettings    `embed:"" prefix:"mysql." group:"Matomo"`
	TLS      TLSSettings      `embed:"" prefix:"tls." group:"Certificate"`
	Proxy    ProxySettings    `embed:"" prefix:"proxy." group:"Visitors"`
	Assets   AssetSettings    `embed:"" prefix:"assets." group:"Visitors"`
	Queue    QueueSettings    `embed:"" prefix:"queue." group:"Queue"`
	Import   ImportSettings   `embed:"" prefix:"import." group:"Queue"`
	Sink     SinkSettings     `embed:"" prefix:"sink." group:"Feeding Matomo"`
	Gate     GateSettings     `embed:"" prefix:"gate." group:"Archiving"`
	Shutdown ShutdownSettings `embed:"" prefix:"shutdown." group:"Process"`
	Log      LogSettings      `embed:"" prefix:"log." group:"Process"`
}

// LogSettings says what is logged and how.
type LogSettings struct {
	Level  Choice `name:"level" oneof:"debug,info,warn,error" default:"info" help:"Least important log line that is written: debug, info, warn or error." reload:"yes"`
	Format Choice `name:"format" oneof:"auto,text,json" default:"auto" help:"text, json, or auto: text on a terminal, json otherwise."`
}

// MatomoSettings says where Matomo is and repeats those of its own settings that
// decide what a hit means before Matomo sees it.
type MatomoSettings struct {
	URL             URL           `name:"url" placeholder:"URL" help:"Matomo's base address, for example https://stats.example.org/matomo. Required."`
	TokenFile       string        `name:"token-file" placeholder:"FILE" help:"File with a token_auth that may write (better: super user) on all sites. Without it nothing is sent."`
	CookieIgnore    string        `name:"cookie-ignore" default:"matomo_ignore" help:"Name of the opt-out cookie, as Matomo's ignore_visits_cookie_name."`
	ThirdParty      Choice        `name:"third-party-cookie" oneof:"off,on" default:"off" help:"on with Matomo's use_third_party_id_cookie = 1: the visitor's id is read from the third-party cookie, and answers set it."`
	CookieVisitor   string        `name:"cookie-visitor" default:"_pk_uid" help:"Name of the third-party visitor cookie, as Matomo's cookie_name."`
	CookiePath      string        `name:"cookie-path" placeholder:"PATH" help:"Path of the third-party visitor cookie, as Matomo's cookie_path. Default: none."`
	CookieDomain    string        `name:"cookie-domain" placeholder:"NAME" help:"Domain of the third-party visitor cookie, as Matomo's cookie_domain. Default: none."`
	CookieExpire    time.Duration `name:"cookie-expire" default:"9432h" min:"1s" max:"175200h" help:"Life of the third-party visitor cookie, as Matomo's cookie_expire, which is in seconds."`
	DoNotTrack      Choice        `name:"do-not-track" oneof:"off,on" default:"off" help:"on if Matomo's privacy settings heed Do Not Track: such visitors get no cookie, and the answer says so. Matomo decides about the hits either way."`
	BulkAuth        Choice        `name:"bulk-requires-auth" oneof:"off,on" default:"off" help:"on with Matomo's bulk_requests_require_authentication = 1: a bulk without a token is refused, and all hits of one travel with its token."`
	TrackingAuth    Choice        `name:"tracking-requires-auth" oneof:"on,off" default:"on" help:"off with Matomo's tracking_requests_require_authentication = 0, where nobody needs a token to say another address, place or time. Such hits are sent without any token, never with this edge's."`
	AddressMask     Choice        `name:"address-mask" oneof:"auto,0,1,2,3" default:"auto" help:"Bytes of an address that Matomo leaves out when it recognises visitors (its privacy settings, Also use the anonymised address when enriching visits): hits of such visitors are kept in order. auto asks Matomo's database, and is 2 where that does not say."`
	CustomTimestamp time.Duration `name:"custom-timestamp-age" default:"24h" min:"1s" max:"8760h" help:"Age up to which a hit may give its own time without a token, as Matomo's tracking_requests_require_authentication_when_custom_timestamp_newer_than."`
}

// MySQLSettings gives the optional, read-only account on Matomo's database.
type MySQLSettings struct {
	DSNFile      string `name:"dsn-file" placeholder:"FILE" help:"File with the account on Matomo's database, USER:PASSWORD@tcp(HOST:3306)/DATABASE. deploy/grants.sql says which rights it needs."`
	TablesPrefix string `name:"tables-prefix" default:"matomo_" help:"Prefix of Matomo's tables."`
	ReaderFile   string `name:"reader-dsn-file" placeholder:"FILE" help:"File with an account on the server of Matomo's [database_reader], to see how far it is behind. Default: the server of mysql.dsn-file is asked."`
}

// TLSSettings says where the certificate of the public listener comes from.
type TLSSettings struct {
	Mode          Choice   `name:"mode" oneof:"self-signed,files,off,acme" default:"self-signed" help:"self-signed, files, acme (from an authority, such as Let's Encrypt), or off (behind something else that ends TLS)."`
	MinVersion    Choice   `name:"min-version" oneof:"1.2,1.3" default:"1.2" help:"Least version of TLS: 1.2 or 1.3."`
	Domains       []Domain `name:"domains" placeholder:"NAME" help:"Names to have certificates for with tls.mode acme; clients that ask for another get that of the first. With tls.on-demand also *.NAME, which is every name with one label more."`
	OnDemand      Choice   `name:"on-demand" oneof:"off,on" default:"off" help:"on obtains the certificate of a name when a client first asks for it, for names in tls.domains only; off obtains all at the start."`
	ACMECA        string   `name:"acme-ca" placeholder:"URL" help:"Directory of the certificate authority. Default: Let's Encrypt's."`
	ACMERootFile  string   `name:"acme-root-file" placeholder:"FILE" help:"Root certificates (PEM) that the authority's own server is known by. Default: the system's."`
	ACMEStaging   Choice   `name:"acme-staging" oneof:"off,on" default:"off" help:"on asks Let's Encrypt's staging directory, whose certificates no browser trusts: for trying things out."`
	ACMEEmail     string   `name:"acme-email" placeholder:"ADDRESS" help:"Contact for the certificate authority."`
	ACMEEABFile   string   `name:"acme-eab-file" placeholder:"FILE" help:"File with the key id and the HMAC key (base64url) of an account that the authority's operator made, parted by a space or a line end."`
	ACMEChallenge Choice   `name:"acme-challenge" oneof:"any,http-01,tls-alpn-01" default:"any" help:"How the authority checks a name: http-01 (it asks port 80, which must lead to listen-http), tls-alpn-01 (port 443, to listen), or any that can be."`
	CertFile      string   `name:"cert-file" placeholder:"FILE" help:"Certificate chain (PEM) for tls.mode files."`
	KeyFile       string   `name:"key-file" placeholder:"FILE" help:"Private key (PEM) for tls.mode files."`
}

// ProxySettings says whom the public listener believes and what it bears.
type ProxySettings struct {
	Trusted             []Prefix         `name:"trusted" placeholder:"CIDR" help:"Proxies whose X-Forwarded-For and Forwarded are believed. Default: none." reload:"yes"`
	ProtocolTrusted     []Prefix         `name:"protocol-trusted" placeholder:"CIDR" help:"Balancers that begin each connection with a header of the PROXY protocol (version 1 or 2). It is required of them and read from nobody else. Default: none." reload:"yes"`
	MaskAddress         int              `name:"mask-ip" default:"0" min:"0" max:"4" help:"Bytes of a visitor's address that are set to zero before it is kept, 0 to 4, as Matomo's own anonymizing does it. What that costs: docs/operations.md, Masked addresses."`
	CollapseRetries     Choice           `name:"collapse-retries" oneof:"on,off" default:"on" help:"on stores a hit once that matomo.js sends a second time because it did not get the answer; what that means: docs/design.md, Retries of browsers."`
	Expose              Choice           `name:"expose" oneof:"all,tracking-only" default:"all" help:"all passes every other path to Matomo; tracking-only answers 404 there."`
	Host                Choice           `name:"host" oneof:"client,upstream" default:"client" help:"Host header of requests that are passed to Matomo: client (that the client asked, which Matomo compares with its trusted_hosts) or upstream (that of matomo.url, where a web server tells sites by it; Matomo then needs proxy_host_headers[])."`
	HTTP                Choice           `name:"http" oneof:"serve,redirect" default:"serve" help:"redirect sends what comes to listen-http to HTTPS, but for hits and health paths; serve serves it."`
	HTTPSPort           int              `name:"https-port" default:"443" min:"1" max:"65535" help:"Port to which proxy.http redirect sends."`
	MaxConnections      int              `name:"max-connections" default:"16384" min:"16" max:"1000000" help:"Connections at the same time; the limit on open files lowers it further." reload:"yes"`
	MaxHeader           ByteSize         `name:"max-header" default:"32KiB" min:"4KiB" max:"1MiB" help:"Size of a request's head." reload:"yes"`
	MaxBody             ByteSize         `name:"max-body" default:"8MiB" min:"64KiB" max:"64MiB" help:"Size of the body of a tracking request, as PHP's post_max_size." reload:"yes"`
	BodyMemory          ByteSize         `name:"body-memory" default:"64MiB" min:"8MiB" max:"16GiB" help:"Memory for large bodies of all tracking requests together." reload:"yes"`
	HeaderTimeout       time.Duration    `name:"header-timeout" default:"10s" min:"1s" max:"5m" help:"Time a client has for the TLS handshake and for a request's head." reload:"yes"`
	BodyTimeout         time.Duration    `name:"body-timeout" default:"30s" min:"1s" max:"1h" help:"Time a client has to send the body of a tracking request." reload:"yes"`
	WriteTimeout        time.Duration    `name:"write-timeout" default:"30s" min:"1s" max:"1h" help:"Time a client has to take the answer to a tracking request." reload:"yes"`
	IdleTimeout         time.Duration    `name:"idle-timeout" default:"2m" min:"1s" max:"1h" help:"Time a connection may stay open without a request." reload:"yes"`
	PerAddress          int              `name:"connections-per-address" default:"1000" min:"0" max:"1000000" help:"Connections that one address (IPv6: one /64) may have open, those of proxy.trusted apart; 0 is no limit." reload:"yes"`
	AddressRate         int              `name:"address-rate" default:"0" min:"0" max:"1000000" help:"Requests per second of one visitor's address (IPv6: one /64) that would store hits or be forwarded; beyond it the answer is 429. 0 is no limit." reload:"yes"`
	AddressBurst        int              `name:"address-burst" default:"0" min:"0" max:"1000000" help:"Requests of one address at once; 0 is ten seconds of proxy.address-rate." reload:"yes"`
	SiteRate            int              `name:"site-rate" default:"0" min:"0" max:"1000000" help:"Hits per second of one site; beyond it the answer is 429. 0 is no limit." reload:"yes"`
	SiteBurst           int              `name:"site-burst" default:"0" min:"0" max:"1000000" help:"Hits of one site at once; 0 is ten seconds of proxy.site-rate. A larger bulk is taken when nothing of it is used up." reload:"yes"`
	RateExempt          []Prefix         `name:"rate-exempt" placeholder:"CIDR" help:"Visitors' addresses to which no rate applies, and whose hits do not count for their site's: importers, servers that report for many. Default: none." reload:"yes"`
	AccessLog           Choice           `name:"access-log" oneof:"off,combined,json" default:"off" help:"Access log: off, combined (as Apache and nginx), or json (an object a line)." reload:"yes"`
	AccessLogFile       string           `name:"access-log-file" default:"-" placeholder:"FILE" help:"File of the access log; - is standard output." reload:"yes"`
	AccessLogMask       int              `name:"access-log-mask" default:"2" min:"0" max:"4" help:"Bytes of addresses that are set to zero in the access log, 0 to 4; at least proxy.mask-ip." reload:"yes"`
	AccessLogQuery      Choice           `name:"access-log-query" oneof:"off,on" default:"off" help:"on: the access log has queries, with tokens and passwords masked. off: it has none, nor those of referers." reload:"yes"`
	ResponseHeaders     []ResponseHeader `name:"response-headers" placeholder:"HEADER" help:"Headers of all answers, such as X-Frame-Options: DENY; they replace Matomo's of the same name. A comma parts two of them where the name of another and a colon follow. Default: none." reload:"yes"`
	HSTS                time.Duration    `name:"hsts" default:"0" min:"1s" max:"87600h" zero:"off" help:"How long browsers shall use HTTPS only for this host, such as 8760h; sent with answers over HTTPS. 0 is off." reload:"yes"`
	ForwardTimeout      time.Duration    `name:"forward-timeout" default:"30m" min:"1s" max:"24h" help:"Time a request that is passed to Matomo may take with its answer." reload:"yes"`
	ConnectTimeout      time.Duration    `name:"connect-timeout" default:"5s" min:"100ms" max:"1m" help:"Time to connect to Matomo, and to wait for one of proxy.upstream-connections; then the answer is 502, 503 or 504."`
	ResponseTimeout     time.Duration    `name:"response-timeout" default:"5m" min:"1s" max:"24h" help:"Time Matomo has to begin its answer to a request that was passed on; then the answer is 504."`
	StallTimeout        time.Duration    `name:"stall-timeout" default:"1m" min:"1s" max:"1h" help:"Time without progress after which a client that sends a body to Matomo or takes an answer is given up."`
	UpstreamConnections int              `name:"upstream-connections" default:"256" min:"1" max:"65536" help:"Requests that are passed to Matomo at the same time. As many more wait for proxy.connect-timeout; others are answered 503."`
}

// AssetSettings says how Matomo's public files are kept and served.
type AssetSettings struct {
	Cache      Choice        `name:"cache" oneof:"on,off" default:"on" help:"on serves matomo.js, containers and other public files of Matomo from copies, also while Matomo is down; off passes requests for them on."`
	Origin     URL           `name:"origin" placeholder:"URL" help:"Base address of the server whose files are served, where several have them. Default: matomo.url."`
	Revalidate time.Duration `name:"revalidate" default:"30s" min:"1s" max:"60s" help:"How old a copy may get before it is compared with the file again. A changed file reaches visitors within this time." reload:"yes"`
	MaxStale   time.Duration `name:"max-stale" default:"0" min:"1m" max:"8760h" zero:"no limit" help:"How old a copy may be that is served while Matomo is down; 0 is no limit." reload:"yes"`
	MaxSize    ByteSize      `name:"max-size" default:"256MiB" min:"16MiB" max:"16GiB" help:"What copies may take on disk and in memory together." reload:"yes"`
}

// QueueSettings bounds what the queue may use of the disk.
type QueueSettings struct {
	Reserve       ByteSize      `name:"reserve" default:"0" min:"64MiB" max:"1TiB" zero:"2 % of the disk, at least 512MiB" help:"Space that is left free on the disk: below it no hit is accepted any more. 0 is 2 % of the disk, at least 512MiB."`
	MaxSize       ByteSize      `name:"max-size" default:"0" min:"256MiB" max:"1PiB" zero:"none" help:"Most that the queue may take of the disk; 0 is no limit but the reserve."`
	DeadRetention time.Duration `name:"dead-retention" default:"0" min:"1h" max:"87600h" zero:"until they are sent again" help:"How long buried hits are kept, such as 720h; then they are removed and counted. 0 is until they are sent again."`
}

// ImportSettings is about imports of access logs.
type ImportSettings struct {
	Remember time.Duration `name:"remember" default:"9600h" min:"24h" max:"87600h" zero:"until import forget" help:"How long the lines of an import are known, so that they are not taken again. 9600h is 400 days; 0 is until sluice import forget."`
}

// SinkSettings says how Matomo is fed.
type SinkSettings struct {
	Lanes          int           `name:"lanes" default:"4" min:"1" max:"64" help:"Requests to Matomo at the same time, at most."`
	BatchHits      int           `name:"batch-hits" default:"400" min:"1" max:"2000" help:"Hits in one request to Matomo, at most."`
	BatchBytes     ByteSize      `name:"batch-bytes" default:"512KiB" min:"16KiB" max:"16MiB" help:"Size of one request to Matomo, at most; below its post_max_size."`
	OnUnknown      Choice        `name:"on-unknown" oneof:"resend,hold" default:"resend" help:"What to do with hits of which nobody can say whether Matomo has them: resend or hold."`
	ForwardHeader  string        `name:"forward-header" default:"X-Forwarded-For" placeholder:"NAME" help:"Header that tells Matomo the visitor's address with hits that bring their own token, so that a wrong token locks out the visitor and not this edge. One of Matomo's proxy_client_headers[], with this edge in proxy_ips[]. Empty is none."`
	HeaderGroups   []HeaderName  `name:"header-groups" placeholder:"NAME" help:"Headers of visitors' requests that plugins of Matomo read while tracking, at most 8. They are kept with a hit and sent with it; hits with different values travel in different requests."`
	RequestTimeout time.Duration `name:"request-timeout" default:"60s" min:"5s" max:"1h" help:"Time Matomo has to answer; longer than PHP's own limit, or outcomes become unknown."`
	ServerLimit    time.Duration `name:"server-limit" default:"30s" min:"1s" max:"1h" help:"How much longer than request-timeout a request may still run in PHP after the connection is gone. Hits of unknown outcome wait for both."`
	ProbeInterval  time.Duration `name:"probe-interval" default:"5s" min:"500ms" max:"10m" help:"Time between two looks at whether Matomo can take hits."`
}

// GateSettings says when a day is complete.
type GateSettings struct {
	Skew           time.Duration `name:"skew" default:"5s" min:"0s" max:"1h" help:"How far clocks may differ: a day counts as over that much later, and nothing is complete while Matomo's clock is farther off."`
	MaxHold        time.Duration `name:"max-hold" default:"0" min:"10m" max:"8760h" zero:"never" help:"How long after its end a day that is not complete is waited for; then archiving is let through, with an error in the log. 0 is for ever."`
	Scope          Choice        `name:"scope" oneof:"sites,all-only" default:"sites" help:"all-only answers for all sites together only, where plugins of Matomo move hits from one site to another."`
	DeadLetters    Choice        `name:"dead-letters" oneof:"report,block" default:"report" help:"report: buried hits are shown with a day, which may be complete without them; block: it is not."`
	QueuedTracking Choice        `name:"queued-tracking" oneof:"wait,ignore" default:"wait" help:"wait: no day is complete while Matomo's plugin QueuedTracking holds hits, or while it is on and nobody can see that; ignore: its queue does not count."`
	Invalidate     Choice        `name:"invalidate" oneof:"off,on" default:"off" help:"on: Matomo is told to make the reports of a day anew when hits came to it after it was complete. Needs a token with admin rights."`
	InvalidateAge  time.Duration `name:"invalidate-age" default:"720h" min:"24h" max:"87600h" help:"Age up to which that is done; below the age at which Matomo deletes its raw data."`
}

// ShutdownSettings bounds a graceful stop.
type ShutdownSettings struct {
	Delay time.Duration `name:"delay" default:"5s" min:"0s" max:"10m" help:"Time between being unready and no longer accepting, for balancers to notice."`
	Grace time.Duration `name:"grace" default:"20s" min:"0s" max:"1h" help:"Time that requests and batches in hand have to finish."`
}

// A URL is an absolute address; nil when it is not set.
type URL struct{ *url.URL }

// A Choice is one of a closed list of words.
type Choice string

// An Address is where to listen, HOST:PORT; empty when off.
type Address string

// A Host is a host name or an address, without a port.
type Host string

// A Domain is a host name, in lower case, or *. and one: every name with one label more.
type Domain string

// A HeaderName is the name of a header that is kept with hits, in lower case.
type HeaderName string

// A Prefix is a range of addresses.
type Prefix netip.Prefix
