"""Upstreams over TLS and unix sockets; certificates that do not fit are a 502."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from edge import bucket, policy
from proxy_bench import Upstream, bench, run

from fairvisor.proxy.backends import Address, tls_context

OPEN = policy("open", bucket("r", burst=1000, rate=1000))
GET = b"GET / HTTP/1.1\r\nHost: client.example\r\n\r\n"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of 127.0.0.1 and its key in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "upstream")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36_500))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "upstream.pem"
    path.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return path


async def secure_upstream(certificate: Path) -> Upstream:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    upstream = Upstream()
    upstream.server = await asyncio.start_server(upstream._serve, "127.0.0.1", 0, ssl=context)
    upstream.port = upstream.server.sockets[0].getsockname()[1]
    return upstream


def test_https_upstreams_are_verified_and_named_by_their_own_host(certificate: Path) -> None:
    async def test() -> None:
        secure = await secure_upstream(certificate)
        where = f"https://127.0.0.1:{secure.port}"
        async with bench(OPEN, addresses=[where], tls=tls_context(str(certificate))) as proxy:
            client = await proxy.connect()
            for _ in range(3):
                assert (await client.ask(GET)).body == b"ok"
            assert len(secure.received) == 1
            assert f"Host: 127.0.0.1:{secure.port}\r\n".encode() in secure.received[0]
            assert b"X-Forwarded-Host: client.example\r\n" in secure.received[0]
        assert secure.server is not None
        secure.server.close()

    run(test())


def test_a_certificate_of_somebody_else_is_a_502(certificate: Path) -> None:
    async def test() -> None:
        secure = await secure_upstream(certificate)
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        for where, tls in (
            (f"https://127.0.0.1:{secure.port}", tls_context(None)),
            (f"https://localhost:{secure.port}", tls_context(str(certificate))),
        ):
            async with bench(OPEN, addresses=[where], tls=tls) as proxy:
                assert (await proxy.ask(GET)).status == 502
        assert secure.received == []
        assert secure.server is not None
        secure.server.close()

    run(test())


def test_an_upstream_on_a_unix_socket(tmp_path: Path) -> None:
    async def test() -> None:
        upstream = Upstream()
        path = str(tmp_path / "up.sock")
        server = await asyncio.start_unix_server(upstream._serve, path)
        async with bench(OPEN, addresses=[f"unix:{path}"]) as proxy:
            assert (await proxy.ask(GET)).body == b"ok"
            assert b"Host: client.example\r\n" in upstream.received[0]
        server.close()

    run(test())


@pytest.mark.parametrize(
    ("text", "address", "authority"),
    [
        ("http://a", Address("a", 80, False), b"a"),
        ("https://a:444/", Address("a", 444, True), b"a:444"),
        ("http://[::1]:8000", Address("::1", 8000, False), b"[::1]:8000"),
        ("unix:/run/x.sock", Address("", 0, False, "/run/x.sock"), b""),
    ],
)
def test_forms_of_addresses(text: str, address: Address, authority: bytes) -> None:
    parsed = Address.parse(text)
    assert parsed == address
    if authority:
        assert parsed.authority == authority


@pytest.mark.parametrize(
    "text", ["ftp://a", "http://", "http://a/path", "http://u@a", "unix:x", "http://a?b"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="allowed"):
        Address.parse(text)
