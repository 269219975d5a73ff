"""One fetch of a URL: credentials, proxies, authorities, addresses, and what is shown of it."""

from __future__ import annotations

import base64
import ssl
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from test_jwks import Issuer, Published, at, issuer, key_set, publish  # noqa: F401 - a fixture

from fairvisor.identity.fetch import FetchErrors, Web, failure_text
from fairvisor.setting_values import Url

LOOPBACK = (ip_network("127.0.0.0/8"),)


# --- credentials ------------------------------------------------------------------------------------------------------


def test_a_user_and_a_password_in_the_url_are_sent_and_never_shown(issuer: Issuer) -> None:  # noqa: F811
    url = issuer.url.replace("http://", "http://s%C3%A9rvice:p%40ss@")
    source = Published(url)
    source.refresh(at(0))
    sent = issuer.requests[0]["Authorization"]
    assert base64.b64decode(sent.removeprefix("Basic ")).decode() == "sérvice:p@ss"
    issuer.answer = publish(b"", status=401)
    source.refresh(at(1000))
    for text in (Url(url).shown, *source.warnings(), str(Published(url).problem())):
        assert "p%40ss" not in text
        assert "p@ss" not in text
        assert "v=1" not in text, "a token may be in the query"
        assert f"127.0.0.1:{issuer.port}/jwks.json?…" in text


