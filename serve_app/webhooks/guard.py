"""Where webhooks may go: addresses that anybody could reach, and nothing behind our own door. Knows no HTTP client.

Whoever may register a webhook chooses what this machine connects to. Without a guard that is every service that trusts
its network: a cloud's metadata, a database on loopback, Ray's own ports.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from configs.settings import WebhookSettings
from workflows.errors import InvalidDocument, Problem, WebhookFailed

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Sequence[str]]
"""Name and port -> addresses as text. Blocking; raises OSError."""

MAX_URL_CHARS = 2000
MAX_NAME_CHARS = 253
PORTS = {"https": 443, "http": 80}
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
V4_COMPATIBLE = ipaddress.IPv6Network("::/96")
DENIED = tuple(ipaddress.ip_network(network) for network in (
    "168.63.129.16/32",  # public by number, but answered by the cloud's own host
    # Special by their registration; not every supported Python knows so.
    "192.0.0.0/24", "192.88.99.0/24", "198.18.0.0/15", "64:ff9b:1::/48", "100::/64", "2001::/23", "3fff::/20",
    "5f00::/16"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An address that a webhook is sent to, taken apart once."""

    scheme: str
    host: str
    """A name in lower case, or an address; no brackets, no dot at its end."""
    port: int
    path: str
    """With the query; begins with `/`."""

    @property
    def authority(self) -> str:
        """What goes into the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


class Unresolved(WebhookFailed):
    """A name for which the resolver had no address just now."""


class Guard:
    """The rules in force."""

    def __init__(self, settings: WebhookSettings, resolve: Resolve | None = None) -> None:
        """`resolve`: None takes the machine's own resolver."""
        self._settings = settings
        self._resolve = resolve or system_resolve

    def admit(self, url: str) -> Target:
        """An address at its registration: written as it should be, and not leading inside. Blocking: asks the resolver.

        Raises InvalidDocument.
        """
        target = self.parse(url)
        try:
            self.addresses(target)
        except WebhookFailed as error:
            raise _refused(error.reason) from None
        return target

    def parse(self, url: str) -> Target:
        """Take an address apart. Raises InvalidDocument."""
        if not 0 < len(url) <= MAX_URL_CHARS:
            raise _refused(f"an address has 1 to {MAX_URL_CHARS} characters")
        if any(not "!" <= char <= "~" or char in "\\\"<>^`{|}" for char in url):
            raise _refused("write it in ASCII, without spaces; other characters percent-encoded, other names in "
                           "punycode (xn--...)")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise _refused(f"is not an address: {error}") from None
        schemes = ("https", "http") if self._settings.allow_http else ("https",)
        if parts.scheme not in schemes:
            nearest = " or ".join(f"{scheme}://" for scheme in schemes)
            raise _refused(f"begins with {parts.scheme!r}" if parts.scheme else "has no scheme", nearest=nearest)
        if "@" in parts.netloc:
            raise _refused("has a user name or password in it; the signature says who sends")
        if parts.fragment:
            raise _refused("has a part after #, which is never sent")
        if port == 0:
            raise _refused("port 0", nearest="1 to 65535")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Target(scheme=parts.scheme, host=_host(parts.hostname or "", bracketed="[" in parts.netloc),
                      port=port or PORTS[parts.scheme], path=path)

    def addresses(self, target: Target) -> tuple[str, ...]:
        """The addresses of a target, each allowed; connect to these and ask no resolver again. Blocking.

        Raises Unresolved: the name has none, or WebhookFailed: one of them leads inside. One is enough: who answers
        with a public and a private address hopes for the private one.
        """
        try:
            found = tuple(dict.fromkeys(self._resolve(target.host, target.port)))
        except (OSError, UnicodeError) as error:
            raise Unresolved(reason=f"{target.host} has no address: {error}") from None
        if not found:
            raise Unresolved(reason=f"{target.host} has no address")
        for text in found:
            # A zone (fe80::1%eth0) names an interface of this machine.
            if "%" in text or not self.allows(ipaddress.ip_address(text)):
                raise WebhookFailed(reason=f"{target.host} is {text}, which is no public address; an operator can "
                                           "allow its network with webhooks.allowed_networks")
        return found

    def allows(self, address: Address) -> bool:
        """Whether webhooks may go to this address."""
        if any(address in network for network in self._settings.allowed_networks):
            return True
        if any(address in network for network in DENIED):
            return False
        inner = _embedded(address)
        if inner is not None:
            # The wrapped address is the one that is reached; an IPv6 form of it is no other place.
            return self.allows(inner)
        if address.is_multicast or address.is_reserved or address.is_unspecified:
            return False
        site_local = isinstance(address, ipaddress.IPv6Address) and address.is_site_local
        return address.is_global and not address.is_private and not address.is_link_local and not site_local


def system_resolve(host: str, port: int) -> list[str]:
    """The machine's own resolver."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


def _host(host: str, *, bracketed: bool) -> str:
    name = host.removesuffix(".").lower()
    if bracketed:
        try:
            return str(ipaddress.IPv6Address(name))
        except ValueError:
            raise _refused(f"[{host}] is not an IPv6 address") from None
    labels = name.split(".")
    if not name or len(name) > MAX_NAME_CHARS or not all(0 < len(label) <= 63 for label in labels):
        raise _refused("has no host name, or one that cannot exist")
    if not all(char.isalnum() or char in "-_" for label in labels for char in label):
        raise _refused(f"{host!r} is no host name")
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        # Programs read 2130706433, 0x7f.1 and 0177.0.0.1 as addresses, and not all as the same.
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise _refused(f"{host!r} is a number, not a name; an address is written as four decimal numbers, none "
                           "with a leading zero") from None
    return name


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    if address.ipv4_mapped or address.sixtofour:
        return address.ipv4_mapped or address.sixtofour
    if address in NAT64 or (address in V4_COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def _refused(problem: str, *, nearest: str = "") -> InvalidDocument:
    return InvalidDocument(problems=(Problem(field="url", problem=problem, nearest=nearest),))
