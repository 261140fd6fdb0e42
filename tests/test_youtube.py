"""YouTube: every link's id, and the real yt-dlp against a loopback YouTube in every mood."""

from __future__ import annotations

import base64
import itertools
import json
import os
import random
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import structlog
import yt_dlp
from conftest import ROOT
from youtube_double import MEDIA_HOST, Film, YouTubeDouble
from yt_dlp.extractor.youtube.pot._director import EXTRACTOR_ARG_PREFIX

from handler import youtube
from handler.config import Settings
from handler.cookies import CookieState, cookies
from handler.refusals import Exit, Kind, clean, kind_of, refusal
from handler.video import video_id, watch_url
from handler.youtube import Exits, Video, announce, fetch
from handler.ytdlp import YtDlp, check
from handler.ytdlp_process import _options
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError

NAME = "dQw4w9WgXcQ"
SOUND = random.Random(4).randbytes(100_000)
PLUGIN = "bgutil-ytdlp-pot-provider"
SECRET = "planted-cookie-7c41e9"
REFUSALS = json.loads((Path(__file__).parent / "recordings" / "refusals.json").read_text())


def cookie_text(value: str = SECRET, end: int = 4_000_000_000) -> str:
    rows = (("LOGIN_INFO", value), ("SAPISID", value), ("PREF", "f1=50000000"))
    return "".join(f".youtube.com\tTRUE\t/\tTRUE\t{end}\t{name}\t{v}\n" for name, v in rows)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[YouTubeDouble]:
    with YouTubeDouble(tmp_path_factory.mktemp("certificates")) as double:
        yield double


@pytest.fixture(autouse=True)
def _fresh(site: YouTubeDouble) -> None:
    site.requests.clear()
    site.tunnels.clear()
    site.cookies.clear()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of the test's own: what is left in it was left behind."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(youtube, "PAUSE", 0.0)
    return folder


Fetch = Callable[..., Video]


@pytest.fixture
def get(site: YouTubeDouble, tmp_path: Path, temporary: Path) -> Iterator[Fetch]:
    """Fetches a film of the loopback YouTube; no temporary file may be left."""
    folder = tmp_path / "50% of %(id)s"
    folder.mkdir()

    def get(film: Film, *, name: str = NAME, **more: Any) -> Video:
        site.films[name] = film
        cancel = more.pop("cancel", Cancel())
        on_bytes = more.pop("on_bytes", lambda done, total: None)
        exits = more.pop("exits", None)
        settings = Settings(
            **{
                "youtube_proxies": site.url,
                "ssl_cert_file": str(site.authority),
                "download_seconds": 60,
                **more,
            }
        )
        url = f"https://youtu.be/{name}?t=3"
        return fetch(url, folder, settings, cancel=cancel, on_bytes=on_bytes, exits=exits)

    yield get
    assert list(temporary.iterdir()) == []


