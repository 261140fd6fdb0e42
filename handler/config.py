"""The worker's settings: one frozen object, read from the environment once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lyricpod.errors import ConfigError

MODELS = Path(__file__).resolve().parent.parent / "models"  # the ones the repository carries


class Settings(BaseModel):
    """What the operator decides. Each field is the environment variable of the same name.

    Attributes:
        model: a faster-whisper name, a folder, or a Hugging Face id; empty: by device.
        device: `auto` takes the GPU if there is one.
        compute_type: CTranslate2's name; `auto` is float16 on a GPU, int8 without.
        cloudinary_url: where results go; wins over `storage_dir`.
        storage_dir: a folder for results instead.
        allow_file_sources: lets `audio_url` name files of this machine.
        allow_private_network: lets `audio_url` reach private addresses.
        max_audio_mb: the largest audio file taken, in 10^6 bytes.
        max_audio_seconds: the longest audio taken.
        download_seconds: the deadline of one download, all of it.
        upload_seconds: the deadline for one job's uploads, retries included.
        result_seconds: how long a refused result is posted again before the worker ends.
        auto_terminate: whether to end after each job, where the job doesn't say.
        youtube_cookies_content: a browser's YouTube cookies in Netscape format.
        youtube_cookies_b64: the same in base64, where line breaks don't survive.
        youtube_cookies_content_b64: another name for it.
        youtube_proxies: URLs, tried in turn; `direct` among them is this machine's own exit.
        youtube_clients: yt-dlp's player clients, by comma; empty: its own choice.
        pot_provider_url: where bgutil's PO token provider listens.
        ssl_cert_file: certificates to trust instead of certifi's, for a proxy that opens TLS.
        audio_cache: whether audio of YouTube is looked for on Cloudinary, and kept there.
        audio_cache_mb: the largest file that is kept there, in 10^6 bytes.
        audio_cache_seconds: how long the worker's end may wait for it to be kept.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    model: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_type: str = "auto"
    cpu_threads: int = Field(default=0, ge=0)
    cloudinary_url: str = Field(default="", repr=False)
    storage_dir: str = ""
    allow_file_sources: bool = False
    allow_private_network: bool = False
    max_audio_mb: float = Field(default=500, gt=0)
    max_audio_seconds: float = Field(default=4 * 3600, gt=0)
    download_seconds: float = Field(default=600, gt=0)
    upload_seconds: float = Field(default=60, gt=0)
    result_seconds: float = Field(default=60, gt=0)
    auto_terminate: bool = False
    youtube_cookies_content: str = Field(default="", repr=False)
    youtube_cookies_b64: str = Field(default="", repr=False)
    youtube_cookies_content_b64: str = Field(default="", repr=False)
    youtube_proxies: str = Field(default="", repr=False)
    youtube_clients: str = Field(default="", pattern=r"^[A-Za-z0-9_,\- ]*$")
    pot_provider_url: str = Field(default="", repr=False)
    ssl_cert_file: str = ""
    audio_cache: bool = True
    audio_cache_mb: float = Field(default=100, gt=0)
    audio_cache_seconds: float = Field(default=20, ge=0)

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Settings:
        """Read the settings; an empty variable counts as not set.

        Raises:
            ConfigError: naming each variable that can't be used, never its value.
        """
        given = {
            name: env[name.upper()].strip()
            for name in cls.model_fields
            if env.get(name.upper(), "").strip()
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            reasons = "; ".join(
                f"{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()
            )
            raise ConfigError(f"unusable settings: {reasons}") from None

    def for_test_input(self) -> Settings:
        """The same, for a run on the developer's own machine: files allowed, results in ./out."""
        return self.model_copy(
            update={
                "allow_file_sources": True,
                "storage_dir": self.storage_dir or ("" if self.cloudinary_url else "out"),
            }
        )
