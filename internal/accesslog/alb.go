package accesslog

// albTemplate is the access log of AWS Application Load Balancers (AWS: "Access logs for
// your Application Load Balancer"). Fields that AWS has added at its end are skipped.
func albTemplate() *template {
	opaque := func(name string) item { return item{name: name, until: []byte(" ")} }
	items := []item{
		{kind: fieldScheme, name: "type", until: []byte(" ")},
		{kind: fieldTime, name: "time", layout: isoParts, end: true, until: []byte(" ")},
		opaque("elb"),
		{kind: fieldEndpoint, name: "client:port", until: []byte(" ")},
		opaque("target:port"),
		opaque("request_processing_time"), opaque("target_processing_time"), opaque("response_processing_time"),
		{kind: fieldStatus, name: "elb_status_code", until: []byte(" ")},
		opaque("target_status_code"), opaque("received_bytes"),
		{name: "sent_bytes", until: []byte(` "`)},
		{kind: fieldRequest, name: "request", quoted: true, until: []byte(`" "`)},
		{kind: fieldHeader, name: "user_agent", header: []byte("user-agent"), quoted: true, until: []byte(`" `)},
		opaque("ssl_cipher"), opaque("ssl_protocol"),
		{name: "target_group_arn", until: []byte(` "`)},
		{name: "trace_id", quoted: true, until: []byte(`" "`)},
		{kind: fieldServer, name: "domain_name", quoted: true, until: []byte(`" "`)},
		{name: "chosen_cert_arn", quoted: true, until: []byte(`" `)},
		opaque("matched_rule_priority"),
		{kind: fieldTime, name: "request_creation_time", layout: isoParts, until: []byte(" ")},
		{name: "actions_executed", rest: true},
	}
	return &template{items: items, escape: escapeEither}
}
