package admin

// A MetricType is the word that the text format has for it.
type MetricType string

// The types in use. A histogram has buckets with the label le.
const (
	CounterType   MetricType = "counter"
	GaugeType     MetricType = "gauge"
	HistogramType MetricType = "histogram"
)

// A Metric is one family of samples.
type Metric struct {
	Name string
	Type MetricType
	Help string
}

// Table is every metric that Sluice exports, with the words that /metrics and
// docs/operations.md say about it. It is never changed at run time.
var Table = []Metric{
	{"sluice_build_info", GaugeType, "Always 1; the labels say which version runs and what built it."},

	{"sluice_config_last_reload_successful", GaugeType, "1 when the settings were read without a fault the last time, at the start included; 0 when the old ones stay in force."},
	{"sluice_config_last_reload_success_timestamp_seconds", GaugeType, "When settings were last read without a fault, in Unix seconds."},
	{"sluice_config_reloads_total", CounterType, "Readings of the settings after the start, by result: loaded, or failed (the old ones stay in force)."},

	{"sluice_proxy_hits_total", CounterType, "Hits by what became of them at arrival: stored (durable before the answer), passed (went straight to Matomo), refused (not stored, and the client was told so), dropped (not to be tracked, as Matomo would decide)."},
	{"sluice_proxy_collapsed_hits_total", CounterType, "Hits that matomo.js sent a second time, answered and not stored again (proxy.collapse-retries)."},
	{"sluice_proxy_requests_total", CounterType, "Requests on the public listener by status code."},
	{"sluice_proxy_request_seconds", HistogramType, "Time from a tracking request being read to its answer, in seconds."},
	{"sluice_proxy_bad_input_total", CounterType, "Requests that were refused for what they contain, by reason."},
	{"sluice_proxy_upstream_errors_total", CounterType, "Requests that Matomo gave no whole answer to, by cause: connect (no connection), timeout, busy (proxy.upstream-connections are taken), broken (the connection broke before the answer), cut (within it)."},

	{"sluice_proxy_connections", GaugeType, "Open connections on the public listener."},
	{"sluice_proxy_shed_connections_total", CounterType, "Connections that waited for a request and were closed, since all places (proxy.max-connections) were taken."},
	{"sluice_proxy_rate_limited_total", CounterType, "Requests that were answered 429, by whose rate they were beyond: address (proxy.address-rate), site (proxy.site-rate)."},
	{"sluice_proxy_access_log_dropped_total", CounterType, "Lines of the access log that were lost, since the file did not take them (in time)."},
	{"sluice_proxy_fast_requests_total", CounterType, "Tracking requests that took the short way, without Go's HTTP server."},
	{"sluice_proxy_handed_connections_total", CounterType, "Connections that were handed to Go's HTTP server, for anything but plain tracking."},

	{"sluice_proxy_cert_expiry_seconds", GaugeType, "Time left of the certificate of a name, in seconds: less than 0 when it has ended, 0 when there is none yet."},
	{"sluice_proxy_cert_renewals_total", CounterType, "Attempts to have a certificate from an authority, by result: obtained (a first one), renewed, failed (tried again later)."},
	{"sluice_proxy_cert_reloads_total", CounterType, "Certificate files that had changed, by result: loaded, or failed (the old ones stay in use)."},
	{"sluice_proxy_cert_fallbacks_total", CounterType, "TLS handshakes that got the self-signed certificate, since the authority has issued none."},
	{"sluice_proxy_asset_requests_total", CounterType, "Requests for Matomo's public files by how they were answered: hit (a current copy), stale (a copy that Matomo has not confirmed in time), miss (fetched first), pass (by Matomo itself)."},
	{"sluice_proxy_asset_age_seconds", GaugeType, "How long ago Matomo confirmed the copy that it has not confirmed for the longest, of those asked for in the last hour, by kind of file, in seconds."},
	{"sluice_proxy_asset_fetches_total", CounterType, "Looks at Matomo's files by what they led to."},
	{"sluice_proxy_asset_rejected_total", CounterType, "Answers of Matomo that were not taken for the file, by reason."},
	{"sluice_proxy_asset_replaced_total", CounterType, "Copies that were replaced by a new version."},
	{"sluice_proxy_asset_evicted_total", CounterType, "Copies that were forgotten because of assets.max-size."},
	{"sluice_proxy_asset_damaged_total", CounterType, "Copies that could not be read at the start and were set aside."},
	{"sluice_proxy_asset_disk_errors_total", CounterType, "Copies that could not be written to the disk; they are served from memory."},
	{"sluice_proxy_asset_files", GaugeType, "Files of which there is a copy."},
	{"sluice_proxy_asset_bytes", GaugeType, "What copies take on disk and in memory together, in bytes."},
	{"sluice_proxy_asset_pinned_files", GaugeType, "Files that are pinned to a version."},
	{"sluice_proxy_optout_requests_total", CounterType, "Requests for the opt-out and the like, by how they were answered: remembered (by Matomo, and kept for worse times), stale (from what was kept), pass (by Matomo)."},

	{"sluice_queue_accepted_hits_total", CounterType, "Hits stored durably since the start."},
	{"sluice_queue_settled_hits_total", CounterType, "Hits that were done with since the start: delivered, invalid (Matomo counted them so), or dead (buried)."},
	{"sluice_queue_dead_hits_total", CounterType, "Hits buried since the start, by reason."},
	{"sluice_queue_requeued_hits_total", CounterType, "Buried hits that wait again since the start, ordered by requeue or by import."},
	{"sluice_queue_imported_hits_total", CounterType, "Hits of exports that were taken since the start; they are among the accepted."},
	{"sluice_queue_dead_expired_hits_total", CounterType, "Buried hits that were removed since the start because queue.dead-retention was over, by reason. They stay among the dead of the sum."},
	{"sluice_queue_pending_hits", GaugeType, "Hits that wait for Matomo."},
	{"sluice_queue_pending_bytes", GaugeType, "Their size in bytes, as stored."},
	{"sluice_queue_imports", GaugeType, "Imports of access logs by state: open (takes hits, and nothing of it is delivered; days that it covers are held), complete (is delivered) or drained."},
	{"sluice_queue_import_pending_hits", GaugeType, "Hits of access logs that wait, those of an open import included; they are among the pending."},
	{"sluice_queue_import_requests_total", CounterType, "Requests of access logs that came for an import since the start, by what was found: taken, known (taken before), elsewhere (does not track), nothing (Matomo records nothing), refused, without_body, broken, other_sites or mixed_sites."},
	{"sluice_queue_oldest_age_seconds", GaugeType, "Age of the oldest waiting hit in seconds; 0 when none waits."},
	{"sluice_queue_sum_difference_hits", GaugeType, "accepted - delivered - invalid - dead - pending, with pending counted on its own: anything but 0 is a fault."},
	{"sluice_queue_sync_seconds", HistogramType, "Time of one synced commit to disk, in seconds."},
	{"sluice_queue_group_hits", HistogramType, "Hits that shared one commit."},
	{"sluice_queue_sync_errors_total", CounterType, "Commits or syncs that failed. The first one stops Sluice."},
	{"sluice_queue_damaged_blocks", GaugeType, "Blocks that could not be read and were set aside."},
	{"sluice_queue_missing_blocks", GaugeType, "Blocks that the numbering says there were and that are not there: acknowledged hits are lost."},
	{"sluice_queue_dead_hits", GaugeType, "Hits that are buried and kept now."},
	{"sluice_queue_disk_bytes", GaugeType, "Disk space that the queue takes, in bytes."},
	{"sluice_queue_free_bytes", GaugeType, "Free disk space above the reserve, in bytes."},

	{"sluice_sink_state", GaugeType, "1 on the state that Matomo is fed in (sending, holding, trying, paused) and its reason."},
	{"sluice_sink_state_since_seconds", GaugeType, "Since when that state holds, in Unix seconds."},
	{"sluice_sink_openings_total", CounterType, "How often feeding stopped, by the reason for which it did; manual counts pauses."},
	{"sluice_sink_batches_total", CounterType, "Requests to Matomo by verdict on its answer."},
	{"sluice_sink_batch_seconds", HistogramType, "Time Matomo took to answer a batch, in seconds."},
	{"sluice_sink_batch_hits", HistogramType, "Hits in a batch."},
	{"sluice_sink_lanes", GaugeType, "Requests to Matomo in flight."},
	{"sluice_sink_lanes_limit", GaugeType, "Requests to Matomo that may be in flight now; sink.lanes bounds it."},
	{"sluice_sink_batch_limit_hits", GaugeType, "Hits that the next request may have; sink.batch-hits bounds it."},
	{"sluice_sink_parked_hits", GaugeType, "Leased hits that wait on the disk behind a blocked one."},
	{"sluice_sink_uncertain_hits", GaugeType, "Hits of which it is not known yet whether Matomo has them."},
	{"sluice_sink_client_tokens_total", CounterType, "Tokens of clients that Matomo was asked about, each on one site, by verdict: good or refused."},
	{"sluice_sink_client_refused_hits_total", CounterType, "Hits with a token of their own that were counted as invalid without being sent, by reason: token (Matomo refused it just now), address (too many wrong tokens came from there), unasked (too much else had to be asked about)."},
	{"sluice_sink_unknown_total", CounterType, "Hits whose outcome stayed unknown and was decided by sink.on-unknown."},
	{"sluice_sink_reconciled_hits_total", CounterType, "Hits of unknown outcome that Matomo's database decided about, by what was found."},
	{"sluice_sink_reconcile_failures_total", CounterType, "Questions about hits of unknown outcome that Matomo's database did not answer; they are asked again."},
	{"sluice_sink_clock_offset_seconds", GaugeType, "Clock of Matomo's database minus ours, in seconds."},
	{"sluice_sink_eta_seconds", GaugeType, "Forecast of when no hit will wait any more, in seconds from now; NaN when it cannot be said."},

	{"sluice_gate_answers_total", CounterType, "Questions to the gate that were answered, by what the answer was."},
	{"sluice_gate_incomplete_site_days", GaugeType, "Days of sites that are over and not complete, those of unknown timezone included."},
	{"sluice_gate_oldest_incomplete_day_end_timestamp_seconds", GaugeType, "When the oldest of these days ended, in Unix seconds; NaN without one."},
	{"sluice_gate_reopened_total", CounterType, "Days of sites that got more hits after they were complete."},
	{"sluice_gate_forced_total", CounterType, "Days of sites that were let through although they were not complete, since the longest waiting time was over."},
	{"sluice_gate_invalidations_total", CounterType, "Orders to Matomo to make the reports of a day anew (gate.invalidate), by outcome."},
	{"sluice_gate_holds", GaugeType, "Holds in force: orders of somebody that days are not complete."},
	{"sluice_gate_sites", GaugeType, "Sites in Matomo's list as it was last read."},
	{"sluice_gate_sites_age_seconds", GaugeType, "Age of that list, in seconds."},

	{"process_cpu_seconds_total", CounterType, "CPU time used by the process, in seconds."},
	{"process_num_threads", GaugeType, "Threads of the process."},
	{"process_open_fds", GaugeType, "Open file descriptors."},
	{"process_max_fds", GaugeType, "Most file descriptors that may be open."},
	{"process_resident_memory_bytes", GaugeType, "Resident memory, in bytes, mapped files included."},
	{"process_resident_memory_anon_bytes", GaugeType, "Resident memory without mapped files, in bytes: what the process itself needs."},
	{"process_resident_memory_file_bytes", GaugeType, "Resident mapped files, in bytes; the system may take them back."},
	{"process_start_time_seconds", GaugeType, "Start of the process, in Unix seconds."},
	{"process_io_storage_read_bytes_total", CounterType, "Bytes read from storage."},
	{"process_io_storage_written_bytes_total", CounterType, "Bytes written to storage."},
	{"go_goroutines", GaugeType, "Goroutines."},
	{"go_memstats_heap_inuse_bytes", GaugeType, "Heap in use, in bytes."},
	{"go_memstats_sys_bytes", GaugeType, "Memory that Go took from the system, in bytes."},
	{"go_memlimit_bytes", GaugeType, "Soft limit on Go's memory, in bytes."},
	{"go_gc_cpu_seconds_total", CounterType, "CPU time of garbage collection, in seconds."},
	{"go_gomaxprocs", GaugeType, "Threads that run Go code at the same time, at most."},
}