def failure(get: Fetch, film: Film, **more: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        get(film, **more)
    error = caught.value
    assert SECRET not in error.to_json()
    assert "http://127" not in error.message
    return error


GOOD_LINKS = """
https://www.youtube.com/watch?v=dQw4w9WgXcQ
http://www.youtube.com/watch?v=dQw4w9WgXcQ
https://youtube.com/watch?v=dQw4w9WgXcQ&list=PL1&index=2&t=10s
https://www.youtube.com/watch?list=RDdQw4w9WgXcQ&v=dQw4w9WgXcQ&start_radio=1
https://www.youtube.com/watch?feature=youtu.be&v=dQw4w9WgXcQ#t=1m
https://www.youtube.com/watch/?v=dQw4w9WgXcQ
https://www.youtube.com/?v=dQw4w9WgXcQ
https://WWW.YouTube.COM/watch?v=dQw4w9WgXcQ
https://www.youtube.com./watch?v=dQw4w9WgXcQ
https://www.youtube.com:443/watch?v=dQw4w9WgXcQ
https://www.youtube.com/watch?v=dQw4w9WgXcQ?si=abc
https://m.youtube.com/watch?v=dQw4w9WgXcQ&pp=x
https://m.youtube.com/shorts/dQw4w9WgXcQ
https://music.youtube.com/watch?v=dQw4w9WgXcQ&list=OLAK5
https://gaming.youtube.com/watch?v=dQw4w9WgXcQ
https://youtu.be/dQw4w9WgXcQ
https://youtu.be/dQw4w9WgXcQ?t=3
https://youtu.be/dQw4w9WgXcQ?list=PL1&si=z
https://youtu.be/dQw4w9WgXcQ/
https://www.youtu.be/dQw4w9WgXcQ
https://youtu.be/watch?v=dQw4w9WgXcQ
https://www.youtube.com/shorts/dQw4w9WgXcQ?feature=share
https://youtube.com/live/dQw4w9WgXcQ?si=x
https://www.youtube.com/embed/dQw4w9WgXcQ?start=5&autoplay=1
https://www.youtube-nocookie.com/embed/dQw4w9WgXcQ
https://www.youtubekids.com/watch?v=dQw4w9WgXcQ
https://www.youtube.com/v/dQw4w9WgXcQ
https://www.youtube.com/e/dQw4w9WgXcQ
https://www.youtube.com/watch/dQw4w9WgXcQ
https://www.youtube.com/attribution_link?a=x&u=%2Fwatch%3Fv%3DdQw4w9WgXcQ%26feature%3Dshare
""".split()

NO_VIDEOS = {
    "https://www.youtube.com/playlist?list=PL123": "a playlist",
    "https://www.youtube.com/watch?list=PL123": "a playlist",
    "https://music.youtube.com/playlist?list=OLAK5uy": "a playlist",
    "https://www.youtube.com/embed/videoseries?list=PL123": "a playlist",
    "https://www.youtube.com/embed?listType=playlist&list=PL1": "a playlist",
    "https://www.youtube.com/feed/subscriptions": "a playlist or a list",
    "https://www.youtube.com/results?search_query=song": "a list of videos",
    "https://www.youtube.com/@singer": "a channel",
    "https://www.youtube.com/@singer/videos": "a channel",
    "https://www.youtube.com/channel/UCuAXFkgsw1L7xaCfnd5JJOw": "a channel",
    "https://www.youtube.com/c/singer": "a channel",
    "https://www.youtube.com/user/singer": "a channel",
    "https://www.youtube.com/embed/live_stream?channel=UCx": "a channel",
    "https://www.youtube.com/clip/UgkxABCDEFGHIJKL": "a clip",
    "https://www.youtube.com/watch?v=short": "11",
    "https://youtu.be/dQw4w9WgXcQQ": "11",
    "https://youtu.be/..%2f..%2fetc": "11",
    "https://www.youtube.com/watch?v=--exec%20id": "11",
    "https://www.youtube.com/": "one YouTube video",
    "https://youtu.be/": "one YouTube video",
    "https://youtube.com@127.0.0.1/watch?v=dQw4w9WgXcQ": "not a YouTube link",
    "https://youtube.com.example.com/watch?v=dQw4w9WgXcQ": "not a YouTube link",
    "https://notyoutube.com/watch?v=dQw4w9WgXcQ": "not a YouTube link",
    "https://evil.youtube.com.co/watch?v=dQw4w9WgXcQ": "not a YouTube link",
    "ftp://youtube.com/watch?v=dQw4w9WgXcQ": "not a YouTube link",
    "file:///youtube.com/watch?v=dQw4w9WgXcQ": "not a YouTube link",
    "ytsearch:song": "not a YouTube link",
    "http://[youtube.com/watch?v=dQw4w9WgXcQ": "not a link",
}


@pytest.mark.parametrize("url", GOOD_LINKS)
def test_the_id_is_found_in_every_form(url: str) -> None:
    """Whatever form a link to a video has, with lists and times, its id is taken out."""
    assert video_id(url) == NAME


@pytest.mark.parametrize(("url", "says"), NO_VIDEOS.items())
def test_a_link_to_no_video_says_what_it_is(url: str, says: str) -> None:
    """Playlists, channels, clips and look-alikes are refused by name."""
    with pytest.raises(JobError, match="youtube_url") as caught:
        video_id(url)
    assert caught.value.code is ErrorCode.INVALID_INPUT
    assert says in caught.value.message


def test_the_sound_comes_as_it_is(get: Fetch, site: YouTubeDouble) -> None:
    """The file is YouTube's own, byte for byte, and only the canonical link was asked for."""
    seen: list[tuple[int, int | None]] = []
    video = get(Film(SOUND), on_bytes=lambda done, total: seen.append((done, total)))
    assert video.path.read_bytes() == SOUND
    assert (video.title, video.duration, video.format) == (f"Film {NAME}", 12, "251")
    assert video.version == yt_dlp.version.__version__
    assert seen[-1] == (len(SOUND), len(SOUND))
    assert seen == sorted(seen)
    pages = [path for _, method, path, _ in site.requests if method == "GET" and "/watch" in path]
    assert [page.partition("&")[0] for page in pages] == [watch_url(NAME).partition(".com")[2]]
    assert set(site.tunnels) <= {"www.youtube.com:443", f"{MEDIA_HOST}:443"}


def test_a_title_is_one_clean_line(get: Fetch) -> None:
    """Control characters and endless titles don't reach the result."""
    video = get(Film(SOUND, details={"title": "a\nb\x1b[31m\u2028c" + "x" * 9000}))
    assert video.title is not None
    assert video.title.startswith("a b [31m c")
    assert len(video.title) == 500


@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: row["name"])
def test_each_refusal_has_its_code_and_remedy(
    get: Fetch, site: YouTubeDouble, row: dict[str, Any]
) -> None:
    """What YouTube's player says becomes, through the real yt-dlp, the contract's error."""
    error = failure(get, Film(playability=row["playability"]))
    assert error.code == row["code"]
    assert row["says"] in error.message
    assert row["hint"] in error.hint
    if row["code"] != "source_unavailable":
        assert "age" not in error.message.split()
    if row["code"] == "source_blocked":
        pages = [r for r in site.requests if r[2].startswith("/watch")]
        assert len(pages) == 1  # not asked again from the same exit


