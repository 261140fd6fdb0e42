"""The audio cache on Cloudinary: found before YouTube is asked, kept without holding up a job."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web
from cloudinary_double import API_SECRET, CLOUD_NAME, Asset, CloudinaryDouble
from conftest import SAMPLES, StartWorker
from jobserver import JobServer
from youtube_double import Film, YouTubeDouble

from handler import cache as module
from handler.acquire import Source, acquire
from handler.cache import AudioCache, audio_cache, public_id
from handler.config import Settings
from lyricpod.cancel import Cancel
from lyricpod.errors import ErrorCode, JobError
from lyricpod.request import parse

NAME = "dQw4w9WgXcQ"
SOUND = b"OggS" + random.Random(8).randbytes(60_000)
NAMES = {"title": "A & B = C | D", "artist": "Zo\u00eb", "track": None, "language": "en"}


class VideoCloud(CloudinaryDouble):
    """The double for video assets: their paths, and the context that was kept with them."""

    def __init__(self) -> None:
        super().__init__()
        self.contexts: dict[str, dict[str, str]] = {}
        self.slowness = 0.0  # seconds that keeping a video's sound takes
        self.lost = False  # the description is there, the file is not

    def _routes(self) -> list[web.RouteDef]:
        return [
            *super()._routes(),
            web.post(f"/v1_1/{CLOUD_NAME}/video/{{action:upload|explicit}}", self._call),
            web.get(
                f"/{CLOUD_NAME}/video/upload/" + r"v{version:\d+}/{public_id:.+}", self._deliver
            ),
        ]

    async def _call(self, request: web.Request) -> web.Response:
        if request.path.endswith("/video/upload"):
            await self._pause(self.slowness)
        return await super()._call(request)

    def _upload(self, params: dict[str, str], data: bytes | None) -> web.Response:
        pairs = (pair.split("=", 1) for pair in _split(params.get("context", "")))
        if params["public_id"].startswith("transcriptions/"):
            return super()._upload(params, data)
        self.contexts[params["public_id"]] = {k: _plain(v) for k, v in pairs}
        return super()._upload(params, data)

    def _description(self, asset: Asset) -> dict[str, Any]:
        made = super()._description(asset)
        if asset.public_id not in self.contexts:
            return made
        kept = {"context": {"custom": self.contexts[asset.public_id]}}
        urls = {name: made[name].replace("/raw/", "/video/") for name in ("url", "secure_url")}
        return {**made, **urls, **kept, "resource_type": "video"}

    def _delivered(self, public_id: str, match: web.UrlMappingMatchInfo) -> Asset | None:
        return None if self.lost else super()._delivered(public_id, match)


def _split(text: str) -> list[str]:
    return [part.replace("\0", "\\|") for part in text.replace("\\|", "\0").split("|") if part]


def _plain(text: str) -> str:
    return text.replace("\\=", "=").replace("\\|", "|")


@pytest.fixture
def cloud() -> Iterator[VideoCloud]:
    with VideoCloud() as double:
        yield double


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of the test's own; nothing may be left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(module, "PAUSE", 0.0)
    yield folder
    assert [path.name for path in folder.iterdir() if "worker" not in path.name] == []


@pytest.fixture
def cache(cloud: VideoCloud) -> AudioCache:
    return AudioCache(cloud.cloudinary_url, 1_000_000)


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    path = tmp_path / "sound.webm"
    path.write_bytes(SOUND)
    return path


def look(cache: AudioCache, folder: Path, cancel: Cancel | None = None) -> Any:
    return cache.fetch(
        NAME,
        folder / "cached",
        max_bytes=1_000_000,
        seconds=10,
        cancel=cancel or Cancel(),
        on_bytes=lambda done, total: None,
    )


def test_what_was_kept_is_found(
    cache: AudioCache, cloud: VideoCloud, sound: Path, tmp_path: Path
) -> None:
    """The file and its names come back whole; a first look costs one call and finds nothing."""
    assert look(cache, tmp_path) is None
    assert len(cloud.requests) == 1
    cache.keep(NAME, sound, NAMES)
    sound.unlink()  # the job's folder goes before the upload is done
    assert cache.settle(30)
    found = look(cache, tmp_path)
    assert found.path.read_bytes() == SOUND
    assert found.names == {key: value for key, value in NAMES.items() if value}


def test_the_running_system_finds_it(cache: AudioCache, cloud: VideoCloud, sound: Path) -> None:
    """It is a video asset under the id the backend knows, tagged; no admin call is made."""
    cache.keep(NAME, sound, NAMES)
    assert cache.settle(30)
    asset = cloud.assets[f"audio/{NAME}/bestaudio_mp3"][0]
    assert (asset.data, asset.tags) == (SOUND, ("lyricpod", "audio"))
    assert [request.path for request in cloud.requests] == [f"/v1_1/{CLOUD_NAME}/video/upload"]


def test_only_an_id_becomes_a_public_id() -> None:
    """Nothing but a video's id can name an asset."""
    for name in ("../secrets", "a/b", "short", f"{NAME}?x", f"{NAME}\n"):
        with pytest.raises(ValueError, match="not a video"):
            public_id(name)


@pytest.mark.parametrize("fault", [500, 401, 429, "reset"])
def test_a_cache_in_trouble_is_an_empty_cache(
    cache: AudioCache, cloud: VideoCloud, tmp_path: Path, fault: Any
) -> None:
    """A cache that fails is passed over; its secret is in no log line."""
    cloud.fail(fault)
    with structlog.testing.capture_logs() as lines:
        assert look(cache, tmp_path) is None
    assert lines
    assert API_SECRET not in str(lines)


