"""A direct link: resumed where it broke, limited, and looked at rather than believed."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from conftest import SAMPLES, StartWorker
from jobserver import JobServer, LoopbackServer

from handler import download as module
from handler.download import download
from handler.sniff import no_media
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

SOUND = b"ID3" + random.Random(2).randbytes(300_000)
HTML = b"<!-- saved -->\n<!DOCTYPE html><html><title>a song</title></html>" + b" " * 2000


@dataclass
class Song:
    """What `/song` is and how it is served: each of `pieces` ends one connection early."""

    body: bytes = SOUND
    pieces: list[int] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    silent: bool = False  # a connection that is cut short stays open, and says nothing
    ranges: bool = True


class SongServer(LoopbackServer):
    """Serves one song; `asked` has each request's headers."""

    def __init__(self) -> None:
        super().__init__()
        self.song = Song()
        self.asked: list[dict[str, str]] = []

    def _routes(self) -> list[web.RouteDef]:
        return [web.get("/song", self._give), web.get("/moved", self._moved)]

    async def _moved(self, request: web.Request) -> web.Response:
        other = self.url.replace("127.0.0.1", "localhost")
        return web.Response(status=302, headers={"Location": f"{other}/song"})

    async def _give(self, request: web.Request) -> web.StreamResponse:
        with self._changed:
            self.asked.append(dict(request.headers))
            self._changed.notify_all()
        song, start = self.song, 0
        given = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        same = request.headers.get("If-Range") in song.headers.values()
        response = web.StreamResponse(headers=song.headers)
        if given and same and song.ranges:
            start = int(given[1])
            response.set_status(206)
            last, size = len(song.body) - 1, len(song.body)
            response.headers["Content-Range"] = f"bytes {start}-{last}/{size}"
        response.content_length = len(song.body) - start
        await response.prepare(request)
        if not song.pieces:
            await response.write(song.body[start:])
            return response
        await response.write(song.body[start : start + song.pieces.pop(0)])
        if song.silent:
            await self._closing.wait()
        if request.transport is not None:
            request.transport.abort()
        return response


@pytest.fixture
def server() -> Iterator[SongServer]:
    with SongServer() as made:
        yield made


Get = Callable[..., Path]


