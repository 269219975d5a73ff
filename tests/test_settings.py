"""Settings: what each form of a value means, and that a wrong one names itself."""

from __future__ import annotations

import os
from ipaddress import ip_network
from pathlib import Path

import pytest

from fairvisor.errors import SettingsError
from fairvisor.settings import PREFIX, Bind, Declared, Settings, declared

SECRETS = [each.name for each in declared() if each.secret]
GOOD = "0123456789abcdef0123456789abcdef"


def load(**environ: str) -> Settings:
    return Settings.load({PREFIX + name.upper(): value for name, value in environ.items()}, {})


def test_every_default_is_accepted_by_its_own_parser() -> None:
    settings = load()
    assert settings.bind == (Bind("127.0.0.1", 8080),)
    assert settings.shared_dict_size == 48 * 1024 * 1024
    assert settings.max_body == 1024 * 1024
    assert settings.max_waiting == 10_000
    assert settings.worker_processes is None
    assert settings.trusted_proxies == ()
    assert settings.trusted_hints == frozenset()
    assert settings.config_file is None


def test_private_networks_are_the_trusted_peers() -> None:
    peers = load().trusted_peers
    assert ip_network("192.168.0.0/16") in peers
    assert ip_network("fc00::/7") in peers
    assert not any(peer.prefixlen == 0 for peer in peers)


@pytest.mark.parametrize(
    ("text", "bind"),
    [
        ("0.0.0.0:80", Bind("0.0.0.0", 80)),
        (":80", Bind("0.0.0.0", 80)),
        ("[::1]:9000", Bind("::1", 9000)),
        ("localhost:8080", Bind("localhost", 8080)),
        ("unix:/run/fairvisor.sock", Bind(path="/run/fairvisor.sock")),
        ("fd://3", Bind(descriptor=3)),
    ],
)
def test_bind_forms(text: str, bind: Bind) -> None:
    assert load(bind=text).bind == (bind,)
    assert load(bind=str(bind)).bind == (bind,)


def test_bind_takes_a_list() -> None:
    assert load(bind="127.0.0.1:1, unix:/s").bind == (Bind("127.0.0.1", 1), Bind(path="/s"))


def test_the_instance_comes_from_the_bind_address() -> None:
    assert load(bind="[::1]:9000").instance == "1-9000"
    assert load(bind="127.0.0.1:8080").instance == "127.0.0.1-8080"
    assert load(bind="127.0.0.1:8080", instance="blue").instance == "blue"


def test_a_flag_wins_over_the_variable() -> None:
    settings = Settings.load({"FAIRVISOR_MAX_BODY": "1k"}, {"max_body": "2k"})
    assert settings.max_body == 2048


def test_an_empty_variable_counts_as_unset() -> None:
    assert load(max_waiting="", config_file="") == load()


# One value for each setting that is no secret; those with a fixed list of values are known by it.
VALUES = {
    "admin_bind": "127.0.0.1:9000",
    "backend_ca": "/ca.pem",
    "backend_url": "http://a:1",
    "client_ip_header": "cf-connecting-ip",
    "edge_url": "http://a:1",
    "health_bind": "127.0.0.1:9001",
    "instance": "blue",
    "jwks_issuer": "https://issuer.example/",
    "jwks_audience": "api",
    "jwks_url": "https://issuer.example/keys",
    **dict.fromkeys(
        (
            "config_file",
            "geoip_db",
            "asn_db",
            "asn_types",
            "tor_exits",
            "jwks_file",
            "jwks_ca",
            "audit_log",
            "admin_tokens_file",
        ),
        "/some/where",
    ),
}
PLAIN = [each for each in declared() if not each.secret]


@pytest.mark.parametrize("setting", PLAIN, ids=lambda each: each.name)
def test_white_space_around_a_value_does_not_count_and_a_control_byte_within_is_wrong(
    setting: Declared,
) -> None:
    value = VALUES.get(setting.name) or setting.default
    more = {"admin_token": GOOD} if setting.name == "admin_bind" else {}
    clean = getattr(load(**more, **{setting.name: value}), setting.name)
    for around in (f"{value}\r", f"{value}\r\n", f" {value}\t", f"\n{value} "):
        assert getattr(load(**more, **{setting.name: around}), setting.name) == clean
    for control in ("\n", "\r", "\0", "\x1b", "\x7f", "\x9b"):
        with pytest.raises(SettingsError, match=f"{setting.variable}: .* is wrong: .*control character"):
            load(**more, **{setting.name: f"{value}{control}{value}"})
    with pytest.raises(SettingsError, match=f"{setting.variable}: .* is wrong: it is not UTF-8"):
        load(**more, **{setting.name: f"{value}\udce9"})
    for blank in (" ", "\n"):
        assert load(**{setting.name: blank}) == load()