@pytest.mark.parametrize(
    ("film", "code", "says"),
    [
        (Film(page_status=429), "source_blocked", "429"),
        (Film(page_status=403, playability={}), "source_blocked", "403"),
        (Film(page_status=503), "network", "503"),
        (Film(SOUND, fault="403"), "source_blocked", "refused its sound (403)"),
        (Film(SOUND, fault="404"), "network", "404"),
        (Film(SOUND, details={"isLive": True}), "source_unavailable", "is live"),
        (Film(SOUND, details={"isUpcoming": True}), "source_unavailable", "not begun"),
        (Film(SOUND, details={"isPostLiveDvr": True}), "source_unavailable", "recording"),
        (Film(SOUND, details={"lengthSeconds": "36000"}), "source_too_long", "36000 s"),
        (Film(SOUND, length="900000000"), "source_too_large", "900.0 MB"),
        (Film(more={"streamingData": {"licenseInfos": [1]}}), "source_unavailable", "DRM"),
    ],
    ids="429 403 503 media-403 media-404 live upcoming post-live long large drm".split(),
)
def test_each_state_of_a_video_has_its_code(
    get: Fetch, site: YouTubeDouble, film: Film, code: str, says: str
) -> None:
    """Live, too long and too large are known before a byte; statuses tell blocks from faults."""
    error = failure(get, film)
    assert error.code == code
    assert says in error.message
    assert len(site.media_requests()) <= (1 if code == "source_blocked" else 2)
    if code.startswith(("source_too", "source_un")):
        assert site.media_requests() == []


