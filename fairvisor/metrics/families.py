"""Every metric family, declared once: name, help, labels, kind.

Names of the original implementation are kept where there was one. Label values come from the bundle or from a closed
vocabulary, never from a client: no paths, no keys. What counts in a family is in `counting.py` and its users; this
module only declares.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Final, NamedTuple


class Family(NamedTuple):
    """One metric family: its name, one sentence of help, its label names, and `counter`, `gauge` or `histogram`.

    A family without labels is shown from the start, and so is one with the values `known` of its only label, or with
    all combinations of the values `each_known` of its labels; of others only `# HELP` and `# TYPE` are, until something
    happened.
    """

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: str = "counter"
    known: tuple[str, ...] = ()
    each_known: tuple[tuple[str, ...], ...] = ()

    def from_start(self) -> Iterator[tuple[str, ...]]:
        """Give the label values of the series that are shown from the start."""
        return product(*(self.each_known or ((self.known,) if self.labels else ())))


# What was decided

DECISIONS: Final = Family(
    "fairvisor_decisions_total",
    "Requests decided, by the policy and rule that decided (the tightest one on an allow).",
    ("policy", "rule", "action", "reason"),
)
LIMIT_RESULTS: Final = Family(
    "fairvisor_limit_results_total", "Answers of single limits.", ("policy", "rule", "mode", "result")
)
SHADOW_REJECTS: Final = Family(
    "fairvisor_shadow_would_reject_total",
    "Requests a shadow policy would have rejected.",
    ("policy", "rule", "reason"),
)
KILL_SWITCH_HITS: Final = Family(
    "fairvisor_kill_switch_hits_total",
    "Requests rejected by a kill switch, by the descriptor it looks at.",
    ("descriptor",),
)
DESCRIPTOR_MISSING: Final = Family(
    "fairvisor_descriptor_missing_total",
    "Requests that lacked a descriptor a rule counts by.",
    ("policy", "rule", "descriptor"),
)
REPEATS: Final = Family(
    "fairvisor_repeated_requests_total", "Requests recognised by id and not charged again."
)
# Where a request can get an error instead of a decision: the paths that decide, and what else is served.
USAGE_ENDPOINT: Final = "/v1/usage"
DEBUG_ENDPOINT: Final = "/v1/debug"
HEALTH_ENDPOINT: Final = "health"  # /livez, /readyz and /metrics, wherever they are
ADMIN_ENDPOINT: Final = "admin"
PROXY_ENDPOINT: Final = "proxy"
OTHER_ENDPOINT: Final = "other"  # no such path, or a request that was not read as far as its path
UNDECIDED: Final = Family(
    "fairvisor_undecided_requests_total",
    "Requests that got an error instead of a decision, by where they asked and why.",
    ("endpoint", "reason"),
    each_known=(
        (
            "/v1/decision",
            "/v1/decision/",
            "/v1/ext-authz/",
            "/v1/auth-request",
            "/v1/auth-request/once",
            "/v1/auth-url",
            "/v1/forward-auth",
            USAGE_ENDPOINT,
            DEBUG_ENDPOINT,
            HEALTH_ENDPOINT,
            ADMIN_ENDPOINT,
            PROXY_ENDPOINT,
            OTHER_ENDPOINT,
        ),
        (
            "malformed",
            "header_missing",
            "untrusted_peer",
            "wrong_secret",
            "not_found",
            "method_not_allowed",
            "timeout",
            "body_too_large",
            "head_too_large",
            "busy",
            "proxy_loop",
        ),
    ),
)
UNDECIDED_LAST: Final = Family(
    "fairvisor_undecided_last_timestamp_seconds",
    "When a request last got an error instead of a decision, in seconds since the epoch.",
    ("endpoint", "reason"),
    "gauge",
)
BEARER_REFUSED: Final = Family(
    "fairvisor_bearer_tokens_refused_total", "Bearer tokens that had no claims, by reason.", ("reason",)
)
DURATION: Final = Family(
    "fairvisor_decision_duration_seconds",
    "Time from a request's arrival to its answer, of one request in sixteen; without the wait of a throttle.",
    kind="histogram",
)

# What limits have left, and what they saw

REMAINING: Final = Family(
    "fairvisor_ratelimit_remaining",
    "The least that any key of a rule had left in the last 30 s, in requests or units of its budget.",
    ("policy", "rule", "mode"),
    "gauge",
)
TOKENS_REMAINING: Final = Family(
    "fairvisor_tokens_remaining",
    "The least that any key of an LLM rule had left in the last 30 s, in tokens of the minute or the day.",
    ("policy", "rule", "mode"),
    "gauge",
)
TOKENS_RESERVED: Final = Family(
    "fairvisor_tokens_reserved_total", "LLM tokens reserved before requests.", ("policy", "rule")
)
TOKENS_CONSUMED: Final = Family(
    "fairvisor_tokens_consumed_total",
    "LLM tokens really used, as reservations were settled.",
    ("policy", "rule"),
)
TOKENS_UNUSED: Final = Family(
    "fairvisor_token_reservation_unused_total",
    "LLM tokens given back because less was used than reserved.",
    ("policy", "rule"),
)
TOKENS_EXCESS: Final = Family(
    "fairvisor_token_reservation_excess_total",
    "LLM tokens charged afterwards because more was used than reserved.",
    ("policy", "rule"),
)
TOKENS_ACCURACY: Final = Family(
    "fairvisor_token_estimation_accuracy_ratio",
    "LLM tokens used per token reserved, over all settled reservations; 1 is a perfect estimate.",
    ("policy", "rule"),
    "gauge",
)
ESTIMATE_MISSING: Final = Family(
    "fairvisor_estimate_missing_total", "LLM requests without a readable body or hint.", ("policy", "rule")
)
SETTLEMENTS: Final = Family(
    "fairvisor_settlements_total",
    "Reservations offered for settlement, by what came of it.",
    ("result",),
    known=("settled", "failed_upstream", "charged_only", "repeated", "forged", "expired"),
)
LOOPS: Final = Family("fairvisor_loop_detected_total", "Requests found to be loops.", ("policy", "action"))
LOOPS_SKIPPED: Final = Family(
    "fairvisor_loop_skipped_total",
    "Requests not checked for loops because no body was supplied.",
    ("policy",),
)
BREAKER_TRIPS: Final = Family("fairvisor_circuit_trips_total", "Times a circuit breaker opened.", ("policy",))
CIRCUIT_STATE: Final = Family(
    "fairvisor_circuit_state",
    "1 while a circuit breaker of the policy is open (of any key), else 0.",
    ("policy", "mode"),
    "gauge",
)

# The reverse proxy

USAGE_MISSING: Final = Family(
    "fairvisor_usage_missing_total",
    "Responses whose usage could not be found, so that the reservation stands, by reason.",
    ("reason",),
    known=("no_usage", "encoding", "client_gone", "not_recorded"),
)
STREAMS_ENDED: Final = Family(
    "fairvisor_streams_ended_total", "Streams that were ended at their limit, by how.", ("how",),
    known=("graceful_close", "error_chunk"),
)  # fmt: skip
UPSTREAM_FAILURES: Final = Family(
    "fairvisor_upstream_failures_total",
    "Requests that an upstream failed: not reached, closed, too late, or no HTTP.",
    ("upstream", "reason"),
)
UPSTREAM_EJECTIONS: Final = Family(
    "fairvisor_upstream_ejections_total",
    "Times an upstream was left out after failing again and again.",
    ("upstream",),
)

# The bundle in force

KILL_SWITCHES: Final = Family(
    "fairvisor_kill_switch_active", "Kill switches in force now, 0 while they are overridden.", kind="gauge"
)
SHADOW_POLICIES: Final = Family(
    "fairvisor_shadow_mode_active", "Policies whose own mode is shadow.", kind="gauge"
)
GLOBAL_SHADOW: Final = Family(
    "fairvisor_global_shadow_active", "1 while every policy acts as a shadow policy.", kind="gauge"
)
SWITCH_OVERRIDE: Final = Family(
    "fairvisor_kill_switch_override_active", "1 while kill switches are overridden.", kind="gauge"
)
BUNDLE_VERSION: Final = Family(
    "fairvisor_bundle_version", "bundle_version of the active bundle, 0 when there is none.", kind="gauge"
)
BUNDLE_POLICIES: Final = Family("fairvisor_bundle_policies", "Policies of the active bundle.", kind="gauge")
BUNDLE_LOADED: Final = Family(
    "fairvisor_bundle_loaded_timestamp_seconds",
    "When the active bundle came into force, in seconds since the epoch; 0 when there is none.",
    kind="gauge",
)
BUNDLE_EXPIRES: Final = Family(
    "fairvisor_bundle_expires_timestamp_seconds",
    "expires_at of the active bundle, where it has one.",
    kind="gauge",
)
CONFIG_INFO: Final = Family(
    "fairvisor_config_info", "The active bundle: its version and the SHA-256 of its bytes.",
    ("version", "sha256"), "gauge",
)  # fmt: skip
BUILD_INFO: Final = Family(
    "fairvisor_build_info", "This program: its version and that of Python.", ("version", "python"), "gauge"
)
RELOADS: Final = Family(
    "fairvisor_reloads_total",
    "Bundles offered after the first, by what came of it.",
    ("result",),
    known=("applied", "unchanged", "invalid", "refused", "unreadable"),
)
DEBUG_SESSIONS: Final = Family(
    "fairvisor_debug_sessions_total",
    "Requests to open or end a debug session, by what came of it: throttled ones were not looked at.",
    ("result",),
    known=("opened", "closed", "wrong_secret", "throttled"),
)

# The process and its memory

SLOTS: Final = Family(
    "fairvisor_table_slots",
    "Slots of the counter table by content: times are token buckets and loop counts, totals budgets and nonces.",
    ("kind",),
    "gauge",
    ("free", "held", "times", "totals", "expired"),
)
SLOTS_SIZE: Final = Family("fairvisor_table_size_slots", "Slots of the counter table.", kind="gauge")
EVICTIONS: Final = Family(
    "fairvisor_table_evictions_total",
    "Token buckets forgotten early to make room, least recently used first.",
)
NONCE_EVICTIONS: Final = Family(
    "fairvisor_table_nonce_evictions_total",
    "Nonces of settlements forgotten early to make room: as old a reservation gives nothing back any more.",
)
WINDOW_FULL: Final = Family(
    "fairvisor_table_window_full_total", "Operations that found no room in the counter table."
)
TABLE_FULL: Final = Family(
    "fairvisor_table_full_total",
    "Operations that found no room in the counter table, by the limit that asked.",
    ("policy", "rule"),
)
SERIES_USED: Final = Family("fairvisor_series_used", "Cells that metrics take in the segment.", kind="gauge")
SERIES_SIZE: Final = Family("fairvisor_series_size", "Cells that the segment has for metrics.", kind="gauge")
SERIES_LOST: Final = Family(
    "fairvisor_series_overflows_total", "Series that found no cell: what they count is missing here."
)
SEGMENT_BYTES: Final = Family(
    "fairvisor_segment_size_bytes", "Size of the shared-memory segment.", kind="gauge"
)
SNAPSHOT: Final = Family(
    "fairvisor_snapshot_timestamp_seconds",
    "When the last snapshot was written, in seconds since the epoch; 0 when there is none.",
    kind="gauge",
)
FAULTS: Final = Family(
    "fairvisor_fault",
    "1 while something beside the decisions does not work; decisions go on.",
    ("part",),
    "gauge",
    ("state_dir", "snapshot", "bundle_file", "audit_log", "admin"),
)
WORKERS: Final = Family("fairvisor_workers", "Workers that take connections.", kind="gauge")
CONNECTIONS: Final = Family("fairvisor_connections", "Open connections of all workers.", kind="gauge")
THROTTLES_WAITING: Final = Family(
    "fairvisor_throttles_waiting", "Answers that are being held by a throttle, of all workers.", kind="gauge"
)
THROTTLES_NOT_HELD: Final = Family(
    "fairvisor_throttles_not_held_total", "Throttled answers that went at once because every seat was taken."
)
GIVEN_UP: Final = Family(
    "fairvisor_requests_given_up_total",
    "Unfinished requests ended because their worker kept too many bytes (FAIRVISOR_MAX_KEPT_BYTES).",
)
WORKER_RESTARTS: Final = Family(
    "fairvisor_worker_restarts_total", "Workers that ended without being asked to and were replaced."
)
THREAD_FAILURES: Final = Family(
    "fairvisor_thread_failures_total",
    "Steps of background threads that failed and were taken again; the log says why.",
    ("thread",),
    known=("leader", "bundle-follower", "reporter", "admin-keeper"),
)
AUDIT_EVENTS: Final = Family("fairvisor_audit_events_total", "Enforcement events that the audit log counts.")
AUDIT_LINES: Final = Family("fairvisor_audit_lines_total", "Lines written to the audit log.")
AUDIT_MERGED: Final = Family(
    "fairvisor_audit_merged_total",
    "Events that share a line of the audit log with others of their policy, rule and reason, without their key.",
)
AUDIT_DROPPED: Final = Family(
    "fairvisor_audit_dropped_total",
    "Events that could not be written to the audit log: a worker stopped, or too many waited.",
)
LOG_LINES_LOST: Final = Family(
    "fairvisor_log_lines_lost_total",
    "Log lines that standard error did not take: it is not read, or its disk is full.",
)

FAMILIES: Final = (
    DECISIONS,
    DURATION,
    LIMIT_RESULTS,
    SHADOW_REJECTS,
    KILL_SWITCH_HITS,
    DESCRIPTOR_MISSING,
    REPEATS,
    UNDECIDED,
    UNDECIDED_LAST,
    BEARER_REFUSED,
    REMAINING,
    TOKENS_REMAINING,
    TOKENS_RESERVED,
    TOKENS_CONSUMED,
    TOKENS_UNUSED,
    TOKENS_EXCESS,
    TOKENS_ACCURACY,
    ESTIMATE_MISSING,
    SETTLEMENTS,
    USAGE_MISSING,
    STREAMS_ENDED,
    UPSTREAM_FAILURES,
    UPSTREAM_EJECTIONS,
    LOOPS,
    LOOPS_SKIPPED,
    BREAKER_TRIPS,
    CIRCUIT_STATE,
    KILL_SWITCHES,
    SHADOW_POLICIES,
    GLOBAL_SHADOW,
    SWITCH_OVERRIDE,
    BUNDLE_VERSION,
    BUNDLE_POLICIES,
    BUNDLE_LOADED,
    BUNDLE_EXPIRES,
    CONFIG_INFO,
    BUILD_INFO,
    RELOADS,
    DEBUG_SESSIONS,
    SLOTS,
    SLOTS_SIZE,
    EVICTIONS,
    NONCE_EVICTIONS,
    WINDOW_FULL,
    TABLE_FULL,
    SERIES_USED,
    SERIES_SIZE,
    SERIES_LOST,
    SEGMENT_BYTES,
    SNAPSHOT,
    FAULTS,
    WORKERS,
    CONNECTIONS,
    THROTTLES_WAITING,
    THROTTLES_NOT_HELD,
    GIVEN_UP,
    WORKER_RESTARTS,
    THREAD_FAILURES,
    AUDIT_EVENTS,
    AUDIT_LINES,
    AUDIT_MERGED,
    AUDIT_DROPPED,
    LOG_LINES_LOST,
)
