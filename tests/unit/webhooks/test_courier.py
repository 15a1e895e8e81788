"""One webhook on its way: where it connects, what it sends, and that no reply, however slow or long, can hold it."""

from __future__ import annotations

import asyncio
import datetime
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from configs.settings import WebhookSettings
from serve_app.webhooks.courier import MAX_REPLY_BYTES, SocketCourier
from serve_app.webhooks.guard import Guard
from tests.unit.webhooks.endpoint import OPEN, listening
from workflows.errors import WebhookFailed

SOON_S = 0.3
HEADERS = {"webhook-id": "evt_1"}


def courier(timeout_s: float = 10.0) -> SocketCourier:
    return SocketCourier(Guard(OPEN), timeout_s=timeout_s)


async def test_the_body_arrives_as_it_is_and_the_reply_comes_back() -> None:
    async with listening() as endpoint:
        endpoint.says("202 Accepted", "Retry-After: 7\r\n", "thanks")
        reply = await courier().post(endpoint.url, HEADERS, b'{"a":1}')
    assert (reply.status, reply.headers["retry-after"], reply.body) == (202, "7", b"thanks")
    [got] = endpoint.received
    assert (got.line, got.body) == ("POST /hook?a=b HTTP/1.1", b'{"a":1}')
    assert (got.headers["host"], got.headers["webhook-id"]) == (f"127.0.0.1:{endpoint.port}", "evt_1")


async def test_redirects_are_not_followed() -> None:
    async with listening() as elsewhere, listening() as endpoint:
        endpoint.says("307 Temporary Redirect", f"Location: {elsewhere.url}\r\n")
        assert (await courier().post(endpoint.url, HEADERS, b"{}")).status == 307
        assert elsewhere.connections == 0


async def test_the_name_is_looked_up_once_and_what_was_checked_is_connected_to() -> None:
    asked: list[str] = []

    def resolve(host: str, port: int) -> list[str]:
        asked.append(host)
        return ["127.0.0.1"] if len(asked) == 1 else ["10.255.255.1"]

    async with listening() as endpoint:
        url = f"http://rebinding.example.com:{endpoint.port}/"
        reply = await SocketCourier(Guard(OPEN, resolve), timeout_s=10).post(url, HEADERS, b"{}")
    assert (reply.status, asked) == (200, ["rebinding.example.com"])
    assert endpoint.received[0].headers["host"] == f"rebinding.example.com:{endpoint.port}"


async def test_what_the_guard_refuses_is_not_connected_to() -> None:
    async with listening() as endpoint:
        strict = SocketCourier(Guard(WebhookSettings(allow_http=True)), timeout_s=10)
        with pytest.raises(WebhookFailed, match="no public address"):
            await strict.post(endpoint.url, HEADERS, b"{}")
        with pytest.raises(WebhookFailed, match="https://"):
            await SocketCourier(Guard(WebhookSettings()), timeout_s=10).post(endpoint.url, HEADERS, b"{}")
        assert endpoint.connections == 0


async def test_an_address_that_does_not_answer_gives_way_to_the_next() -> None:
    async with listening() as endpoint:
        two = SocketCourier(Guard(OPEN, lambda host, port: ["127.0.0.77", "127.0.0.1"]), timeout_s=10)
        assert (await two.post(f"http://two.example.com:{endpoint.port}/", HEADERS, b"{}")).status == 200


async def test_nobody_there_is_a_failure() -> None:
    async with listening() as endpoint:
        pass
    with pytest.raises(WebhookFailed, match="ConnectionRefused"):
        await courier().post(endpoint.url, HEADERS, b"{}")


@pytest.mark.parametrize(("answer", "said"), [
    (b"", "closed without a reply"), (b"HTTP/1.1 200", "closed without a reply"),
    (b"SSH-2.0-OpenSSH_9\r\n\r\n", "no HTTP reply"), (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000, "no HTTP reply"),
], ids=["nothing", "half", "no-http", "endless-headers"])
async def test_what_is_no_reply_is_a_failure(answer: bytes, said: str) -> None:
    async with listening() as endpoint:
        endpoint.answer = answer
        with pytest.raises(WebhookFailed, match=said):
            await courier().post(endpoint.url, HEADERS, b"{}")


async def test_a_silent_endpoint_is_left_after_the_time_limit() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening() as endpoint:
        endpoint.behave = silent
        with pytest.raises(WebhookFailed, match="no reply within"):
            await courier(SOON_S).post(endpoint.url, HEADERS, b"{}")


@pytest.mark.parametrize("what", ["headers", "interim"])
async def test_a_reply_that_drips_does_not_start_the_time_anew(what: str) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n" if what == "headers" else b"")
        while True:
            writer.write(b"X: y\r\n" if what == "headers" else b"HTTP/1.1 102 Processing\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with listening() as endpoint:
        endpoint.behave = drip
        with pytest.raises(WebhookFailed, match="no reply within"):
            await courier(SOON_S).post(endpoint.url, HEADERS, b"{}")


async def dripping_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nthanks")
    await writer.drain()
    await reader.read()


async def endless_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


async def broken_body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nthanks")


async def test_a_status_counts_although_its_body_never_ends_or_breaks_off() -> None:
    async with listening() as endpoint:
        for behave, timeout_s, kept in ((dripping_body, SOON_S, b"thanks"), (broken_body, 10, b"thanks"),
                                        (endless_body, 300, b"x" * MAX_REPLY_BYTES)):
            endpoint.behave = behave
            async with asyncio.timeout(60):
                reply = await courier(timeout_s).post(endpoint.url, HEADERS, b"{}")
            assert (reply.status, reply.body) == (200, kept), behave.__name__


async def test_a_resolver_that_hangs_costs_the_time_limit_and_no_more() -> None:
    free = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        free.wait(10)
        return []

    try:
        with pytest.raises(WebhookFailed, match="no reply within"):
            await SocketCourier(Guard(OPEN, hang), timeout_s=SOON_S).post("http://slow.example.com/", HEADERS, b"{}")
    finally:
        free.set()


async def test_plain_http_behind_https_is_a_failure() -> None:
    async with listening() as endpoint:
        with pytest.raises(WebhookFailed):
            await courier(2).post(endpoint.url.replace("http:", "https:"), HEADERS, b"{}")
        assert endpoint.received == []


def certificate(name: str, directory: Path) -> Path:
    """A certificate for this name and its key, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
            .serial_number(1).not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .sign(key, hashes.SHA256()))
    path = directory / "both.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return path


async def test_a_certificate_is_checked_against_the_name_although_a_number_is_connected_to(tmp_path: Path) -> None:
    pem = certificate("hooks.example.com", tmp_path)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(pem))
    server.load_cert_chain(pem)
    guard = Guard(OPEN, lambda host, port: ["127.0.0.1"])
    trusting, strangers = SocketCourier(guard, timeout_s=10, tls=client), SocketCourier(guard, timeout_s=10)
    async with listening(server) as endpoint:
        good, other = (f"https://{host}:{endpoint.port}/" for host in ("hooks.example.com", "other.example.com"))
        assert (await trusting.post(good, HEADERS, b"{}")).status == 200
        with pytest.raises(WebhookFailed, match="certificate is not valid for 'other"):
            await trusting.post(other, HEADERS, b"{}")
        with pytest.raises(WebhookFailed, match="self-signed"):
            await strangers.post(good, HEADERS, b"{}")
        assert len(endpoint.received) == 1
