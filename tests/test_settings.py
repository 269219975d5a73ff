"""Settings: what each form of a value means, and that a wrong one names itself."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from fairvisor.errors import SettingsError
from fairvisor.settings import PREFIX, Bind, Settings, declared


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


def test_secrets_are_not_shown() -> None:
    settings = load(decision_token="hush", debug_session_secret="hush", bundle_signing_key="hush")
    assert settings.decision_token == "hush"
    assert "hush" not in repr(settings)


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