def test_a_size_that_was_not_told_is_still_limited(get: Fetch) -> None:
    """A stream without a length ends where the limit is."""
    film = Film(SOUND * 30, length="", fault="endless")
    assert failure(get, film, max_audio_mb=1).code is ErrorCode.SOURCE_TOO_LARGE


def test_a_broken_download_is_resumed(get: Fetch, site: YouTubeDouble) -> None:
    """Each new connection goes on where the last one broke off, and the file is whole."""
    video = get(Film(SOUND, fault="break", piece=40_000))
    assert video.path.read_bytes() == SOUND
    starts = [int(r[3].removeprefix("bytes=").partition("-")[0]) for r in site.media_requests()]
    assert len(starts) >= 3
    assert all(before < start <= before + 40_000 for before, start in itertools.pairwise(starts))


def test_the_deadline_ends_a_silent_download(get: Fetch) -> None:
    """A connection that says nothing more is a network fault at the deadline."""
    error = failure(get, Film(SOUND, fault="stall"), download_seconds=2)
    assert error.code is ErrorCode.NETWORK
    assert "2 s" in error.message


def test_a_cancel_ends_a_silent_download(get: Fetch, site: YouTubeDouble) -> None:
    """A cancel does not wait for YouTube, and leaves no process and no file."""
    cancel = Cancel()

    def interrupt() -> None:
        site.wait_media()
        cancel.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    error = failure(get, Film(SOUND, fault="stall"), cancel=cancel)
    thread.join()
    assert error.code is ErrorCode.CANCELLED


