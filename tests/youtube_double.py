"""A loopback YouTube behind a loopback proxy, for the real yt-dlp: real TLS, its own authority.

The proxy answers CONNECT for every host by itself, so the extractor, its requests and the
downloader are yt-dlp's own. The shapes of the answers follow yt_dlp/extractor/youtube/_video.py.
"""

from __future__ import annotations

import datetime
import json
import re
import secrets
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

HOSTS = ["*.youtube.com", "youtube.com", "*.googlevideo.com", "*.google.com", "*.ytimg.com"]
MEDIA_HOST = "rr1---sn-double.googlevideo.com"


@dataclass
class Film:
    """A video of the double: what the player says of it, and how its sound is served.

    Attributes:
        playability: YouTube's `playabilityStatus`.
        details: more of `videoDetails`.
        fault: `""`, `"403"`, `"break"` (each connection ends after `piece` bytes), `"stall"`
            (silence after `piece` bytes), or `"endless"` (no length is told).
    """

    sound: bytes = b""
    playability: dict[str, Any] = field(default_factory=lambda: {"status": "OK"})
    details: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    length: str | None = None  # what the player says; None: the truth
    fault: str = ""
    piece: int = 20_000
    page_status: int = 200
    location: str = ""  # the media redirects there
    signs_out: bool = False  # its page takes the login cookie back, as YouTube does


class YouTubeDouble:
    """`films` by id; `requests` has (host, method, path, Range) of each request."""

    def __init__(self, folder: Path) -> None:
        self.films: dict[str, Film] = {}
        self.requests: list[tuple[str, str, str, str]] = []
        self.cookies: set[str] = set()  # the Cookie headers that came
        self.arrived = threading.Condition()
        self.tunnels: list[str] = []
        self.authority, context = _certificates(folder)
        double = self

        class Handler(_Handler):
            pass

        Handler.double = double
        Handler.context = context
        self.closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> YouTubeDouble:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_media(self, timeout: float = 30) -> None:
        """Wait until sound was asked for."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: bool(self.media_requests()), timeout)

    def media_requests(self) -> list[tuple[str, str, str, str]]:
        """The requests for sound."""
        return [r for r in self.requests if r[2].startswith("/videoplayback")]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 32

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no fault of the double's."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    double: YouTubeDouble
    context: ssl.SSLContext
    host = ""

    def log_message(self, *_: object) -> None:
        pass

    def do_CONNECT(self) -> None:
        self.double.tunnels.append(self.path)
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.wfile.flush()
        try:
            self.connection = self.context.wrap_socket(self.connection, server_side=True)
        except OSError:
            self.close_connection = True
            return
        self.host = self.path.rpartition(":")[0]
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False
        with suppress(OSError):
            while not self.close_connection:
                self.handle_one_request()
        self.close_connection = True

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()
        for item in (self.rfile, self.wfile, self.connection):
            with suppress(OSError):
                item.close()

    def do_GET(self) -> None:
        self._note()
        path, _, query = self.path.partition("?")
        if path == "/watch":
            self._watch(re.search(r"v=([\w-]{11})", query))
        elif path.startswith("/embed/"):
            context = '{"INNERTUBE_CONTEXT": {"client": {"clientName": "WEB_EMBEDDED_PLAYER"}}}'
            self._send(f"<script>ytcfg.set({context});</script>".encode(), kind="text/html")
        elif path == "/videoplayback":
            self._media(query)
        else:
            self._send(b"", 404)

    def do_POST(self) -> None:
        self._note()
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        if self.path.startswith("/youtubei/v1/player"):
            self._json(self._player(body.get("videoId", "")))
        else:
            self._json({"contents": {"x": {}}})

    def _note(self) -> None:
        given = self.headers.get("Range", "")
        double = self.double
        with double.arrived:
            double.requests.append((self.host, self.command, self.path, given))
            double.cookies.add(self.headers.get("Cookie", ""))
            double.arrived.notify_all()

    def _watch(self, match: re.Match[str] | None) -> None:
        name = match[1] if match else ""
        film = self.double.films.get(name)
        if film is None or film.page_status != 200:
            return self._send(b"", film.page_status if film else 404)
        page = (
            "<html><script>var ytInitialPlayerResponse = "
            + json.dumps(self._player(name))
            + ';</script><script>var ytInitialData = {"contents": {"x": {}}};</script>'
            + '<script>ytcfg.set({"VISITOR_DATA": "double"});</script></html>'
        )
        out = "LOGIN_INFO=; Domain=.youtube.com; Path=/; Max-Age=0" if film.signs_out else ""
        self._send(page.encode(), kind="text/html", cookie=out)

    def _player(self, name: str) -> dict[str, Any]:
        film = self.double.films[name]
        answer: dict[str, Any] = {"playabilityStatus": film.playability, **film.more}
        answer["videoDetails"] = {
            "videoId": name,
            "title": f"Film {name}",
            "lengthSeconds": "12",
            "author": "A Singer",
            **film.details,
        }
        if film.sound:
            length = str(len(film.sound)) if film.length is None else film.length
            answer["streamingData"] = {
                "adaptiveFormats": [
                    {
                        "itag": 251,
                        "url": f"https://{MEDIA_HOST}/videoplayback?film={name}&itag=251",
                        "mimeType": 'audio/webm; codecs="opus"',
                        "bitrate": 130_000,
                        "audioQuality": "AUDIO_QUALITY_MEDIUM",
                        "audioSampleRate": "48000",
                        "audioChannels": 2,
                        **({"contentLength": length} if length else {}),
                    }
                ]
            }
        return answer

    def _media(self, query: str) -> None:
        match = re.search(r"film=([\w-]{11})", query)
        film = self.double.films[match[1] if match else ""]
        if film.location:
            self.send_response(302)
            self.send_header("Location", film.location)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if film.fault.isdigit():
            return self._send(b"", int(film.fault))
        first, last = 0, len(film.sound) - 1
        given = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if given:
            first = int(given[1])
            last = min(last, int(given[2])) if given[2] else last
        body = film.sound[first : last + 1]
        self.send_response(206 if given else 200)
        if film.fault != "endless":
            self.send_header("Content-Length", str(len(body)))
            if given:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(film.sound)}")
        else:
            self.send_header("Connection", "close")
        self.end_headers()
        self._body(film, body)

    def _body(self, film: Film, body: bytes) -> None:
        if film.fault not in ("break", "stall") or len(body) <= film.piece:
            self.wfile.write(body)
        else:
            self.wfile.write(body[: film.piece])
            if film.fault == "stall":
                self.double.closing.wait(60)
        if film.fault:
            self.close_connection = True

    def _json(self, data: Any) -> None:
        self._send(json.dumps(data).encode(), kind="application/json")

    def _send(
        self, body: bytes, status: int = 200, kind: str = "text/plain", cookie: str = ""
    ) -> None:
        self.send_response(status)
        if cookie:
            self.send_header("Set-Cookie", cookie)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _certificates(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority's file, and a server context with a certificate by it."""
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    title = f"loopback double {secrets.token_hex(4)}"  # OpenSSL finds an authority by its name
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, title)])
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(h) for h in HOSTS]), False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    authority, chain = folder / "authority.pem", folder / "chain.pem"
    authority.write_bytes(pem)
    chain.write_bytes(
        pem
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return authority, context
