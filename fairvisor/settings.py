"""Every setting of Fairvisor Edge, declared once: name, type, default, one sentence.

A field of `Settings` named `client_ip_header` is the variable `FAIRVISOR_CLIENT_IP_HEADER` and the
`serve` flag `--client-ip-header`; a flag wins over the variable, an empty variable counts as unset.
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
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Final, NamedTuple

from fairvisor.errors import SettingsError

Network = IPv4Network | IPv6Network

PREFIX: Final = "FAIRVISOR_"

# Loopback, RFC 1918, RFC 6598 (carrier-grade NAT, used by container networks), RFC 4193 and RFC 4291
# link-local: where gateways live. A peer on a unix socket is trusted as well: the permissions of the
# file decide who that is.
_PRIVATE_NETWORKS: Final = (
    "127.0.0.0/8,::1/128,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,fc00::/7,fe80::/10"
)

_HINTS: Final = ("x-country-code", "x-asn", "x-asn-type", "x-tor-exit", "x-token-estimate")

_NOT_YET: Final = tuple(
    PREFIX + name
    for name in (
        "SAAS_URL",
        "EDGE_ID",
        "EDGE_TOKEN",
        "CONFIG_POLL_INTERVAL",
        "HEARTBEAT_INTERVAL",
        "EVENT_FLUSH_INTERVAL",
        "BACKEND_URL",
    )
)


class Bind(NamedTuple):
    """Where to listen: a TCP address, the path of a unix socket, or an inherited descriptor."""

    host: str = ""
    port: int = 0
    path: str = ""
    descriptor: int = -1

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        if self.descriptor >= 0:
            return f"fd://{self.descriptor}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


IN_STATE_DIR: Final = Bind()  # for the admin listener: a socket in the state directory
TOKEN_LENGTH: Final = 32  # of an admin token, at least


class Declared(NamedTuple):
    """One setting as the command line and the documentation show it."""

    name: str
    variable: str
    flag: str
    default: str
    help: str
    secret: bool


def _text(value: str) -> str:
    return value


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(value: str) -> str:
        if value.lower() not in choices:
            raise ValueError(f"allowed are {', '.join(choices)}")
        return value.lower()

    return parse


def _integer(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", value) or not least <= int(value) <= most:
            raise ValueError(f"allowed is a whole number from {least} to {most}")
        return int(value)

    return parse


def _size(least: int, most: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        match = re.fullmatch(r"([0-9]{1,12})([kmg]?)", value.lower())
        size_bytes = int(match[1]) << {"": 0, "k": 10, "m": 20, "g": 30}[match[2]] if match else -1
        if not least <= size_bytes <= most:
            raise ValueError(f"allowed are {least} to {most} bytes, such as 1048576, 512k or 48m")
        return size_bytes

    return parse


def _yes_or_no(value: str) -> bool:
    if value.lower() in ("true", "1", "yes", "on"):
        return True
    if value.lower() in ("false", "0", "no", "off"):
        return False
    raise ValueError("allowed are true and false")


def _names(value: str) -> tuple[str, ...]:
    return tuple(name for part in value.split(",") if (name := part.strip()))


def _path(value: str) -> Path:
    return Path(value)


def _url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]+\S*", value):
        raise ValueError("allowed is an http:// or https:// URL")
    return value


def _networks(value: str) -> tuple[Network, ...]:
    if value.lower() == "none":
        return ()
    try:
        return tuple(ip_network(text.strip()) for text in value.split(","))
    except ValueError as error:
        raise ValueError(f"allowed is none or a list of addresses and networks ({error})") from None


def _hints(value: str) -> frozenset[str]:
    names = frozenset(name.strip().lower() for name in value.split(",")) - {"none"}
    if not names <= set(_HINTS):
        raise ValueError(f"allowed are none or any of {', '.join(_HINTS)}")
    return names


def _processes(value: str) -> int | None:
    return None if value.lower() == "auto" else _integer(1, 512)(value)


def _mode(value: str) -> str:
    mode = _one_of("decision_service", "reverse_proxy")(value)
    if mode == "reverse_proxy":
        raise ValueError("reverse_proxy is not supported yet; allowed is decision_service")
    return mode


def _instance(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", value):
        raise ValueError("allowed are 1 to 64 letters, digits, dots, dashes and underscores")
    return value


def _bind(value: str) -> Bind:
    if value.startswith("unix:") and len(value) > len("unix:"):
        return Bind(path=value.removeprefix("unix:"))
    if match := re.fullmatch(r"fd://([0-9]{1,6})", value):
        return Bind(descriptor=int(match[1]))
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:\[\]/]*)):([0-9]{1,5})", value)
    if not match or not 0 < int(match[3]) < 65536:
        raise ValueError("allowed are host:port, [IPv6 address]:port, unix:/path and fd://number")
    return Bind(host=match[1] or match[2] or "0.0.0.0", port=int(match[3]))


def _admin_bind(value: str) -> Bind | None:
    if value.lower() == "none":
        return None
    bind = IN_STATE_DIR if value.lower() == "auto" else _bind(value)
    if bind.descriptor >= 0:
        raise ValueError("allowed are auto, none, unix:/path, host:port and [IPv6 address]:port")
    return bind


def _admin_token(value: str) -> str:
    if len(value) < TOKEN_LENGTH:
        raise ValueError(f"allowed are {TOKEN_LENGTH} characters or more")
    return value


def _binds(value: str) -> tuple[Bind, ...]:
    return tuple(_bind(text.strip()) for text in value.split(","))


def _setting(default: str, parse: Callable[[str], Any], text: str, *, secret: bool = False) -> Any:
    """A declared setting: its default as somebody would write it, its parser, and the explaining sentence."""
    metadata = {"default": default, "parse": parse, "help": text, "secret": secret}
    return field(repr=not secret, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The parsed settings. A field that has no value is None; sizes are in bytes."""

    config_file: Path | None = _setting("", _path, "The policy bundle: a JSON file.")
    mode: str = _setting("decision_service", _mode, "Answer a gateway's questions, or proxy to an upstream.")
    bind: tuple[Bind, ...] = _setting(
        "127.0.0.1:8080",
        _binds,
        "Where to listen: host:port, [IPv6]:port, unix:/path, fd://n; comma-separated.",
    )
    health_bind: Bind | None = _setting(
        "",
        _bind,
        "Where /livez, /readyz and /metrics are, and nothing else; unset: beside the decisions.",
    )
    admin_bind: Bind | None = _setting(
        "auto",
        _admin_bind,
        "Where operators ask and act: auto (a unix socket in the state directory), none, unix:/path, or host:port, "
        "which needs an admin token.",
    )
    admin_token: str | None = _setting(
        "", _admin_token, "What operators must send over TCP: 32 characters or more.", secret=True
    )
    worker_processes: int | None = _setting(
        "auto", _processes, "Worker processes; auto: one for each processor this process may use."
    )
    worker_class: str = _setting("edge", _text, "edge, meinheld or any gunicorn WSGI worker class.")
    max_connections: int = _setting("4096", _integer(1, 1_000_000), "Open connections per worker; more wait.")
    max_waiting: int = _setting(
        "10000", _integer(0, 1_000_000), "Throttled requests held per worker; the rest go at once, counted."
    )
    max_body: int = _setting("1m", _size(0, 64 << 20), "How much of a request's body counts, in bytes.")
    header_timeout_ms: int = _setting(
        "10000", _integer(10, 600_000), "How long a request head may take to arrive, in milliseconds."
    )
    idle_timeout_ms: int = _setting(
        "300000", _integer(10, 86_400_000), "How long a connection may stay unused, in milliseconds."
    )
    shared_dict_size: int = _setting(
        "48m", _size(1 << 16, 1 << 40), "Size of the shared-memory segment that holds the counters, in bytes."
    )
    table_full: str = _setting(
        "allow",
        _one_of("allow", "reject"),
        "What happens to a new key that finds no room in the segment (counted).",
    )
    state_dir: Path = _setting(
        "/var/lib/fairvisor",
        _path,
        "Where snapshots of the counters and the last good bundle are kept: they outlive a reboot.",
    )
    instance: str = _setting("", _instance, "Names the segment; the default is made from the bind address.")
    allow_status: int = _setting(
        "204",
        lambda value: int(_one_of("200", "204")(value)),
        "The status of an allow, except at Envoy's endpoint, where it is 200.",
    )
    fail_open: bool = _setting("false", _yes_or_no, "Turn a failure of the engine into a counted allow.")
    ratelimit_headers: str = _setting(
        "both", _one_of("both", "draft", "legacy", "off"), "Which RateLimit headers answers carry."
    )
    llm_headers: bool = _setting(
        "false",
        _yes_or_no,
        "Tell what is left of LLM token limits in the headers of OpenAI and Anthropic too.",
    )
    trusted_peers: tuple[Network, ...] = _setting(
        _PRIVATE_NETWORKS, _networks, "Who may describe a request; others get 403, unix sockets never do."
    )
    decision_token: str | None = _setting(
        "", _text, "When set, decision and usage calls must carry it in X-Fairvisor-Token.", secret=True
    )
    client_ip_header: str = _setting(
        "x-forwarded-for",
        _one_of("x-forwarded-for", "forwarded", "none"),
        "Which header of a trusted peer names the client's address.",
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        "none", _networks, "Proxies in front of the gateway, skipped when the client is looked for."
    )
    ipv6_prefix: int = _setting(
        "64", _integer(32, 128), "The prefix length by which IPv6 clients are counted."
    )
    trusted_hints: frozenset[str] = _setting(
        "none", _hints, f"Headers that the gateway sets and that may be believed: {', '.join(_HINTS)}."
    )
    request_id: bool = _setting(
        "false", _yes_or_no, "Let X-Fairvisor-Request-Id count everywhere, not only at /v1/auth-request."
    )
    geoip_db: Path | None = _setting("", _path, "MaxMind-format country database, for ip:country.")
    asn_db: Path | None = _setting("", _path, "MaxMind-format ASN database, for ip:asn and ip:type.")
    asn_types: Path | None = _setting("", _path, "ASN-to-type table, for ip:type.")
    tor_exits: Path | None = _setting("", _path, "List of Tor exit addresses, one a line, for ip:tor.")
    jwks_file: Path | None = _setting("", _path, "JWKS file with the keys that verify bearer tokens.")
    jwks_url: str | None = _setting("", _url, "JWKS URL with the keys that verify bearer tokens.")
    jwks_issuer: str | None = _setting("", _text, "What iss must be in tokens verified with JWKS keys.")
    jwks_audience: tuple[str, ...] | None = _setting(
        "", _names, "What aud must contain one of in tokens verified with JWKS keys, comma-separated."
    )
    bundle_signing_key: str | None = _setting(
        "", _text, "When set, a bundle must be signed with this key (HMAC-SHA256).", secret=True
    )
    debug_session_secret: str | None = _setting(
        "", _text, "When set, POST /v1/debug/session with this secret opens a debug session.", secret=True
    )
    audit_log: str | None = _setting(
        "", _text, "The audit log, a file; - is standard output; unset: audit.log in the state directory."
    )
    audit_keys: str = _setting(
        "hashed",
        _one_of("hashed", "plain"),
        "Whether the audit log shows keys as keyed hashes or as they are.",
    )
    log_format: str = _setting(
        "console", _one_of("console", "json"), "Log lines for people, or one JSON object a line."
    )
    log_level: str = _setting(
        "info",
        _one_of("debug", "info", "warning", "error"),
        "How much is logged; allowed requests never are.",
    )

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
        values = {setting.name: _value(setting, environ, flags) for setting in declared()}
        if not values["instance"]:
            values["instance"] = _instance_of(values["bind"][0])
        settings = cls(**values)
        admin = settings.admin_address
        if admin and not admin.path and not settings.admin_token:
            raise SettingsError(f"FAIRVISOR_ADMIN_BIND: {admin} is wrong: TCP needs FAIRVISOR_ADMIN_TOKEN")
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
            flag="--" + each.name.replace("_", "-"),
            default=each.metadata["default"],
            help=each.metadata["help"],
            secret=each.metadata["secret"],
        )
        for each in fields(Settings)
    )


_PARSERS: Final[Mapping[str, Callable[[str], object]]] = {
    each.name: each.metadata["parse"] for each in fields(Settings)
}


def _value(setting: Declared, environ: Mapping[str, str], flags: Mapping[str, str]) -> Any:
    where, given = setting.flag, flags.get(setting.name)
    if not given:
        where, given = setting.variable, environ.get(setting.variable)
    given = given or setting.default
    if not given:
        return None
    try:
        return _PARSERS[setting.name](given)
    except ValueError as error:
        shown = "(a secret)" if setting.secret else repr(given)
        raise SettingsError(f"{where}: {shown} is wrong: {error}") from None


def _instance_of(bind: Bind) -> str:
    """The segment's name for a listener: two edges of one machine must not share counters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", str(bind)).strip("-.")[:64]