def test_a_dead_yt_dlp_costs_one_job(
    get: Fetch, site: YouTubeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of yt-dlp's process is said with its signal, and may be tried again."""
    started: list[YtDlp] = []
    init = YtDlp.__init__

    def noted(self: YtDlp, *arguments: Any) -> None:
        init(self, *arguments)
        started.append(self)

    monkeypatch.setattr(YtDlp, "__init__", noted)

    def crash() -> None:
        site.wait_media()
        os.kill(started[0]._process.pid, signal.SIGSEGV)

    thread = threading.Thread(target=crash)
    thread.start()
    error = failure(get, Film(SOUND, fault="stall"))
    thread.join()
    assert error.code is ErrorCode.INTERNAL
    assert "signal 11" in error.message
    assert error.retryable


def test_proxies_are_tried_in_turn(
    get: Fetch, site: YouTubeDouble, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A dead exit and a blocked one are passed over; the blocked one is not asked again soon."""
    with YouTubeDouble(tmp_path_factory.mktemp("blocked")) as blocked:
        both = Path(tmp_path_factory.mktemp("both")) / "authorities.pem"
        both.write_bytes(site.authority.read_bytes() + blocked.authority.read_bytes())
        setting = f"http://user:{SECRET}@127.0.0.1:9, {blocked.url} {site.url}"
        exits = Exits(setting)
        for name in (NAME, "aqz-KE-bpKQ"):
            blocked.films[name] = Film(playability=REFUSALS[0]["playability"])
            video = get(Film(SOUND), name=name, ssl_cert_file=str(both), exits=exits)
            assert video.path.read_bytes() == SOUND
        # The second job of this worker goes elsewhere first, and so asks it not at all.
        assert len([r for r in blocked.requests if r[2].startswith("/watch")]) == 1


def test_a_block_on_every_exit_says_how_many(get: Fetch, site: YouTubeDouble) -> None:
    """The block is reported rather than the exit that was down, and secrets stay out."""
    exits = f"http://user:{SECRET}@127.0.0.1:9 {site.url}"
    error = failure(get, Film(playability=REFUSALS[0]["playability"]), youtube_proxies=exits)
    assert error.code is ErrorCode.SOURCE_BLOCKED
    assert "2 of 2 exits" in error.message
    assert "another proxy" in error.hint


def test_the_list_of_proxies_is_read() -> None:
    """Commas and spaces part them, `direct` is this machine's own exit, none means direct."""
    three = Exits(" http://a:1, socks5://b:2\nDIRECT ")
    assert three.in_turn() == [(1, "http://a:1"), (2, "socks5://b:2"), (3, "")]
    assert Exits("").in_turn() == [(1, "")]


def test_a_blocked_exit_is_the_last_to_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a while the others come first; a lone one is asked all the same, as blocks pass."""
    exits = Exits("http://a:1 http://b:2")
    exits.blocked("http://a:1")
    assert exits.in_turn() == [(2, "http://b:2"), (1, "http://a:1")]
    exits.blocked("http://b:2")
    assert exits.in_turn() == [(1, "http://a:1"), (2, "http://b:2")]
    monkeypatch.setattr(youtube, "BLOCKED_SECONDS", -1.0)
    exits.blocked("http://a:1")
    assert exits.in_turn() == [(1, "http://a:1"), (2, "http://b:2")]


def test_cookies_are_lent_privately(
    get: Fetch, site: YouTubeDouble, temporary: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """YouTube gets the cookies; on disk they are for this user alone, and gone afterwards."""
    modes: list[tuple[int, int]] = []
    cancel = Cancel()

    def look() -> None:
        site.wait_media()
        for path in temporary.rglob("cookies.txt"):
            modes.append((stat.S_IMODE(path.stat().st_mode), path.parent.stat().st_mode & 0o777))
        cancel.set()

    thread = threading.Thread(target=look)
    thread.start()
    film = Film(SOUND, fault="stall")
    encoded = base64.b64encode(cookie_text().encode()).decode()
    failure(get, film, youtube_cookies_b64=encoded, cancel=cancel)
    thread.join()
    assert modes == [(0o600, 0o700)]
    assert any(SECRET in header for header in site.cookies)
    printed = capfd.readouterr()
    assert SECRET not in printed.out + printed.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no cookies are set"),
        ('[{"name": "LOGIN_INFO"}]', "Netscape"),
        (cookie_text().replace("LOGIN_INFO", "OTHER"), "signed-out"),
        (cookie_text(end=1_000_000_000), "have expired"),
        (cookie_text(), "another route"),
    ],
    ids="none json signed-out expired usable".split(),
)
def test_the_hint_of_a_block_knows_the_cookies(get: Fetch, text: str, says: str) -> None:
    """Missing, unreadable, signed-out and expired cookies each have their remedy."""
    film = Film(playability=REFUSALS[0]["playability"])
    error = failure(get, film, youtube_cookies_content=text)
    assert error.code is ErrorCode.SOURCE_BLOCKED
    assert says in error.hint


def test_cookies_that_youtube_takes_back_have_expired(get: Fetch) -> None:
    """Cookies that look well but that YouTube no longer takes are recognised as expired."""
    film = Film(playability=REFUSALS[0]["playability"], signs_out=True)
    assert "have expired" in failure(get, film, youtube_cookies_content=cookie_text()).hint


def test_the_state_of_cookies() -> None:
    """Line breaks as dashboards store them and tabs lost in pasting are put right."""
    usable = cookies(cookie_text().replace("\n", "\\n"), "", now=0)
    assert usable.state is CookieState.USABLE
    assert cookies(cookie_text().replace("\t", "  "), "", now=0).text == usable.text
    assert cookies("#HttpOnly_" + cookie_text(), "", now=0).state is CookieState.USABLE
    assert cookies("", "not base64!").state is CookieState.UNREADABLE
    assert cookies("", "").state is CookieState.MISSING
    assert cookies(cookie_text(end=0), "", now=9e9).state is CookieState.USABLE
    assert SECRET not in repr(usable)
    assert SECRET not in repr(Settings(youtube_cookies_content=SECRET, youtube_proxies=SECRET))


def test_without_a_runtime_a_block_says_so() -> None:
    """A block with no JavaScript runtime names it; with one it doesn't."""
    said = refusal(NAME, "ERROR: [youtube] x: Sign in to confirm you're not a bot", Exit())
    assert "deno" in said.hint
    found = Exit(runtime="deno 2.9.8")
    assert "deno" not in refusal(NAME, "Requested format is not available", found).hint


def test_warnings_tell_the_cause_behind_a_text_that_does_not() -> None:
    """A 429 that yt-dlp only warned of is the block behind its `no player response`."""
    warning = "[youtube] Unable to download API page: HTTP Error 429: Too Many Requests"
    error = refusal(NAME, "Failed to extract any player response", Exit(), warnings=(warning,))
    assert "limits the requests" in error.message


def test_real_exceptions_of_yt_dlp() -> None:
    """yt-dlp's own classes and texts, as its extractor words them, find their kind."""
    error = yt_dlp.utils.ExtractorError
    texts: dict[str, Kind] = {
        str(error("Unable to extract yt initial data")): Kind.BROKEN,
        str(error("All player responses are invalid. Your IP is likely being blocked by Youtube"))
        + "": Kind.BOT_CHECK,
        str(error("No video formats found!", expected=True)): Kind.NO_FORMATS,
        str(error("This video is DRM protected", expected=True)): Kind.DRM,
        str(error("The channel is not currently live", expected=True)): Kind.LIVE,
        "Unable to download webpage: <urlopen error timed out>": Kind.NETWORK,
        "Unable to connect to proxy": Kind.PROXY,
        "unable to write data: [Errno 27] File too large": Kind.TOO_LARGE,
        "unable to write data: [Errno 28] No space left on device": Kind.DISK,
        "AddressRefused: a site that is not asked: 'consent.example'": Kind.ELSEWHERE,
        "[Errno 101] internal address refused": Kind.INTERNAL_ADDRESS,
        "Incomplete YouTube ID dQw4. URL https://x looks truncated.": Kind.NOT_FOUND,
    }
    assert {text: kind_of(text) for text in texts} == texts
    assert kind_of("words", ("GeoRestrictedError",)) is Kind.GEO


def test_no_secret_is_in_a_cleaned_text() -> None:
    """Queries, users, passwords, planted secrets and control characters are gone."""
    text = f"\x1b[0;31mERROR:\x1b[0m [youtube] {NAME}: no\nway to https://u:p@h.com/x?sig={SECRET}"
    shown = clean(text + f" with {SECRET}", frozenset({SECRET}))
    assert shown == "no way to https://h.com/... with ***"
    assert len(clean("x" * 9999)) == 300


def test_the_process_sees_no_key_of_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """yt-dlp's environment holds neither the worker's keys nor a proxy nor a home's settings."""
    monkeypatch.setenv("CLOUDINARY_URL", SECRET)
    monkeypatch.setenv("RUNPOD_AI_API_KEY", SECRET)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with YtDlp() as process:
        next(process.events())
        pid = process._process.pid
        env = Path(f"/proc/{pid}/environ").read_bytes()
        assert Path(f"/proc/{pid}/cmdline").read_bytes().endswith(b"handler.ytdlp_process\0")
    assert SECRET.encode() not in env
    assert b"proxy" not in env
    assert f"HOME={os.environ.get('HOME')}\0".encode() not in env


def test_the_process_ends_with_its_parent() -> None:
    """Killed without a word, the worker leaves no yt-dlp behind."""
    script = (
        "import os, signal; from handler.ytdlp import YtDlp; p = YtDlp();"
        "next(p.events()); p.order({}); print(p._process.pid, flush=True); signal.pause()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    handle = os.pidfd_open(pid)
    parent.kill()
    parent.communicate()
    poll = __import__("select").poll()
    poll.register(handle)
    assert poll.poll(30_000)
    os.close(handle)


def test_what_yt_dlp_is_told(tmp_path: Path) -> None:
    """Clients and the token provider reach yt-dlp where it looks for them; no file is converted."""
    order = {
        "id": NAME,
        "folder": str(tmp_path),
        "max_bytes": 1,
        "max_seconds": 1,
        "proxy": "",
        "cookies": None,
        "clients": ["web", "tv"],
        "pot_provider": "http://127.0.0.1:4416",
    }
    options = _options(order, lambda *_, **__: None)
    assert options["extractor_args"] == {
        "youtube": {"player_client": ["web", "tv"]},
        f"{EXTRACTOR_ARG_PREFIX}-bgutilhttp": {"base_url": ["http://127.0.0.1:4416"]},
    }
    assert "postprocessors" not in options
    with yt_dlp.YoutubeDL(options) as downloader:
        found = downloader.get_info_extractor("Youtube")._configuration_arg("player_client")
    assert found == ["web", "tv"]


def test_yt_dlp_is_checked_without_youtube(site: YouTubeDouble) -> None:
    """The start-up check tells the version and the JavaScript runtime, and asks nobody."""
    found = check()
    assert found is not None
    assert found.version == yt_dlp.version.__version__
    assert found.runtime is None or found.runtime.startswith("deno ")
    assert site.requests == []


def test_a_log_line_holds_no_line_break_of_youtube(
    get: Fetch, capsys: pytest.CaptureFixture[str]
) -> None:
    """YouTube's own words can't forge a line of the log."""
    film = Film(
        playability={"status": "ERROR", "reason": "no bot\n2026 forged line\x1b[2J not a bot"}
    )
    with structlog.testing.capture_logs() as lines:
        error = failure(get, film)
    assert "\n" not in error.message
    assert "\x1b" not in error.message
    assert all("\n" not in str(value) for line in lines for value in line.values())


def test_the_start_up_check_warns_of_what_is_missing() -> None:
    """At start-up the log tells the version, a missing runtime, and cookies of no use."""
    with structlog.testing.capture_logs() as lines:
        announce(Settings(youtube_cookies_content=cookie_text(end=1_000_000_000)))
    said = {line["event"]: line for line in lines}
    assert said["yt-dlp ready"]["version"] == yt_dlp.version.__version__
    assert said["the YouTube cookies are of no use"]["state"] == "expired"
    assert ("YouTube may refuse this worker" in said) == (said["yt-dlp ready"]["runtime"] is None)
    assert SECRET not in str(lines)


def test_a_provider_of_tokens_needs_its_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """POT_PROVIDER_URL without yt-dlp's plugin for it, which nobody would notice, is said."""
    plugin = tmp_path / "yt_dlp_plugins" / "extractor" / "getpot_bgutil_http.py"
    plugin.parent.mkdir(parents=True)
    told = []
    for there in (False, True):
        if there:
            plugin.touch()
            monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with structlog.testing.capture_logs() as lines:
            announce(Settings(pot_provider_url="http://127.0.0.1:4416"))
        told.append(any("PO tokens" in line["event"] for line in lines))
    assert told == [not _has_plugin(), False]


def _has_plugin() -> bool:
    """Whether the real one is installed, as in the image."""
    try:
        return bool(metadata.version(PLUGIN))
    except metadata.PackageNotFoundError:
        return False


class TokenProvider(BaseHTTPRequestHandler):
    """What bgutil's server answers, as its plugin reads it."""

    token = "cG9UdG9rZW4" * 12

    def do_GET(self) -> None:
        self._answer({"version": metadata.version(PLUGIN), "server_uptime": 1})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({"poToken": self.token, "expiresAt": "2100-01-01T00:00:00Z"})

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def test_tokens_of_a_provider_go_with_the_sound(get: Fetch, site: YouTubeDouble) -> None:
    """The operator's provider may be internal, and what it gives is sent to YouTube."""
    if not _has_plugin():
        pytest.skip(f"{PLUGIN} is not installed")
    with ThreadingHTTPServer(("127.0.0.1", 0), TokenProvider) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}"
        get(Film(SOUND), youtube_clients="mweb", pot_provider_url=url)
        server.shutdown()
    media = [path for _, _, path, _ in site.requests if path.startswith("/videoplayback")]
    assert media
    assert all(f"pot={TokenProvider.token}" in path for path in media)
