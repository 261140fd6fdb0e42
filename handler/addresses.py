"""Which addresses a job may reach, held at the one place that every connection passes.

Names, redirects, odd spellings and names that resolve differently the second time all end in
the address that is connected to: that is what is looked at, never the spelling in a link.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import sys
from collections.abc import Iterable
from typing import Any, NoReturn
from urllib.parse import urlsplit

# https://www.iana.org/assignments/iana-ipv4-special-registry, and multicast and class E.
# Written out: what `ipaddress` calls global changes between Python's patch releases.
INTERNAL_4 = tuple(
    ipaddress.IPv4Network(net)
    for net in (
        "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 "
        "192.0.0.0/24 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 "
        "192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 "
        "224.0.0.0/4 240.0.0.0/4"
    ).split()
)
GLOBAL_6 = ipaddress.IPv6Network("2000::/3")  # all that IANA has given out to the internet
# Teredo, ORCHID, benchmarks, documentation, 6to4, AS112: within it, and nobody's web server.
INTERNAL_6 = tuple(
    ipaddress.IPv6Network(net)
    for net in "2001::/23 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20".split()
)
# An IPv4 address in the last 32 bits: compatible, mapped, translated, and NAT64's own prefix.
CARRIERS = tuple(
    ipaddress.IPv6Network(net)
    for net in ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96")
)
ISATAP = (0x00005EFE, 0x02005EFE)  # bits 32 to 63 from the right; an IPv4 address follows
PORTS = {"http": 80, "https": 443}  # every other scheme is a SOCKS proxy's
REQUEST_LINE = re.compile(rb"([A-Z]{3,7}) (\S+) HTTP/1")


def is_public(host: str) -> bool:
    """Whether a numeric IP address is one of the public internet's."""
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in net for net in INTERNAL_4)
    if any(ip in net for net in CARRIERS):
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    if int(ip) >> 32 & 0xFFFFFFFF in ISATAP:
        return False
    return ip in GLOBAL_6 and not any(ip in net for net in INTERNAL_6)


class Sockets:
    """Makes the sockets of a download, for aiohttp: none to an internal address."""

    def __init__(self, private: bool) -> None:
        self._private = private
        self.refused = False

    def __call__(self, address: Any) -> socket.socket:
        family, kind, protocol, _, where = address
        if not (self._private or is_public(where[0])):
            self.refused = True
            raise OSError("an internal address")
        return socket.socket(family, kind, protocol)


class AddressRefused(Exception):
    """A connection that is not made; no OSError, which libraries take for a fault that passes."""


class Guard:
    """Holds a whole process to public addresses and to some sites, whatever runs in it.

    An audit hook: it can't be taken away again, and no library gets past it.

    Args:
        sites: the domains that may be asked, each with all below it.
        services: URLs of the operator's own that may be asked too (a token provider).
        proxies: URLs of the operator's own that may be connected to; what is asked through
            them must still be one of `sites` or `services`.
        private: whether internal addresses may be reached.
    """

    def __init__(
        self,
        sites: Iterable[str],
        services: Iterable[str] = (),
        proxies: Iterable[str] = (),
        *,
        private: bool = False,
    ) -> None:
        self.refused = ""  # why a connection was last refused; libraries hide the exception
        self._private = private
        self._sites = tuple(site.lower() for site in sites)
        self._services = {_place(url) for url in services}
        own = self._services | {_place(url) for url in proxies}
        self._own = {address for host, port in own for address in _resolved(host, port)}

    def install(self) -> None:
        """Hold this process to the rules until it ends."""
        sys.addaudithook(self._audit)

    def check_address(self, address: Any) -> None:
        """Raise AddressRefused unless a socket may be connected to `address`."""
        if not isinstance(address, tuple) or len(address) < 2:  # a Unix socket's path
            self._refuse("internal address refused")
        host, port = str(address[0]), address[1]
        if self._private or is_public(host) or (host, port) in self._own:
            return
        self._refuse("internal address refused")

    def check_host(self, host: str, port: int) -> None:
        """Raise AddressRefused unless `host` may be asked for something at `port`."""
        host = host.lower().strip("[]").rstrip(".")
        known = any(host == site or host.endswith("." + site) for site in self._sites)
        if not (known or (host, port) in self._services):
            self._refuse(f"a site that is not asked: {host[:100]!r}")

    def _refuse(self, why: str) -> NoReturn:
        self.refused = why
        raise AddressRefused(why)

    def _audit(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            self.check_address(args[1])
        elif event in ("socket.sendto", "socket.sendmsg"):
            self._refuse(f"{event} is not needed here")
        elif event == "http.client.send":
            self._check_request(args[0], args[1])

    def _check_request(self, connection: Any, data: Any) -> None:
        line = REQUEST_LINE.match(data[:8192]) if isinstance(data, bytes) else None
        if line is None:
            return  # a request's body
        method, target = line[1], line[2].decode("latin-1")
        if method == b"CONNECT":
            self.check_host(*_place(f"https://{target}"))
        elif "://" in target:
            self.check_host(*_place(target))
        elif getattr(connection, "_tunnel_host", None):
            self.check_host(str(connection._tunnel_host), int(connection._tunnel_port or 443))
        else:
            self.check_host(str(connection.host), int(connection.port))


def _place(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or PORTS.get(parts.scheme, 1080)


def _resolved(host: str, port: int) -> set[tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return set()  # what can't be resolved can't be reached either, and the request says so
    return {(str(item[4][0]), port) for item in found}