@pytest.mark.parametrize("error", [OSError("\x1b]0;title\x07\n" + "x" * 1000), ValueError()])
def test_what_the_other_end_wrote_is_shown_on_one_short_line(error: Exception) -> None:
    text = failure_text(error)
    assert text
    assert text.isprintable()
    assert len(text) <= 200


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1",
        "::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::",
    ],
)  # fmt: skip
def test_an_issuer_of_a_bundle_is_not_fetched_from_a_private_address(address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(PermissionError, match="not a public one; FAIRVISOR_JWKS_NETWORKS"):
        Web({}).get(f"https://{host}:1/jwks.json", guarded=True)


def test_a_name_that_leads_to_a_private_address_is_not_followed_there(issuer: Issuer) -> None:  # noqa: F811
    url = issuer.url.replace("127.0.0.1", "localhost")
    with pytest.raises(PermissionError, match="not a public one"):
        Web({}).get(url, guarded=True)
    assert issuer.requests == []


def test_a_network_that_a_setting_lists_may_be_asked(issuer: Issuer) -> None:  # noqa: F811
    assert Web({}, networks=LOOPBACK).get(issuer.url, guarded=True).document == key_set("k1")


def test_the_operators_own_url_may_be_private(issuer: Issuer) -> None:  # noqa: F811
    assert Web({}).get(issuer.url).document == key_set("k1")


# --- certificates and proxies -----------------------------------------------------------------------------------------


class Authority:
    """An authority of its own, and a certificate of it for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "authority.pem"
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "provider")])
        now = datetime.now(timezone.utc)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(
                x509.SubjectAlternativeName(
                    [x509.IPAddress(ip_address("127.0.0.1")), x509.DNSName("idp.test")]
                ),
                critical=False,
            )
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        pem = certificate.public_bytes(serialization.Encoding.PEM)
        self.file.write_bytes(pem)
        whole = folder / "server.pem"
        whole.write_bytes(
            pem
            + key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(whole)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def provider(authority: Authority) -> Iterator[Issuer]:
    server = Issuer(authority.context)
    yield server
    server.close()


def test_a_certificate_that_nobody_vouches_for_is_refused(provider: Issuer) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        Web({}).get(provider.url)
    assert provider.requests == []


def test_an_authority_that_a_setting_names_is_believed(provider: Issuer, authority: Authority) -> None:
    assert Web({}, authority.file).get(provider.url).document == key_set("k1")
    with pytest.raises(ssl.SSLCertVerificationError):  # the name is verified as well
        Web({}, authority.file).get(provider.url.replace("127.0.0.1", "localhost"))


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_a_file_of_authorities_that_cannot_be_used_is_named(
    provider: Issuer, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="FAIRVISOR_JWKS_CA: /"):
        Web({}, path).get(provider.url)


class Proxy(Issuer):
    """A forward proxy that knows one place: whatever it is asked to connect to, it connects to the provider."""

    def __init__(self, provider: Issuer) -> None:
        super().__init__()
        self.asked: list[str] = []
        self._provider = provider
        self.answer = publish(b"", status=405)

    def connect(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        handler.connection.sendall(b"HTTP/1.1 200 established\r\n\r\n")
        self._provider.serve(handler.connection)


@pytest.fixture
def proxy(provider: Issuer) -> Iterator[Proxy]:
    server = Proxy(provider)
    yield server
    server.close()


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy"])
def test_an_https_url_is_fetched_through_the_proxy_that_the_environment_names(
    provider: Issuer, proxy: Proxy, authority: Authority, name: str
) -> None:
    web = Web({name: f"http://user:pass%20word@127.0.0.1:{proxy.port}"}, authority.file)
    assert web.get("https://idp.test/jwks.json").document == key_set("k1")
    assert proxy.asked == ["idp.test:443"]
    sent = base64.b64decode(proxy.requests[0]["Proxy-Authorization"].removeprefix("Basic "))
    assert sent == b"user:pass word"
    assert "Proxy-Authorization" not in provider.requests[0]


@pytest.mark.parametrize("listed", ["*", "127.0.0.1", "x.test, 127.0.0.0/8", "127.0.0.1:{port}"])
def test_hosts_that_no_proxy_lists_are_fetched_directly(
    provider: Issuer, proxy: Proxy, authority: Authority, listed: str
) -> None:
    environ = {
        "HTTPS_PROXY": f"127.0.0.1:{proxy.port}",
        "NO_PROXY": listed.format(port=provider.port),
    }
    assert Web(environ, authority.file).get(provider.url).document == key_set("k1")
    assert proxy.asked == []


@pytest.mark.parametrize("listed", ["", "27.0.0.1", "0.0.1", "127.0.0.1:1", "10.0.0.0/8", "::1"])
def test_other_hosts_go_through_the_proxy(
    provider: Issuer, proxy: Proxy, authority: Authority, listed: str
) -> None:
    environ = {"HTTPS_PROXY": f"127.0.0.1:{proxy.port}", "NO_PROXY": listed}
    Web(environ, authority.file).get(provider.url)
    assert proxy.asked == [f"127.0.0.1:{provider.port}"]


def test_a_domain_that_no_proxy_lists_has_every_host_below_it(proxy: Proxy) -> None:
    environ = {"HTTPS_PROXY": f"127.0.0.1:{proxy.port}", "NO_PROXY": ".invalid"}
    with pytest.raises(OSError):
        Web(environ).get("https://idp.invalid/")
    assert proxy.asked == []


@pytest.mark.parametrize("name", ["socks5://127.0.0.1:1", "https://127.0.0.1:1", "http://", "://"])
def test_a_proxy_of_another_kind_is_a_failure_that_names_the_variable(name: str) -> None:
    with pytest.raises(ValueError, match="HTTPS_PROXY"):
        Web({"HTTPS_PROXY": name}).get("https://idp.test/")


def test_a_private_address_is_not_reached_through_a_proxy_either(proxy: Proxy) -> None:
    with pytest.raises(PermissionError):
        Web({"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}).get("https://169.254.169.254/", guarded=True)
    assert proxy.asked == []


def test_a_proxy_that_dawdles_is_given_up(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fairvisor.identity.fetch.FETCH_TIMEOUT_S", 0.3)

    def drip(handler: BaseHTTPRequestHandler) -> None:
        while not proxy.release.wait(0.02):
            try:
                handler.wfile.write(b"HTTP/1.1 200 X\r\n"[:1])
            except OSError:
                return

    monkeypatch.setattr(proxy, "connect", drip)
    done = threading.Event()
    with pytest.raises(FetchErrors):
        Web({"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"}).get("https://idp.test/")
    done.set()