def test_blank_peers_are_no_peers_of_a_proxy() -> None:
    assert load(mode="reverse_proxy", backend_url="http://a", trusted_peers=" \n").trusted_peers == ()


def test_the_file_decides_only_where_there_is_one() -> None:
    assert load(bundle_order="file", config_file="policy.json").bundle_order == "file"
    with pytest.raises(SettingsError, match="BUNDLE_ORDER: 'file' is wrong without FAIRVISOR_CONFIG_FILE"):
        load(bundle_order="file")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("mode", "proxy", "decision_service"),
        ("backend_url", "ftp://x", "http://host:port"),
        ("backend_url", "http://a/path", "http://host:port"),
        ("bind", "8080", "host:port"),
        ("bind", "127.0.0.1:0", "host:port"),
        ("bind", "127.0.0.1:70000", "host:port"),
        ("bind", "::1:80", "host:port"),
        ("worker_processes", "0", "1 to 512"),
        ("worker_processes", "many", "1 to 512"),
        ("max_waiting", "-1", "whole number"),
        ("max_body", "1t", "512k"),
        ("shared_dict_size", "1k", "65536"),
        ("allow_status", "201", "200, 204"),
        ("fail_open", "maybe", "true and false"),
        ("ratelimit_headers", "all", "both, draft, legacy, off"),
        ("trusted_peers", "10.0.0.1/8", "networks"),
        ("trusted_proxies", "gateway", "networks"),
        ("trusted_hints", "X-Country", "x-country-code"),
        ("ipv6_prefix", "129", "32 to 128"),
        ("instance", "a/b", "letters"),
        ("jwks_url", "file:///etc/passwd", "https://"),
        ("client_ip_header", "x real ip", "x-forwarded-for"),
        ("client_ip_header", "hops:0", "from 1 to 64"),
        ("client_ip_header", "hops:65", "from 1 to 64"),
        ("client_ip_header", "hops:two", "hops:<n>"),
        ("jwks_url", "idp.example", "https://"),
        ("jwks_url", "https://a:port/", "https://"),
        ("jwks_url", "https://[::1/", "https://"),
        ("jwks_url", "https:///x", "https://"),
        ("jwks_url", "http://é/", "https://"),
        ("jwks_networks", "internal", "networks"),
        ("jwt_leeway_s", "1m", "0 to 3600"),
        ("log_level", "loud", "debug"),
        ("table_full", "evict", "allow, reject"),
    ],
)
def test_a_wrong_value_names_the_variable_the_value_and_what_is_allowed(
    name: str, value: str, allowed: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load(**{name: value})
    message = str(caught.value)
    assert PREFIX + name.upper() in message
    assert value in message
    assert allowed in message
    assert "\n" not in message


def test_a_wrong_flag_names_the_flag() -> None:
    with pytest.raises(SettingsError, match=r"--max-body: '1t' is wrong"):
        Settings.load({}, {"max_body": "1t"})


@pytest.mark.parametrize("name", ["SAAS_URL", "EDGE_ID", "EDGE_TOKEN", "CONFIG_POLL_INTERVAL"])
def test_a_setting_of_something_that_does_not_exist_yet_stops_the_start(name: str) -> None:
    with pytest.raises(SettingsError, match=f"FAIRVISOR_{name}: not supported yet"):
        load(**{name.lower(): "https://example.com"})


@pytest.mark.parametrize(
    "url",
    ["https://user:hush@a:port/", "https://a:port/?token=hush", "user:hush@a", "https://user:hu/sh@a/é"],
)
def test_a_wrong_jwks_url_is_not_shown_as_it_may_hold_a_password(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(jwks_url=url)
    assert (
        str(caught.value) == "FAIRVISOR_JWKS_URL: (a secret) is wrong: allowed is an http:// or https:// URL"
    )


def test_secrets_are_not_shown() -> None:
    settings = load(**dict.fromkeys(SECRETS, GOOD), jwks_url=f"https://user:{GOOD}@a.example/?token={GOOD}")
    assert settings.decision_token == (GOOD,)
    assert GOOD not in repr(settings)
    assert "https://a.example/?…" in repr(settings)


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("weak", ["x", "0123456789abcde", "a" * 64, "abcd" * 16])
def test_a_secret_that_is_easy_to_guess_stops_the_start_and_is_not_shown(name: str, weak: str) -> None:
    with pytest.raises(
        SettingsError, match=f"{PREFIX}{name.upper()}: .a secret. is wrong: it is too easy"
    ) as caught:
        load(**{name: weak})
    assert "openssl rand -hex 32" in str(caught.value)


@pytest.mark.parametrize("odd", ["\n", "\r", "\0", "\x1b", "\x7f", "é", "\u202e"])
@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_that_no_header_carries_stops_the_start(name: str, odd: str) -> None:
    with pytest.raises(SettingsError, match="printable ASCII"):
        load(**{name: f"{GOOD[:8]}{odd}{GOOD[8:]}"})
    for around in (f" {GOOD}", f"{GOOD} ", f"{GOOD}\t", f"\n{GOOD}"):
        with pytest.raises(SettingsError, match="printable ASCII"):
            load(**{name: around})


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n"])
@pytest.mark.parametrize("name", SECRETS)
def test_the_line_end_of_a_secret_does_not_count(name: str, end: str) -> None:
    assert getattr(load(**{name: GOOD + end}), name) == (GOOD,)


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_of_nothing_but_white_space_is_not_taken_for_an_unset_one(name: str, tmp_path: Path) -> None:
    for blank in ("\n", " ", "\r\n"):
        with pytest.raises(SettingsError, match=f"{PREFIX}{name.upper()}: .a secret. is wrong"):
            load(**{name: blank})
    empty = tmp_path / "empty"
    empty.touch(0o600)
    for file in (str(empty), " "):
        with pytest.raises(SettingsError, match=f"{PREFIX}{name.upper()}_FILE: .* is wrong"):
            load(**{f"{name}_file": file})


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(GOOD + "\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_may_stand_in_a_file(name: str, secret_file: Path) -> None:
    assert getattr(load(**{f"{name}_file": str(secret_file)}), name) == (GOOD,)
    assert getattr(Settings.load({}, {name: str(secret_file)}), name) == (GOOD,), "the flag names a file"


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_s_file_has_two_lines_while_it_is_rotated(name: str, secret_file: Path) -> None:
    other = GOOD[::-1]
    for ends in ("\n", "\r\n"):
        secret_file.write_bytes(f"{GOOD}{ends}{other}{ends}".encode())
        assert getattr(load(**{f"{name}_file": str(secret_file)}), name) == (GOOD, other)
    for lines, why in (
        (f"{GOOD}\n{other}\n{GOOD}x\n", "it has 3 lines"),
        (f"{GOOD}\nshort\n", "too easy to guess"),
        (f"{GOOD}\n\n{other}\n", "it has 3 lines"),
        (f"\n{GOOD}\n", "it is empty"),
    ):
        secret_file.write_text(lines)
        with pytest.raises(SettingsError, match=why) as caught:
            load(**{f"{name}_file": str(secret_file)})
        assert GOOD not in str(caught.value)


def test_a_secret_is_given_once(secret_file: Path) -> None:
    with pytest.raises(SettingsError, match="ADMIN_TOKEN and FAIRVISOR_ADMIN_TOKEN_FILE are both set"):
        load(admin_token=GOOD, admin_token_file=str(secret_file))
    environ = {PREFIX + "ADMIN_TOKEN": GOOD + GOOD}
    assert Settings.load(environ, {"admin_token": str(secret_file)}).admin_token == (GOOD,), "a flag wins"


@pytest.mark.parametrize(
    ("mode", "fine"),
    [(0o400, True), (0o440, True), (0o600, True), (0o640, True), (0o644, False), (0o660, False)],
)
def test_a_secret_that_others_may_read_or_change_is_none(secret_file: Path, mode: int, fine: bool) -> None:
    secret_file.chmod(mode)
    if fine:
        assert load(decision_token_file=str(secret_file)).decision_token == (GOOD,)
        return
    with pytest.raises(SettingsError, match=f"others may read or change it .mode {mode:04o}") as caught:
        load(decision_token_file=str(secret_file))
    assert GOOD not in str(caught.value)


def test_a_secret_file_of_another_user_is_none(secret_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = secret_file.stat().st_uid
    if owner == 0:  # tests run as root: the file is given away
        owner = 60002
        os.chown(secret_file, owner, -1)
    monkeypatch.setattr("os.geteuid", lambda: owner + 1)
    with pytest.raises(SettingsError, match=f"it belongs to user {owner}"):
        load(decision_token_file=str(secret_file))


def test_a_file_that_cannot_be_a_secret_names_itself(tmp_path: Path) -> None:
    pipe, large = tmp_path / "pipe", tmp_path / "large"
    os.mkfifo(pipe, 0o600)
    large.write_text("0123456789abcdef" * 1000)
    large.chmod(0o600)
    for path, why in (
        (pipe, "not a regular file"),
        (tmp_path / "none", "No such file"),
        (large, "more than 4096"),
    ):
        with pytest.raises(SettingsError, match=f"ADMIN_TOKEN_FILE: '{path}' is wrong: .*{why}"):
            load(admin_token_file=str(path))


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_in_the_place_of_its_file_is_not_shown(name: str) -> None:
    for given in (GOOD, f"{GOOD}/{GOOD}", f" {GOOD}\n"):
        with pytest.raises(SettingsError, match=f"{name.upper()}_FILE: .*the path of its file") as caught:
            load(**{f"{name}_file": given})
        assert GOOD not in str(caught.value)


def test_operators_over_tcp_have_one_token_or_several_in_a_file() -> None:
    admin = {"FAIRVISOR_ADMIN_BIND": "127.0.0.1:9091"}
    with pytest.raises(SettingsError, match=r"needs FAIRVISOR_ADMIN_TOKEN or FAIRVISOR_ADMIN_TOKENS_FILE$"):
        Settings.load(admin, {})
    found = Settings.load({**admin, "FAIRVISOR_ADMIN_TOKENS_FILE": "/run/tokens"}, {})
    assert found.admin_tokens_file == Path("/run/tokens")


def test_no_flag_takes_a_secret() -> None:
    """Every user of a machine can read its command lines."""
    assert [each.flag for each in declared() if each.secret] == [
        "--admin-token-file",
        "--decision-token-file",
        "--bundle-signing-key-file",
        "--debug-session-secret-file",
        "--audit-key-file",
    ]


@pytest.mark.parametrize(
    "value", ["X-Forwarded-For", "forwarded", "None", "CF-Connecting-IP", "hops:2", "HOPS:64"]
)
def test_the_clients_header_is_a_list_a_place_in_one_or_a_header_by_name(value: str) -> None:
    assert load(client_ip_header=value).client_ip_header == value.lower()


def test_hints_are_header_names_in_lower_case() -> None:
    assert load(trusted_hints="X-Country-Code, x-asn").trusted_hints == {"x-country-code", "x-asn"}


def test_every_setting_is_declared_with_a_sentence() -> None:
    for setting in declared():
        assert setting.variable == PREFIX + setting.name.upper()
        assert setting.flag.startswith("--")
        assert setting.help.endswith(".")


def test_paths_are_paths() -> None:
    assert load(config_file="policy.json").config_file == Path("policy.json")


def test_proxy_mode_trusts_nobody_and_keeps_its_pages_apart() -> None:
    settings = load(mode="reverse_proxy", backend_url="http://127.0.0.1:8000, unix:/run/app.sock")
    assert settings.backend_url == ("http://127.0.0.1:8000", "unix:/run/app.sock")
    assert settings.trusted_peers == ()
    assert settings.health_bind == Bind("127.0.0.1", 9090)
    chosen = load(
        mode="reverse_proxy", backend_url="https://a", trusted_peers="10.0.0.0/8", health_bind="127.0.0.1:1"
    )
    assert chosen.trusted_peers == (ip_network("10.0.0.0/8"),)
    assert chosen.health_bind == Bind("127.0.0.1", 1)


def test_proxy_mode_needs_an_upstream_and_the_edge_worker() -> None:
    with pytest.raises(SettingsError, match="FAIRVISOR_BACKEND_URL: must be set"):
        load(mode="reverse_proxy")
    with pytest.raises(SettingsError, match="FAIRVISOR_WORKER_CLASS: 'meinheld' is wrong"):
        load(mode="reverse_proxy", backend_url="http://a", worker_class="meinheld")