@pytest.fixture
def get(server: SongServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Get:
    """Downloads the song as it stands."""
    monkeypatch.setattr(module, "PAUSE", 0.0)

    def get(song: Song, path: str = "/song", **more: object) -> Path:
        server.song = song
        given = {"max_bytes": 1_000_000, "seconds": 30, "cancel": Cancel(), **more}
        download(server.url + path, tmp_path / "audio", private=True, **given)  # type: ignore[arg-type]
        return tmp_path / "audio"

    return get


def failure(get: Get, song: Song, **more: object) -> JobError:
    with pytest.raises(JobError) as caught:
        get(song, **more)
    return caught.value


@pytest.mark.parametrize(
    "header", [{"ETag": '"one"'}, {"Last-Modified": "Mon, 02 Nov 2026 10:00:00 GMT"}]
)
def test_a_broken_connection_is_taken_up_again(
    get: Get, server: SongServer, header: dict[str, str]
) -> None:
    """With a name for its version, a file is gone on with where it broke; progress never falls."""
    seen: list[tuple[int, int | None]] = []
    song = Song(pieces=[100_000, 100_000], headers=header)
    path = get(song, on_bytes=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == SOUND
    assert len(server.asked) == 3
    assert all("Range" in asked for asked in server.asked[1:])
    assert seen == sorted(seen)
    assert seen[-1] == (len(SOUND), len(SOUND))


def test_without_a_version_it_begins_anew(get: Get, server: SongServer) -> None:
    """A file that may be another one by now is never patched together."""
    assert get(Song(pieces=[100_000])).read_bytes() == SOUND
    assert "Range" not in server.asked[1]


def test_another_version_replaces_the_first(get: Get, server: SongServer) -> None:
    """A file that changed in between is fetched whole, and is not a mixture."""
    song = Song(pieces=[100_000], headers={"ETag": '"one"'})

    def change(done: int, total: int | None) -> None:
        if done < 150_000:
            song.headers["ETag"] = '"two"'
            song.body = b"ID3" + b"\7" * 200_000

    assert get(song, on_bytes=change).read_bytes() == b"ID3" + b"\7" * 200_000
    assert server.asked[1]["If-Range"] == '"one"'


def test_a_server_that_ignores_ranges(get: Get) -> None:
    """A 200 where a part was asked for is the whole file."""
    song = Song(pieces=[100_000], headers={"ETag": '"one"'}, ranges=False)
    assert get(song).read_bytes() == SOUND


def test_a_connection_that_never_gets_on_is_given_up(get: Get, server: SongServer) -> None:
    """A file that breaks off at the same place each time is a network fault, soon."""
    error = failure(get, Song(pieces=[1000] * 50))
    assert error.code is ErrorCode.NETWORK
    assert len(server.asked) <= 4


def test_silence_is_a_break(get: Get, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that falls silent is left for a new one."""
    monkeypatch.setattr(module, "READ_SECONDS", 0.2)
    song = Song(pieces=[100_000], headers={"ETag": '"one"'}, silent=True)
    assert get(song).read_bytes() == SOUND


def test_the_deadline_holds_over_all_tries(get: Get) -> None:
    """Silence past the deadline is a network fault."""
    song = Song(pieces=[100_000], silent=True)
    assert failure(get, song, seconds=0.5).code is ErrorCode.NETWORK


def test_a_cancel_ends_silence(get: Get, server: SongServer) -> None:
    """A cancel does not wait for the server."""
    cancel = Cancel()

    def interrupt() -> None:
        server.wait_until(lambda: bool(server.asked))
        cancel.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    song = Song(pieces=[100_000], silent=True)
    assert failure(get, song, cancel=cancel).code is ErrorCode.CANCELLED
    thread.join()


def test_a_download_moves_the_job_and_ends_with_it(
    jobs: JobServer, start_worker: StartWorker, server: SongServer
) -> None:
    """The job's progress tells the megabytes; a stop waits for no server and leaves no file."""
    server.song = Song(b"ID3" + b"\7" * 1_000_000, pieces=[750_000], silent=True)
    worker = start_worker()
    job = jobs.submit({"audio_url": f"{server.url}/song"})
    body = jobs.wait_progress(job, lambda body: "0.8 MB" in body["output"]["status"])
    assert (body["output"]["stage"], body["output"]["pct"]) == ("download", 11)
    jobs.stop(job)
    following = jobs.submit({"audio_url": str(SAMPLES / "line.flac")})
    jobs.wait_result(following)
    assert [post.job_id for post in jobs.posts if not post.progress] == [following]
    assert worker.left_files() == []


def test_the_announced_size_is_enough_to_refuse(get: Get, tmp_path: Path) -> None:
    """A file that says it is too large is refused before a byte of it is kept."""
    assert failure(get, Song(), max_bytes=250_000).code is ErrorCode.SOURCE_TOO_LARGE
    assert not (tmp_path / "audio").exists()


def test_the_content_is_looked_at(get: Get) -> None:
    """A page called audio is refused, sound called a page is taken, however small."""
    page = failure(get, Song(body=HTML, headers={"Content-Type": "audio/mpeg"}))
    assert page.code is ErrorCode.SOURCE_NOT_AUDIO
    assert "a web page" in page.message
    assert get(Song(headers={"Content-Type": "text/html"})).read_bytes() == SOUND
    assert failure(get, Song(body=b"<html>tiny")).code is ErrorCode.SOURCE_NOT_AUDIO
    assert get(Song(body=b"tiny sound")).read_bytes() == b"tiny sound"


def test_no_compression_is_asked_for(get: Get, server: SongServer) -> None:
    """Sizes and ranges are the file's own, and no archive unfolds on the disk."""
    get(Song())
    assert server.asked[0]["Accept-Encoding"] == "identity"


def test_a_password_stays_with_its_own_site(server: SongServer, tmp_path: Path) -> None:
    """A redirect elsewhere does not carry the link's password along."""
    url = server.url.replace("http://", "http://user:planted@") + "/moved"
    download(url, tmp_path / "a", max_bytes=10**6, seconds=10, private=True, cancel=Cancel())
    assert "Authorization" not in server.asked[0]


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"<!doctype html><p>", "a web page"),
        (b"\xef\xbb\xbf\r\n<HTML lang=en>", "a web page"),
        (b"<?xml version='1.0'?><MPD>", "an XML document"),
        (b"<Error><Code>AccessDenied", "an XML document"),
        (b"#EXTM3U\n#EXT-X-VERSION:3", "a playlist (HLS or M3U), not the sound itself"),
        (b"[playlist]\nFile1=", "a playlist, not the sound itself"),
        (b'{"error": "login"}', "a JSON document"),
        (b"%PDF-1.7", "a PDF document"),
        (b"\x89PNG\r\n\x1a\n", "a picture"),
        (b"\xff\xd8\xff\xe0", "a picture"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "a picture"),
        (b"PK\x03\x04", "an archive"),
        (b"\x7fELF\x02", "a program"),
    ],
)
def test_what_is_no_sound_is_named(head: bytes, what: str) -> None:
    """The first bytes of pages, playlists, pictures and archives are known."""
    assert no_media(head + b"\0" * 100) == what


@pytest.mark.parametrize(
    "head",
    [
        b"ID3\x04\0", b"\xff\xfb\x90\x00", b"\xff\xf1\x50\x80", b"OggS\0\2", b"fLaC\0\0",
        b"RIFF\x24\0\0\0WAVEfmt ", b"\0\0\0\x20ftypM4A ", b"\x1a\x45\xdf\xa3", b"FORM\0\0\0\0AIFF",
        b"#!AMR\n", b".snd", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"", b"\0" * 100, b"MThd",
    ],
)  # fmt: skip
def test_sound_is_left_to_the_decoder(head: bytes) -> None:
    """No form of sound, and nothing unknown, is refused by its first bytes."""
    assert no_media(head) is None
