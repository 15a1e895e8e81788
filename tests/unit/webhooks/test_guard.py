"""Where webhooks may go: however an inner address is written, and whatever a name answers, nothing leads inside."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.settings import WebhookSettings
from serve_app.webhooks.guard import Guard
from workflows.errors import InvalidDocument, WebhookFailed

PUBLIC = "93.184.216.34"
NAMES = {
    "example.com": [PUBLIC], "two.example.com": [PUBLIC, "2606:2800:220:1:248:1893:25c8:1946"],
    "inner.example.com": ["10.0.0.5"], "mixed.example.com": [PUBLIC, "192.168.1.1"], "localhost": ["127.0.0.1", "::1"],
    "mapped.example.com": ["::ffff:127.0.0.1"], "zone.example.com": ["fe80::1%eth0"], "empty.example.com": [],
    "metadata.google.internal": ["169.254.169.254"], "xn--bcher-kva.example": [PUBLIC],
}


def resolve(host: str, port: int) -> list[str]:
    """As the machine's resolver: numbers are themselves, names are looked up."""
    if host in NAMES:
        return NAMES[host]
    try:
        return [str(ipaddress.ip_address(host))]
    except ValueError:
        raise OSError("Name or service not known") from None


def guard(**settings: object) -> Guard:
    return Guard(WebhookSettings.model_validate(settings), resolve)


@pytest.mark.parametrize(("url", "host", "port", "path"), [
    ("https://example.com", "example.com", 443, "/"), ("https://example.com:8443/a?b=c", "example.com", 8443, "/a?b=c"),
    ("HTTPS://EXAMPLE.com/Hook", "example.com", 443, "/Hook"), ("https://example.com./x", "example.com", 443, "/x"),
    (f"https://{PUBLIC}/", PUBLIC, 443, "/"), ("https://two.example.com/", "two.example.com", 443, "/"),
    ("https://[2606:2800:220:1:248:1893:25c8:1946]/", "2606:2800:220:1:248:1893:25c8:1946", 443, "/"),
    ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443, "/"), ("https://example.com?x", "example.com", 443,
                                                                           "/?x"),
])
def test_public_addresses_are_admitted_and_taken_apart(url: str, host: str, port: int, path: str) -> None:
    target = guard().admit(url)
    assert (target.host, target.port, target.path) == (host, port, path)


@pytest.mark.parametrize("url", [
    # other schemes, and none
    "http://example.com/", "ftp://example.com/", "file:///etc/passwd", "gopher://example.com/", "//example.com/",
    "example.com", "https:example.com", "https:///path", "javascript:alert(1)", "",
    # names and passwords, parts that are never sent, characters that parsers disagree on
    "https://user@example.com/", "https://example.com@10.0.0.1/", "https://user:pw@example.com/",
    "https://example.com/#x", "https://example.com\\@10.0.0.1/", "https://exa mple.com/",
    "https://example.com/\r\nX: y", "https://example.com/\tx", "https://b\u00fccher.example/",
    "https://example.com\uff0f@10.0.0.1/", "https://\u2460.example/",
    # ports
    "https://example.com:0/", "https://example.com:65536/", "https://example.com:x/",
    # hosts that cannot be
    "https://./", "https://example..com/", "https://example.com../", "https://-/..", f"https://{'a' * 64}.com/",
    f"https://{'a.' * 130}com/", "https://[::1/", "https://[v1.x]/", "https://[fe80::1%25eth0]/", "https://exam%70le.com/",
    "https://" + "a" * 2000,
    # loopback, in every spelling
    "https://127.0.0.1/", "https://127.0.0.1./", "https://127.8.8.8/", "https://2130706433/", "https://0x7f000001/",
    "https://0177.0.0.1/", "https://0x7f.0.0.1/", "https://127.1/", "https://127.0.1/", "https://017700000001/",
    "https://127.0.0.01/", "https://[::1]/", "https://[0:0:0:0:0:0:0:1]/", "https://[::ffff:127.0.0.1]/",
    "https://[::ffff:7f00:1]/", "https://[::127.0.0.1]/", "https://localhost/", "https://LOCALHOST./",
    # private, link-local, metadata, shared, unspecified, broadcast, multicast, reserved, documentation
    "https://10.0.0.1/", "https://172.16.0.1/", "https://172.31.255.255/", "https://192.168.0.1/",
    "https://169.254.169.254/latest/meta-data/", "https://100.64.0.1/", "https://100.100.100.200/", "https://0.0.0.0/",
    "https://0/", "https://255.255.255.255/", "https://224.0.0.1/", "https://240.0.0.1/", "https://192.0.2.1/",
    "https://192.0.0.192/", "https://192.88.99.1/", "https://[64:ff9b:1::1]/", "https://[3fff::1]/",
    "https://198.18.0.1/", "https://168.63.129.16/", "https://[::]/", "https://[fc00::1]/",
    "https://[fd00:ec2::254]/", "https://[fe80::1]/", "https://[fec0::1]/", "https://[ff02::1]/", "https://[2001:db8::1]/",
    # IPv4 inside IPv6
    "https://[::ffff:10.0.0.1]/", "https://[::ffff:169.254.169.254]/", "https://[64:ff9b::10.0.0.1]/",
    "https://[64:ff9b::a9fe:a9fe]/", "https://[2002:7f00:1::]/", "https://[2002:a00:1::]/",
    "https://[2001:0:4136:e378:8000:63bf:f5ff:fffe]/", "https://[::10.0.0.1]/",
    # names that lead inside, or nowhere
    "https://inner.example.com/", "https://mixed.example.com/", "https://mapped.example.com/",
    "https://zone.example.com/", "https://metadata.google.internal/", "https://empty.example.com/",
    "https://unknown.example.com/",
])
def test_everything_else_is_refused_with_its_field(url: str) -> None:
    with pytest.raises(InvalidDocument) as refused:
        guard().admit(url)
    assert [problem.field for problem in refused.value.problems] == ["url"]


