"""Every setting of Fairvisor Edge, declared once: name, type, default, one sentence.

A field of `Settings` named `client_ip_header` is the variable `FAIRVISOR_CLIENT_IP_HEADER` and the
`serve` flag `--client-ip-header`; a flag wins over the variable, an empty variable counts as unset. A secret has no
flag, since every user can read the command lines of a machine: `FAIRVISOR_DECISION_TOKEN_FILE` and
`--decision-token-file` name a file that holds it. How one is read is in `setting_reading.py`.
`declared()` lists them for the command line and for the reference in the documentation. A wrong value
stops the start with one line that names the variable, the value and what is allowed, and so does a
setting whose feature does not exist yet: nothing that somebody set is ignored.

This is the only module that knows environment variables, and it reads them from the mapping it is given.
It knows nothing of what the settings do.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

from fairvisor import setting_values as read
from fairvisor.errors import SettingsError
from fairvisor.secret_values import Secret, secret
from fairvisor.setting_reading import FILE_SUFFIX, PREFIX, Declared, setting, value_of
from fairvisor.setting_values import IN_STATE_DIR, Bind, Network

__all__ = [
    "FILE_SUFFIX",
    "PREFIX",
    "PROXY",
    "Bind",
    "Declared",
    "Network",
    "Settings",
    "declared",
    "environment",
]


PROXY: Final = "reverse_proxy"
VERSION_ORDER: Final = "version"
FILE_ORDER: Final = "file"
_PROXY_HEALTH: Final = "127.0.0.1:9090"

_NOT_YET: Final = tuple(
    PREFIX + name
    for name in (
        "SAAS_URL",
        "EDGE_ID",
        "EDGE_TOKEN",
        "CONFIG_POLL_INTERVAL",
        "HEARTBEAT_INTERVAL",
        "EVENT_FLUSH_INTERVAL",
    )
)


@dataclass(frozen=True)
class Settings:
    """The parsed settings. A field that has no value is None; sizes are in bytes."""

    config_file: Path | None = setting("", read.path, "The policy bundle: a JSON file.")
    mode: str = setting(
        "decision_service",
        read.one_of("decision_service", PROXY),
        "Answer a gateway's questions, or proxy to an upstream.",
    )
    bind: tuple[Bind, ...] = setting(
        "127.0.0.1:8080",
        read.binds,
        "Where to listen: host:port, [IPv6]:port, unix:/path, fd://n; comma-separated.",
    )
    health_bind: Bind | None = setting(
        "",
        read.bind,
        "Where /livez, /readyz and /metrics are, and nothing else; unset: beside the decisions.",
    )
    admin_bind: Bind | None = setting(
        "auto",
        read.admin_bind,
        "Where operators ask and act: auto (a unix socket in the state directory), none, unix:/path, or host:port, "
        "which needs an admin token.",
    )
    admin_token: Secret = setting(
        "", secret(32), "What operators must send over TCP: 32 characters or more.", secret=True
    )
    admin_tokens_file: Path | None = setting(
        "",
        read.path,
        "Tokens of several operators, for TCP: a file with a line `name token` for each, read again when it changes.",
    )
    edge_url: str | None = setting(
        "",
        read.edge_url,
        "For commands only: the edge they ask, http://host:port or unix:/path; unset: the admin listener.",
    )
    backend_url: tuple[str, ...] | None = setting(
        "",
        read.backends,
        "Where the proxy forwards to: http://host:port, https://host:port or unix:/path; several are balanced.",
    )
    backend_ca: Path | None = setting(
        "", read.path, "Certificate authorities (PEM) that verify https upstreams; unset: the system's."
    )
    backend_connect_timeout_ms: int = setting(
        "5000", read.integer(10, 600_000), "How long connecting to an upstream may take, in milliseconds."
    )
    backend_timeout_ms: int = setting(
        "300000",
        read.integer(10, 86_400_000),
        "How long an upstream may take to begin its answer, in milliseconds.",
    )
    backend_idle_timeout_ms: int = setting(
        "300000",
        read.integer(10, 86_400_000),
        "How long an answer, or a WebSocket, may stand still, in milliseconds.",
    )
    backend_total_timeout_ms: int = setting(
        "0",
        read.integer(0, 86_400_000),
        "How long a request and its answer may take in all, in milliseconds; 0: as long as they take. A WebSocket is "
        "not counted.",
    )
    backend_keep_ms: int = setting(
        "30000",
        read.integer(0, 3_600_000),
        "How long an unused connection to an upstream is kept, in milliseconds.",
    )
    worker_processes: int | None = setting(
        "auto",
        read.processes,
        "Worker processes; auto: one for each processor that this process may use, by its affinity and the CPU quota "
        "of its cgroups, rounded up.",
    )
    lame_duck_s: int = setting(
        "0",
        read.integer(0, 60),
        "How long decisions go on after SIGTERM while /readyz answers 503 already, in seconds: as long as senders of "
        "requests take to notice. A second SIGTERM ends it.",
    )
    worker_class: str = setting("edge", read.text, "edge, meinheld or any gunicorn WSGI worker class.")
    max_connections: int = setting(
        "4096", read.integer(1, 1_000_000), "Open connections per worker; more wait."
    )
    max_waiting: int = setting(
        "10000",
        read.integer(0, 1_000_000),
        "Throttled requests held per worker; the rest go at once, counted.",
    )
    max_body: int = setting("1m", read.size(0, 64 << 20), "How much of a request's body counts, in bytes.")
    max_head: int = setting(
        "64k",
        read.size(16 << 10, 1 << 20),
        "How large a request's head may be, in bytes; a larger one is answered with 431.",
    )
    max_kept_bytes: int = setting(
        "24m",
        read.size(1 << 20, 1 << 40),
        "How many bytes of unfinished requests (heads and bodies that are not whole, requests that wait for others or "
        "for an upstream) a worker keeps; beyond it those that keep most for longest are answered with 503.",
    )
    body_min_rate: int = setting(
        "500",
        read.integer(0, 1_000_000_000),
        "How many bytes of a body must reach the proxy in a second, after as long as a head may take; 0: no least "
        "rate. A slower body is answered with 408.",
    )
    header_timeout_ms: int = setting(
        "10000", read.integer(10, 600_000), "How long a request head may take to arrive, in milliseconds."
    )
    idle_timeout_ms: int = setting(
        "300000", read.integer(10, 86_400_000), "How long a connection may stay unused, in milliseconds."
    )
    shared_dict_size: int = setting(
        "48m",
        read.size(1 << 16, 1 << 40),
        "Size of the shared-memory segment that holds the counters, in bytes.",
    )
    table_full: str = setting(
        "allow",
        read.one_of("allow", "reject"),
        "What happens to a new key that finds no room in the segment (counted).",
    )
    state_dir: Path = setting(
        "/var/lib/fairvisor",
        read.path,
        "Where snapshots of the counters and the last good bundle are kept: they outlive a reboot.",
    )
    instance: str = setting(
        "", read.instance, "Names the segment; the default is made from the bind address."
    )
    allow_status: int = setting(
        "204",
        lambda value: int(read.one_of("200", "204")(value)),
        "The status of an allow, except at Envoy's endpoints and /v1/auth-url, where it is 200.",
    )
    fail_open: bool = setting("false", read.yes_or_no, "Turn a failure of the engine into a counted allow.")
    ratelimit_headers: str = setting(
        "both", read.one_of("both", "draft", "legacy", "off"), "Which RateLimit headers answers carry."
    )
    ask_usage: bool = setting(
        "true",
        read.yes_or_no,
        "Ask for the usage of streams in OpenAI's form when the client did not. An upstream at mistral.ai is never "
        "asked: it refuses the question, and tells the usage unasked.",
    )
    llm_headers: bool = setting(
        "false",
        read.yes_or_no,
        "Tell what is left of LLM token limits in the headers of OpenAI and Anthropic too.",
    )
    trusted_peers: tuple[Network, ...] = setting(
        read.PRIVATE_NETWORKS,
        read.networks,
        "Who may describe a request; others get 403, unix sockets never do.",
    )
    decision_token: Secret = setting(
        "",
        secret(16),
        "When set, decision and usage calls must carry it in X-Fairvisor-Token: 16 characters or more.",
        secret=True,
    )
    client_ip_header: str = setting(
        "x-forwarded-for",
        read.client_header,
        "Which header of a trusted peer names the client's address: x-forwarded-for, forwarded, none, hops:<n> (that "
        "entry from the right of X-Forwarded-For), or one that holds a single address, such as cf-connecting-ip.",
    )
    trusted_proxies: tuple[Network, ...] = setting(
        "none", read.networks, "Proxies in front of the gateway, skipped when the client is looked for."
    )
    ipv6_prefix: int = setting(
        "64", read.integer(32, 128), "The prefix length by which IPv6 clients are counted."
    )
    trusted_hints: frozenset[str] = setting(
        "none",
        read.hints,
        f"Headers that the gateway sets and that may be believed: {', '.join(read.HINTS)}.",
    )
    request_id: bool = setting(
        "false",
        read.yes_or_no,
        "Let X-Fairvisor-Request-Id count also at the endpoints of gateways other than nginx.",
    )
    geoip_db: Path | None = setting("", read.path, "MaxMind-format country database, for ip:country.")
    asn_db: Path | None = setting("", read.path, "MaxMind-format ASN database, for ip:asn and ip:type.")
    asn_types: Path | None = setting("", read.path, "ASN-to-type table, for ip:type.")
    tor_exits: Path | None = setting("", read.path, "List of Tor exit addresses, one a line, for ip:tor.")
    jwks_file: Path | None = setting("", read.path, "JWKS file with the keys that verify bearer tokens.")
    jwks_url: str | None = setting("", read.url, "JWKS URL with the keys that verify bearer tokens.")
    jwks_issuer: str | None = setting("", read.text, "What iss must be in tokens verified with JWKS keys.")
    jwks_audience: tuple[str, ...] | None = setting(
        "", read.names, "What aud must contain one of in tokens verified with JWKS keys, comma-separated."
    )
    jwks_ca: Path | None = setting(
        "", read.path, "Certificate authorities (PEM) that verify JWKS URLs; unset: the system's."
    )
    jwks_networks: tuple[Network, ...] = setting(
        "none",
        read.networks,
        "Networks, in addition to the public ones, where the URLs of `jwt_issuers` in a bundle may be.",
    )
    jwt_leeway_s: int = setting(
        "60",
        read.integer(0, 3600),
        "How long after `exp`, and before `nbf`, a bearer token still counts, in seconds: as long as your applications "
        "accept it.",
    )
    bundle_signing_key: Secret = setting(
        "",
        secret(32),
        "When set, a bundle must be signed with this key (HMAC-SHA256): 32 characters or more.",
        secret=True,
    )
    bundle_order: str = setting(
        VERSION_ORDER,
        read.one_of(VERSION_ORDER, FILE_ORDER),
        "Which bundle is the newer one: version, the greater bundle_version; file, whatever the bundle file holds when "
        "it changes, older versions too.",
    )
    debug_session_secret: Secret = setting(
        "",
        secret(16),
        "When set, POST /v1/debug/session with this secret opens a debug session: 16 characters or more.",
        secret=True,
    )
    audit_log: str | None = setting(
        "", read.text, "The audit log, a file; - is standard output; unset: audit.log in the state directory."
    )
    audit_keys: str = setting(
        "hashed",
        read.one_of("hashed", "plain"),
        "Whether the audit log shows keys as keyed hashes or as they are.",
    )
    audit_key: Secret = setting(
        "",
        secret(32),
        "When set, the chain of the audit log is made with this key (HMAC-SHA256), so that who can write the file "
        "cannot make it anew: 32 characters or more.",
        secret=True,
    )
    log_format: str = setting(
        "console", read.one_of("console", "json"), "Log lines for people, or one JSON object a line."
    )
    log_level: str = setting(
        "info",
        read.one_of("debug", "info", "warning", "error"),
        "How much is logged; allowed requests never are.",
    )

    @property
    def unix_trusted(self) -> bool:
        """Whether peers on unix sockets may describe requests: in proxy mode only if peers are trusted at all."""
        return self.mode != PROXY or bool(self.trusted_peers)

    @property
    def admin_address(self) -> Bind | None:
        """Where the admin listener is; None: nowhere."""
        if self.admin_bind == IN_STATE_DIR:
            return Bind(path=str(self.state_dir / f"{self.instance}.admin"))
        return self.admin_bind

    @property
    def audit_path(self) -> Path | None:
        """Where audit lines are appended; None: standard output."""
        if self.audit_log == "-":
            return None
        return Path(self.audit_log) if self.audit_log else self.state_dir / "audit.log"

    @classmethod
    def load(cls, environ: Mapping[str, str], flags: Mapping[str, str]) -> Settings:
        """Settings from the environment and the command line's flags (by field name).

        Raises:
            SettingsError: a value is wrong, or a setting belongs to something that does not exist yet.

        """
        for variable in _NOT_YET:
            if environ.get(variable):
                raise SettingsError(f"{variable}: not supported yet; it must not be set")
        values = {each.name: value_of(each, _PARSERS[each.name], environ, flags) for each in declared()}
        if values["mode"] == PROXY:
            _prepare_proxy(values, environ, flags)
        if not values["instance"]:
            values["instance"] = _instance_of(values["bind"][0])
        settings = cls(**values)
        admin = settings.admin_address
        if admin and not admin.path and not (settings.admin_token or settings.admin_tokens_file):
            raise SettingsError(
                f"FAIRVISOR_ADMIN_BIND: {admin} is wrong: TCP needs FAIRVISOR_ADMIN_TOKEN or "
                "FAIRVISOR_ADMIN_TOKENS_FILE"
            )
        if settings.bundle_order == FILE_ORDER and settings.config_file is None:
            raise SettingsError(f"{PREFIX}BUNDLE_ORDER: 'file' is wrong without {PREFIX}CONFIG_FILE")
        return settings


def environment() -> Mapping[str, str]:
    """The environment variables of this process."""
    return os.environ


def declared() -> tuple[Declared, ...]:
    """Every setting, in the order of its declaration."""
    return tuple(
        Declared(
            name=each.name,
            variable=PREFIX + each.name.upper(),
            flag="--" + each.name.replace("_", "-") + ("-file" if each.metadata["secret"] else ""),
            default=each.metadata["default"],
            help=each.metadata["help"],
            secret=each.metadata["secret"],
        )
        for each in fields(Settings)
    )


_PARSERS: Final[Mapping[str, Callable[[str], object]]] = {
    each.name: each.metadata["parse"] for each in fields(Settings)
}


def _prepare_proxy(values: dict[str, Any], environ: Mapping[str, str], flags: Mapping[str, str]) -> None:
    """What is different in proxy mode: clients are strangers, and the public listener has no pages of ours."""
    if not values["backend_url"]:
        raise SettingsError(f"{PREFIX}BACKEND_URL: must be set when {PREFIX}MODE is {PROXY}")
    if values["worker_class"] != "edge":
        raise SettingsError(
            f"{PREFIX}WORKER_CLASS: {values['worker_class']!r} is wrong: allowed with {PREFIX}MODE={PROXY} is edge"
        )
    if not (environ.get(PREFIX + "TRUSTED_PEERS", "").strip() or flags.get("trusted_peers", "").strip()):
        values["trusted_peers"] = ()
    if values["health_bind"] is None:
        values["health_bind"] = read.bind(_PROXY_HEALTH)


def _instance_of(bind: Bind) -> str:
    """The segment's name for a listener: two edges of one machine must not share counters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(bind)).strip("-.")[:64]
