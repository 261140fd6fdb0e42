"""Nothing internal is reached, however it is spelled: shown on sockets that listen for it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from conftest import ROOT
from youtube_double import Film, YouTubeDouble

from handler import addresses, youtube
from handler.acquire import acquire
from handler.addresses import AddressRefused, Guard, is_public
from handler.config import Settings
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import parse

STAND_IN = "127.0.0.77"  # a loopback address that a test lets count as the public internet

# What a link can name instead of a public address; %d is the port that is listened on.
SPELLINGS = """
127.0.0.1 127.1 127.0.1 2130706433 0x7f000001 0x7f.0.0.1 0x7f.1 0177.0.0.1 017700000001
127.0.0.1. 127.255.255.254 127.000.000.001 0.0.0.0 0 00000000 10.0.0.1 10.255.255.255 012.0.0.1
172.16.0.1 172.31.255.254 192.168.0.1 192.168.1.254 3232235777 169.254.169.254 169.254.170.2
2852039166 0xa9fea9fe 0251.0376.0251.0376 100.64.0.1 100.100.100.200 192.0.0.192 192.0.2.1
198.18.0.1 198.51.100.1 203.0.113.1 192.88.99.1 224.0.0.1 239.255.255.250 240.0.0.1
255.255.255.255 localhost LOCALHOST localhost.
[::1] [::] [0:0:0:0:0:0:0:1] [0000::0001] [::ffff:127.0.0.1] [::ffff:7f00:1]
[::ffff:169.254.169.254] [::127.0.0.1] [::7f00:1] [::ffff:0:127.0.0.1] [64:ff9b::127.0.0.1]
[64:ff9b::a9fe:a9fe] [64:ff9b:1::7f00:1] [2002:7f00:1::] [2002:a9fe:a9fe::1] [2001:0:7f00:1::]
[2001:db8::1] [fe80::1] [fe80::1%%25lo] [fec0::1] [fc00::1] [fd00:ec2::254] [ff02::1] [ff0e::1]
[100::1] [3fff::1] [5f00::1] [2606:4700::5efe:127.0.0.1] [2606:4700::200:5efe:10.0.0.1]
one.internal.test metadata.google.internal six.internal.test mapped.internal.test
many.internal.test example.com@127.0.0.1 example.com:80@127.0.0.1 user:password@[::1]
\u2460\u2461\u2466.\u24ea.\u24ea.\u2460 127\u30020\u30020\u30021
""".split()
ODD_URLS = """
http://127.0.0.1:%d#@example.com/ http://127.0.0.1:%d\\@example.com/ http://127.0.0.1:%d?@example.com/
http:127.0.0.1:%d/ http:/127.0.0.1:%d/ http:///127.0.0.1:%d/ HTTP://127.0.0.1:%d/ //127.0.0.1:%d/
ftp://127.0.0.1:%d/ gopher://127.0.0.1:%d/_GET dict://127.0.0.1:%d/info ws://127.0.0.1:%d/
wss://127.0.0.1:%d/ ldap://127.0.0.1:%d/ tcp://127.0.0.1:%d/ smb://127.0.0.1:%d/x
rtsp://127.0.0.1:%d/x rtmp://127.0.0.1:%d/x concat:http://127.0.0.1:%d/ jar:http://127.0.0.1:%d/!/
view-source:http://127.0.0.1:%d/ http+unix://%%2Fvar%%2Frun%%2Fdocker.sock:%d/
file:///etc/passwd file://127.0.0.1:%d/etc/passwd data:audio/wav;base64,AAAA /etc/passwd
/proc/self/environ
""".split()
URLS = [f"http://{host}:%d/x" for host in SPELLINGS] + ODD_URLS
NAMES = {
    "one.internal.test": ["127.0.0.1"],
    "metadata.google.internal": ["169.254.169.254"],
    "six.internal.test": ["::1"],
    "mapped.internal.test": ["::ffff:127.0.0.1"],
    "many.internal.test": ["10.0.0.1", "127.0.0.1", "::1"],
}


class Listeners:
    """Sockets on every address of this machine, v4 and v6, that count what arrives."""

    def __init__(self) -> None:
        self.sockets = [_listening(socket.AF_INET, "0.0.0.0", 0)]
        self.port: int = self.sockets[0].getsockname()[1]
        with suppress(OSError):  # a machine without IPv6
            self.sockets.append(_listening(socket.AF_INET6, "::", self.port))

    def arrived(self) -> int:
        count = 0
        for listener in self.sockets:
            with suppress(BlockingIOError):
                while True:
                    listener.accept()[0].close()
                    count += 1
        return count

    def close(self) -> None:
        for listener in self.sockets:
            listener.close()


def _listening(family: int, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((host, port))
        made.listen(128)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


@pytest.fixture
def listeners() -> Iterator[Listeners]:
    made = Listeners()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Names of this test's own, resolved in turn: the last answer is given for ever."""
    turns = {name: [found] for name, found in NAMES.items()}

    class Resolver(AbstractResolver):
        def __init__(self, **_: Any) -> None:
            pass

        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            found = [host]
            if host in turns:
                found = turns[host].pop(0) if len(turns[host]) > 1 else turns[host][0]
            elif host.rstrip(".").lower() == "localhost":
                found = ["127.0.0.1", "::1"]
            # Odd spellings are numbers to the system's resolver; others are asked of nobody.
            flags, kind = socket.AI_NUMERICHOST, socket.SOCK_STREAM
            infos = [i for ip in found for i in socket.getaddrinfo(ip, port, 0, kind, flags=flags)]
            return [
                ResolveResult(
                    hostname=host,
                    host=str(where[0]),
                    port=port,
                    family=family_,
                    proto=protocol,
                    flags=flags,
                )
                for family_, _, protocol, _, where in infos
            ]

        async def close(self) -> None:
            pass

    monkeypatch.setattr("aiohttp.connector.DefaultResolver", Resolver)
    return turns