def test_a_name_that_answers_otherwise_later_is_refused_then() -> None:
    answers = [[PUBLIC], ["127.0.0.1"]]
    changing = Guard(WebhookSettings(), lambda host, port: answers.pop(0))
    target = changing.admit("https://rebinding.example.com/")
    with pytest.raises(WebhookFailed, match=r"rebinding.example.com is 127.0.0.1, which is no public address"):
        changing.addresses(target)


def test_an_operator_can_allow_networks_and_plain_http_and_nothing_more() -> None:
    open_ = guard(allow_http=True, allowed_networks=["127.0.0.0/8", "fd00:1::/32"])
    for url in ("http://127.0.0.1:9/", "https://[::ffff:127.0.0.1]/", "https://[fd00:1::5]/", "http://example.com/"):
        assert open_.admit(url)
    for url in ("http://10.0.0.1/", "http://[::1]/", "http://localhost/", "ftp://127.0.0.1/"):
        with pytest.raises(InvalidDocument):
            open_.admit(url)


def test_the_host_header_has_the_port_where_it_is_not_the_schemes_own() -> None:
    assert [guard().admit(url).authority for url in (
        "https://example.com/", "https://example.com:8443/", "https://[2606:2800:220:1:248:1893:25c8:1946]:99/")] == [
        "example.com", "example.com:8443", "[2606:2800:220:1:248:1893:25c8:1946]:99"]


PIECES = st.sampled_from([
    "https://", "http:", "//", "[", "]", "::", "@", ":", "/", "?", "#", ".", "%", "\\", "\r\n", "\0", "127.0.0.1",
    "0x7f", "0177", "localhost", "example.com", "443", "fe80::1", "1", "\uff0e", "\u3002", "xn--", "\ud800", "a" * 64])


@given(st.one_of(st.lists(PIECES, max_size=12).map("".join), st.text(max_size=60).map("https://{}".format)))
def test_whatever_is_sent_is_refused_or_leads_outside(url: str) -> None:
    reached: list[str] = []

    def remember(host: str, port: int) -> list[str]:
        reached.append(host)
        return resolve(host, port)

    try:
        target = Guard(WebhookSettings(), remember).admit(url)
    except InvalidDocument:
        return
    assert reached == [target.host]
    assert all(ipaddress.ip_address(address).is_global for address in resolve(target.host, target.port))