def test_a_lost_file_is_an_empty_cache(
    cache: AudioCache, cloud: VideoCloud, sound: Path, tmp_path: Path
) -> None:
    """An asset that is described but can't be fetched counts as not there."""
    cache.keep(NAME, sound, {})
    assert cache.settle(30)
    cloud.lost = True
    assert look(cache, tmp_path) is None


def test_an_upload_is_tried_again(cache: AudioCache, cloud: VideoCloud, sound: Path) -> None:
    """A passing fault does not lose the copy."""
    cloud.fail(503, "reset")
    cache.keep(NAME, sound, {})
    assert cache.settle(30)
    assert len(cloud.assets) == 1


def test_a_large_file_is_not_kept(cloud: VideoCloud, sound: Path) -> None:
    """AUDIO_CACHE_MB holds."""
    cache = AudioCache(cloud.cloudinary_url, len(SOUND) - 1)
    cache.keep(NAME, sound, {})
    assert cache.settle(0)
    assert cloud.requests == []


def test_a_slow_upload_holds_nobody_up(cache: AudioCache, cloud: VideoCloud, sound: Path) -> None:
    """`keep` returns at once, and the worker's end waits no longer than its limit."""
    cloud.fail(("hang", 60), 400, 400)
    cache.keep(NAME, sound, {})
    assert not cache.settle(0.05)
    cloud.close()  # ends the hanging call
    assert cache.settle(30)


def test_a_cancel_ends_a_look(cache: AudioCache, cloud: VideoCloud, tmp_path: Path) -> None:
    """A cache that hangs does not hold up a cancel."""
    cancel = Cancel()
    cloud.fail(("hang", 60))

    def interrupt() -> None:
        cloud.wait_requests(1)
        cancel.set()

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(JobError) as caught:
        look(cache, tmp_path, cancel)
    thread.join()
    assert caught.value.code is ErrorCode.CANCELLED


def test_the_settings_decide() -> None:
    """Without Cloudinary, or with AUDIO_CACHE=off, there is no cache."""
    url = "cloudinary://key:secret@cloud"
    assert audio_cache(Settings.from_env({"CLOUDINARY_URL": url})) is not None
    assert audio_cache(Settings.from_env({"CLOUDINARY_URL": url, "AUDIO_CACHE": "off"})) is None
    assert audio_cache(Settings.from_env({})) is None


def test_a_cached_video_never_touches_youtube(
    cache: AudioCache, cloud: VideoCloud, tmp_path: Path
) -> None:
    """The first fetch downloads and keeps, the second is served from the cache alone."""
    with YouTubeDouble(tmp_path) as site:
        site.films[NAME] = Film(SOUND, details={"title": "A Song"})
        settings = Settings(youtube_proxies=site.url, ssl_cert_file=str(site.authority))

        def job(folder: Path) -> Source:
            folder.mkdir()
            link = {"youtube_url": f"https://youtu.be/{NAME}"}
            request = parse(link, default_job_id="job").request
            return acquire(request, folder, settings, cancel=Cancel(), cache=cache)

        first = job(tmp_path / "first")
        assert cache.settle(30)
        site.requests.clear()
        second = job(tmp_path / "second")
        assert site.requests == []
        assert first.path.read_bytes() == second.path.read_bytes() == SOUND
        assert (first.title, first.video_id) == (second.title, second.video_id) == ("A Song", NAME)
        kinds = [source.origin.kind for source in (first, second) if source.origin]
        assert kinds == ["youtube", "cache"]


def test_a_worker_that_ends_keeps_the_sound(
    jobs: JobServer, start_worker: StartWorker, cloud: VideoCloud, tmp_path: Path
) -> None:
    """A whole job: the result says where its sound came from, and the end waits for the cache."""
    output = _end(jobs, start_worker, cloud, tmp_path, slowness=3.0)
    assert (output["title"], output["video_id"]) == ("A Song", NAME)
    assert output["source"]["kind"] == "youtube"
    assert output["source"]["yt_dlp"]
    assert "believe me" in output["plain"]
    assert cloud.assets[public_id(NAME)][0].data == (SAMPLES / "line.flac").read_bytes()


def test_a_worker_that_ends_waits_no_longer_than_its_limit(
    jobs: JobServer, start_worker: StartWorker, cloud: VideoCloud, tmp_path: Path
) -> None:
    """A cache that takes its time costs AUDIO_CACHE_SECONDS of a worker, not more."""
    output = _end(jobs, start_worker, cloud, tmp_path, slowness=100.0, AUDIO_CACHE_SECONDS="0.1")
    assert "believe me" in output["plain"]
    assert public_id(NAME) not in cloud.assets


def _end(
    jobs: JobServer,
    start_worker: StartWorker,
    cloud: VideoCloud,
    tmp_path: Path,
    slowness: float,
    **env: str,
) -> Any:
    with YouTubeDouble(tmp_path) as site:
        film = (SAMPLES / "line.flac").read_bytes()
        site.films[NAME] = Film(film, details={"title": "A Song"})
        cloud.slowness = slowness
        worker = start_worker(
            YOUTUBE_PROXIES=site.url,
            SSL_CERT_FILE=str(site.authority),
            CLOUDINARY_URL=cloud.cloudinary_url,
            ALLOW_PRIVATE_NETWORK="0",
            **env,
        )
        link = f"https://www.youtube.com/shorts/{NAME}?feature=share"
        job = jobs.submit({"youtube_url": link, "auto_terminate": True})
        output = jobs.wait_result(job)["output"]
        assert worker.wait() == 0
    return output