Try = Callable[..., JobError]


@pytest.fixture
def attempt(tmp_path: Path, listeners: Listeners, monkeypatch: pytest.MonkeyPatch) -> Try:
    """Has a worker with its default settings get a link, as a job would."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{listeners.port}")

    def attempt(url: str) -> JobError:
        with pytest.raises(JobError) as caught:
            _acquire(url, tmp_path)
        assert "root:" not in caught.value.message
        assert "password" not in caught.value.message
        return caught.value

    return attempt


def _acquire(url: str, folder: Path) -> None:
    request = parse({"audio_url": url}, default_job_id="ssrf").request
    acquire(request, folder, Settings(), cancel=Cancel())


class StandIn:
    """The public internet: a server that redirects to wherever the path's query says."""

    def __init__(self) -> None:
        self.targets: list[str] = []
        self.asked = 0
        stand_in = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stand_in.asked += 1
                location = stand_in.targets.pop(0) if stand_in.targets else ""
                self.send_response(302 if location else 404)
                if location:
                    self.send_header("Location", location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = HTTPServer((STAND_IN, 0), Handler)
        self.port = self._server.server_port
        self.url = f"http://{STAND_IN}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def public(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """A server whose one address counts as public; every other keeps its meaning."""
    monkeypatch.setattr(addresses, "is_public", lambda host: host == STAND_IN or is_public(host))
    server = StandIn()
    yield server
    server.close()


def test_there_are_enough_of_them() -> None:
    """The lists below are not cut short unnoticed."""
    assert len(set(URLS)) >= 100


@pytest.mark.parametrize("url", URLS)
def test_no_link_reaches_an_internal_address(attempt: Try, listeners: Listeners, url: str) -> None:
    """A job's link to something internal, in every spelling, is refused before it connects."""
    error = attempt(url % listeners.port if "%d" in url else url)
    assert error.code is ErrorCode.INVALID_INPUT
    assert listeners.arrived() == 0


@pytest.mark.parametrize("url", URLS)
def test_no_redirect_reaches_an_internal_address(
    attempt: Try, listeners: Listeners, public: StandIn, url: str
) -> None:
    """A public site can't send the worker there either."""
    target = url % listeners.port if "%d" in url else url
    public.targets = [target.encode("ascii", "ignore").decode()]
    error = attempt(f"{public.url}/song.mp3")
    assert public.asked >= 1
    # A target without a host of its own leads back to the same public site: 404.
    refused = (ErrorCode.INVALID_INPUT, ErrorCode.NETWORK, ErrorCode.SOURCE_NOT_FOUND)
    assert error.code in refused
    assert listeners.arrived() == 0


def test_a_name_that_changes_its_mind(
    attempt: Try, listeners: Listeners, public: StandIn, names: dict[str, list[list[str]]]
) -> None:
    """A name that is public at first and internal the second time is refused the second time."""
    names["rebind.test"] = [[STAND_IN], ["127.0.0.1"]]
    public.targets = [f"http://rebind.test:{listeners.port}/again"]
    error = attempt(f"http://rebind.test:{public.port}/song.mp3")
    assert public.asked == 1
    assert "internal address" in error.message
    assert listeners.arrived() == 0


def test_a_name_with_both_kinds_of_address_uses_the_public_one(
    attempt: Try, listeners: Listeners, public: StandIn, names: dict[str, list[list[str]]]
) -> None:
    """Of a name's addresses only the public ones are connected to."""
    names["both.test"] = [["127.0.0.1", STAND_IN]]
    error = attempt(f"http://both.test:{public.port}/song.mp3")
    assert error.code in (ErrorCode.SOURCE_NOT_FOUND, ErrorCode.INVALID_INPUT)
    assert listeners.arrived() == 0


def test_five_redirects_and_no_more(attempt: Try, public: StandIn) -> None:
    """The sixth redirect is one too many."""
    public.targets = [f"/{n}" for n in range(5)]
    assert attempt(f"{public.url}/song").code is ErrorCode.SOURCE_NOT_FOUND
    public.targets = [f"/{n}" for n in range(6)]
    assert "redirects" in attempt(f"{public.url}/song").message


def test_leave_lifts_it(tmp_path: Path, public: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ALLOW_PRIVATE_NETWORK the same link is asked for."""
    monkeypatch.setattr(addresses, "is_public", is_public)
    request = parse({"audio_url": f"{public.url}/x"}, default_job_id="x").request
    with pytest.raises(JobError) as caught:
        acquire(request, tmp_path, Settings(allow_private_network=True), cancel=Cancel())
    assert caught.value.code is ErrorCode.SOURCE_NOT_FOUND
    assert public.asked == 1


GUARDED = """
import json, socket, sys, urllib.request
import requests, yt_dlp
from handler.addresses import Guard
from handler.ytdlp_process import SITES

order = json.load(sys.stdin)
Guard(SITES).install()
reached = []
plain = yt_dlp.YoutubeDL({"quiet": True, "proxy": "", "logger": None})
ways = {
    "socket": lambda host, url: socket.create_connection((host.strip("[]"), order["port"]), 1),
    "raw": lambda host, url: socket.socket().connect((host, order["port"])),
    "urllib": lambda host, url: urllib.request.urlopen(url, timeout=1),
    "requests": lambda host, url: requests.get(url, timeout=1),
    "yt-dlp": lambda host, url: plain.urlopen(url),
}
for host in order["hosts"]:
    for way, go in ways.items():
        try:
            go(host, f"http://{host}:{order['port']}/x")
            reached.append([way, host])
        except Exception:
            pass
print(json.dumps(reached))
"""
NUMERIC = [host for host in SPELLINGS if host.isascii() and "test" not in host and "@" not in host]


def test_yt_dlp_s_process_is_guarded(listeners: Listeners) -> None:
    """In that process no library reaches an internal address, by whichever way it tries."""
    hosts = [host for host in NUMERIC if "metadata" not in host]
    assert len(hosts) >= 60
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", GUARDED],
        input=json.dumps({"port": listeners.port, "hosts": hosts}),
        cwd=ROOT,
        env={"PATH": "", "http_proxy": f"http://127.0.0.1:{listeners.port}"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == []
    assert listeners.arrived() == 0


SOCKS = """
import sys
import yt_dlp
from handler.addresses import Guard
from handler.ytdlp_process import SITES, _guard_socks

proxy = f"socks5h://127.0.0.1:{sys.argv[1]}"
guard = Guard(SITES, [], [proxy])
guard.install()
_guard_socks(yt_dlp.socks.sockssocket, guard)
downloader = yt_dlp.YoutubeDL({"quiet": True, "proxy": proxy, "logger": None})
for url in ("https://169.254.169.254/", "http://localhost/", "https://[::1]/"):
    try:
        downloader.urlopen(url)
    except Exception:
        print(guard.refused.partition(":")[0].replace(" ", "-"))
"""


def test_a_socks_proxy_is_not_asked_for_internal_hosts(listeners: Listeners) -> None:
    """What goes through SOCKS is looked at before the proxy is even connected to."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SOCKS, str(listeners.port)],
        cwd=ROOT,
        env={"PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["a-site-that-is-not-asked"] * 3, done.stderr[-2000:]
    assert listeners.arrived() == 0


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1:%d/x",
        "https://127.0.0.1:%d/x",
        "http://localhost:%d/x",
        "https://[::1]:%d/x",
        "https://169.254.169.254/latest/meta-data/",
        "http://metadata.google.internal/",
        "https://example.com/elsewhere",
        "file:///etc/passwd",
    ],
)
def test_youtube_can_t_send_yt_dlp_elsewhere(
    listeners: Listeners,
    tmp_path: Path,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A redirect of the sound is followed to YouTube's own sites alone, through a proxy too."""
    monkeypatch.setattr(youtube, "PAUSE", 0.0)
    url = target % listeners.port if "%d" in target else target
    with YouTubeDouble(tmp_path) as site:
        site.films["dQw4w9WgXcQ"] = Film(b"\0" * 5000, location=url)
        settings = Settings(youtube_proxies=site.url, ssl_cert_file=str(site.authority))
        request = parse({"youtube_url": "https://youtu.be/dQw4w9WgXcQ"}, default_job_id="x").request
        with pytest.raises(JobError) as caught:
            acquire(request, tmp_path, settings, cancel=Cancel())
        if not target.startswith("file"):
            assert caught.value.code is ErrorCode.SOURCE_BLOCKED
            assert "another site" in caught.value.message
        assert site.media_requests()
        assert all(
            host.split(":")[0].endswith((".youtube.com", ".googlevideo.com"))
            for host in site.tunnels
        )
        assert all("://" not in path for _, _, path, _ in site.requests)
    assert listeners.arrived() == 0


def test_the_operator_s_own_addresses_are_let_through() -> None:
    """A proxy on this machine may be connected to, at its port alone."""
    guard = Guard(["youtube.com"], ["http://localhost:4416"], ["http://127.0.0.1:3128"])
    guard.check_address(("127.0.0.1", 3128))
    guard.check_address(("142.250.1.1", 443))
    for address in (("127.0.0.1", 22), ("10.0.0.1", 3128), "/var/run/docker.sock", b"x"):
        with pytest.raises(AddressRefused, match="refused"):
            guard.check_address(address)
    guard.check_host("www.youtube.com", 443)
    guard.check_host("localhost", 4416)
    refused = ("youtube.com.evil.test", "notyoutube.com", "169.254.169.254", "localhost", "")
    for host in (*refused, "127.0.0.1"):  # the proxy's host, through the proxy
        with pytest.raises(AddressRefused, match="not asked"):
            guard.check_host(host, 3128)


@pytest.mark.parametrize(
    "host",
    "127.0.0.1 10.0.0.1 192.168.1.1 172.16.0.1 169.254.169.254 100.64.0.1 0.0.0.0 224.0.0.1 "
    "240.0.0.1 255.255.255.255 ::1 :: fe80::1 fc00::1 fec0::1 ff02::1 ::127.0.0.1 "
    "::ffff:10.0.0.1 64:ff9b::7f00:1 2002:7f00:1:: 2001:db8::1 nonsense".split(),
)
def test_internal_addresses_are_not_public(host: str) -> None:
    """No private, local, multicast, reserved, mapped or translated address counts as public."""
    assert not is_public(host)


@pytest.mark.parametrize(
    "host",
    "93.184.216.34 8.8.8.8 142.250.74.46 100.63.255.255 100.128.0.1 172.32.0.1 193.0.0.1 "
    "2606:2800:220:1:248:1893:25c8:1946 2a00:1450:4001:82b::200e 2001:4860:4860::8888 "
    "::ffff:8.8.8.8 64:ff9b::808:808".split(),
)
def test_public_addresses_are_public(host: str) -> None:
    """Ordinary addresses of the internet are let through, NAT64's of such ones too."""
    assert is_public(host)
