"""Odd audio files, made afresh: every shape, damage and trick that a stranger's file may have.

All of it is made with PyAV and by hand; the `ffmpeg` program adds a few files where it stands.
"""

from __future__ import annotations

import io
import random
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.audio.resampler import AudioResampler

SEED = 20_26
RATE = 16_000
RATED = {"b": "128000"}
LAYOUTS = ("mono", "stereo", "2.1", "quad", "5.0", "5.1", "6.1", "7.1")
PCM = "pcm_u8 pcm_s24le pcm_f32le pcm_f64le pcm_alaw".split()

Samples = npt.NDArray[np.int16]


@dataclass(frozen=True)
class Odd:
    """One file, and what may come of it.

    Attributes:
        path: its name's first part says what is odd.
        codes: the errors it may end in; none: it must be decoded.
        seconds: how long the sound is, where it is the spoken line and nothing else.
        decodes: whether sound may come of it.
    """

    path: Path
    codes: tuple[str, ...] = ()
    seconds: float | None = None
    decodes: bool = True


NOT_AUDIO = ("source_not_audio",)
TOO_LONG = ("source_too_long",)


class Corpus:
    """Writes the files into a folder; `url` is an address that none of them may reach."""

    def __init__(self, folder: Path, line: Path, url: str, secret: Path) -> None:
        self._folder = folder
        self._line = read(line)
        self._url = url
        self._secret = secret

    def loud(self, path: Path) -> None:
        """Write the sound that a lure promises: as loud as none of the files."""
        path.write_bytes(wav((np.tile([30_000, -30_000], RATE).astype(np.int16)).tobytes()))

    def files(self) -> Iterator[Odd]:
        """All of them, one after the other."""
        yield from self._whole()
        yield from self._joined()
        yield from self._damaged()
        yield from self._not_audio()
        yield from self._luring()
        yield from self._bombs()
        if shutil.which("ffmpeg"):
            yield from self._by_ffmpeg()

    def _whole(self) -> Iterator[Odd]:
        """Sound files that are in order."""
        for name, codec, options in (
            ("cbr.mp3", "libmp3lame", {"b": "64000"}),
            ("vbr.mp3", "libmp3lame", {"flags": "+qscale", "global_quality": "472"}),
            ("plain.m4a", "aac", {}),
            ("lossless.m4a", "alac", {}),
            ("raw.aac", "aac", {}),
            ("opus.opus", "libopus", {}),
            ("opus.webm", "libopus", {}),
            ("aac.mkv", "aac", {}),
            ("plain.flac", "flac", {}),
            ("plain.wav", "pcm_s16le", {}),
            ("plain.aiff", "pcm_s16be", {}),
            ("plain.caf", "pcm_s16le", {}),
            ("plain.au", "pcm_s16be", {}),
            ("plain.w64", "pcm_s16le", {}),
            ("plain.wv", "wavpack", {}),
            ("plain.tta", "tta", {}),
            ("plain.mp2", "mp2", {}),
            ("plain.ts", "aac", {}),
            ("plain.mov", "pcm_s16le", {}),
        ):
            yield self._spoken(name, codec, options=options)
        for name, codec in (
            ("plain.ac3", "ac3"),
            ("plain.wma", "wmav2"),
            ("plain.flv", "libmp3lame"),
            ("vorbis.ogg", "vorbis"),
            ("vorbis.webm", "vorbis"),
        ):
            yield self._spoken(name, codec, rate=44100, layout="stereo", options=RATED)
        for codec in PCM:
            yield self._spoken(f"{codec}.wav", codec)
        for count, layout in enumerate(LAYOUTS, 1):
            yield self._spoken(f"channels{count}.flac", "flac", layout=layout)
        for rate in (7350, 11025, 48000, 96000, 192000):
            yield self._spoken(f"rate{rate}.wav", "pcm_s16le", rate=rate)
        yield self._spoken("rate7350.aac", "aac", rate=7350)
        yield from self._by_hand()
        yield from self._pictured()

    def _by_hand(self) -> Iterator[Odd]:
        """WAV files with headers that no encoder writes."""
        for channels in (3, 7, 12):  # no mask says which loudspeaker is which
            data = np.repeat(self._line, channels).tobytes()
            yield self._wrote(f"unnamed{channels}.wav", wav(data, channels=channels), spoken=True)
        data = self._line.tobytes()
        yield self._wrote("streamed.wav", wav(data, size=0xFFFFFFFF), spoken=True)
        yield self._wrote("unsized.wav", wav(data, size=0), codes=NOT_AUDIO)
        yield self._wrote("oversized.wav", wav(data, size=len(data) * 9), spoken=True)
        for rate in (0, 1, 0x7FFFFFFF):
            yield self._wrote(f"rate{rate}.wav", wav(data, rate=rate), (*NOT_AUDIO, *TOO_LONG))
        for channels in (0, 255, 65535):
            content = wav(data, channels=channels)
            yield self._wrote(f"channels{channels}.wav", content, NOT_AUDIO)
        yield self._wrote("one-sample.wav", wav(b"\1\0"))
        yield self._wrote("no-sample.wav", wav(b""), NOT_AUDIO, decodes=False)
        yield self._wrote("silence.wav", wav(bytes(2 * RATE)))
        yield self._wrote("hours.wav", wav(b"\1\0" * 10, size=2 * RATE * 36_000))

    def _pictured(self) -> Iterator[Odd]:
        """A cover picture, a film, a second stream of sound."""
        mp3, flac = (self._folder / name for name in ("cbr.mp3", "plain.flac"))
        picture = png(8, 8)
        yield self._wrote("cover.mp3", id3(picture) + mp3.read_bytes(), spoken=True)
        yield self._wrote("cover.flac", pictured_flac(flac.read_bytes(), picture), spoken=True)
        huge = png(60_000, 60_000)  # 14 GB once it is a picture
        yield self._wrote("huge-cover.mp3", id3(huge) + mp3.read_bytes(), spoken=True)
        for name in ("film.mp4", "film.mkv"):
            self._film(name, sounds=1)
            yield self._odd(name, spoken=True)
        self._film("two-streams.mkv", sounds=2)
        yield self._odd("two-streams.mkv", spoken=True)
        self._film("mute.mp4", sounds=0)
        yield self._odd("mute.mp4", NOT_AUDIO, decodes=False)

    def _joined(self) -> Iterator[Odd]:
        """Streams that begin anew, or change, or whose clock jumps."""
        twice = 2 * len(self._line) / RATE
        for name in ("vorbis.ogg", "opus.opus", "cbr.mp3", "raw.aac", "plain.ts"):
            data = (self._folder / name).read_bytes()
            made = self._wrote(f"chained-{name}", data + data)
            yield Odd(made.path, seconds=twice)
        for name, codec, first in (
            ("changes.aac", "aac", "mono"),
            ("changes.mp3", "libmp3lame", "mono"),
            ("changes.opus", "libopus", "mono"),
            ("changes.ogg", "vorbis", "stereo"),
        ):
            parts = [
                self._spoken(f"part-{rate}-{name}", codec, rate=rate, layout=layout)
                for rate, layout in ((RATE, first), (44100, "stereo"))
            ]
            made = self._wrote(name, b"".join(part.path.read_bytes() for part in parts))
            yield Odd(made.path, seconds=twice)
        yield self._spoken("jumps.mkv", "libopus", jump=40.0)

    def _damaged(self) -> Iterator[Odd]:
        """Cut at several points; bits turned over."""
        chance = random.Random(SEED)
        whole = "cbr.mp3 plain.m4a raw.aac vorbis.ogg opus.webm plain.flac plain.wav film.mp4"
        for name in whole.split():
            data = (self._folder / name).read_bytes()
            for share in (1, 50, 99):
                cut = data[: len(data) * share // 100]
                yield self._wrote(f"cut{share}-{name}", cut, NOT_AUDIO)
            for count in (3, 100):
                flipped = bytearray(data)
                for _ in range(count):
                    flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                yield self._wrote(f"flip{count}-{name}", flipped, (*NOT_AUDIO, *TOO_LONG))
            headless = bytes(64) + data[64:]
            yield self._wrote(f"headless-{name}", headless, NOT_AUDIO)
        mp3 = (self._folder / "cbr.mp3").read_bytes()
        yield self._wrote("junk-first.mp3", chance.randbytes(5000) + mp3)
        hole = len(mp3) // 2
        yield self._wrote("hole.mp3", mp3[:hole] + bytes(4000) + mp3[hole:])

    def _not_audio(self) -> Iterator[Odd]:
        """Other things under the name of sound."""
        chance = random.Random(SEED)
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("song.mp3", b"not here " * 5000)
        for name, data in (
            ("empty", b""),
            ("byte", b"\xff"),
            ("zeros", bytes(100_000)),
            ("text", b"these are words, not sound\n" * 400),
            ("html", b"<!doctype html><html><body>404 not found</body></html>" * 50),
            ("json", b'{"error": "not found"}'),
            ("picture", png(64, 64)),
            ("zip", zipped.getvalue()),
            ("subtitles", b"1\n00:00:00,000 --> 00:00:09,000\nhello\n\n"),
            ("program", b"\x7fELF" + bytes(60) + chance.randbytes(4000)),
        ):
            yield self._wrote(f"{name}.mp3", data, NOT_AUDIO, decodes=False)
        yield self._wrote("random.mp3", chance.randbytes(100_000), NOT_AUDIO)
        header = (self._folder / "plain.flac").read_bytes()[:60]
        yield self._wrote("header.flac", header, NOT_AUDIO, decodes=False)

    def _luring(self) -> Iterator[Odd]:
        """Files that tell libav to open others, on this machine or on the network."""
        for place, target in (("network", f"{self._url}/secret.wav"), ("local", str(self._secret))):
            for name, text in lures(target, self._url.removeprefix("http://")):
                yield self._wrote(f"{place}-{name}", text.encode(), NOT_AUDIO, decodes=False)
        mov = (self._folder / "plain.mov").read_bytes()
        yield self._wrote("elsewhere.mov", outside(mov, str(self._secret)), NOT_AUDIO)

    def _bombs(self) -> Iterator[Odd]:
        """Hours in a few bytes."""
        silence = np.zeros(3600 * 8000, np.int16)
        path = self._folder / "bomb.flac"
        encode(path, "flac", silence, rate=8000, given=8000)
        yield Odd(path, TOO_LONG, decodes=False)
        data = bytearray(path.read_bytes())
        data[21] &= 0xF0  # STREAMINFO's count of samples: not known
        data[22:26] = bytes(4)
        yield self._wrote("undeclared.flac", data, TOO_LONG, decodes=False)
        for name, options in (("bomb.opus", {}), ("undeclared.webm", {"live": "1"})):
            opus_bomb(self._folder / name, options, seconds=3600)
            yield self._odd(name, TOO_LONG, decodes=False)

    def _by_ffmpeg(self) -> Iterator[Odd]:
        """What only the program makes without much ado."""
        source, picture = self._folder / "plain.wav", self._folder / "picture.png"
        picture.write_bytes(png(16, 16))
        cover = ["-i", str(picture), "-map", "0", "-map", "1", "-c:v", "copy"]
        attached = [*cover, "-disposition:v", "attached_pic"]
        for name, options in (
            ("ffmpeg-cover.m4a", attached),
            ("ffmpeg-cover.mp3", attached),
            ("ffmpeg-fragments.mp4", ["-movflags", "frag_keyframe+empty_moov"]),
            ("ffmpeg-first.m4a", ["-movflags", "+faststart"]),
            ("ffmpeg-no-header.mp3", ["-write_xing", "0", "-q:a", "9"]),
        ):
            command = ["ffmpeg", "-v", "error", "-y", "-i", str(source), *options]
            subprocess.run([*command, str(self._folder / name)], check=True, timeout=30)
            yield self._odd(name, spoken=True)
        data = (self._folder / "ffmpeg-first.m4a").read_bytes()
        yield self._wrote("cut50-ffmpeg-first.m4a", data[: len(data) // 2])

    def _spoken(
        self,
        name: str,
        codec: str,
        *,
        rate: int = RATE,
        layout: str = "mono",
        options: dict[str, str] | None = None,
        jump: float = 0.0,
    ) -> Odd:
        path = self._folder / name
        encode(path, codec, self._line, rate=rate, layout=layout, options=options, jump=jump)
        return self._odd(name, spoken=True)

    def _wrote(
        self,
        name: str,
        data: bytes | bytearray,
        codes: tuple[str, ...] = (),
        *,
        spoken: bool = False,
        decodes: bool = True,
    ) -> Odd:
        (self._folder / name).write_bytes(data)
        return self._odd(name, codes, spoken=spoken, decodes=decodes)

    def _odd(
        self, name: str, codes: tuple[str, ...] = (), *, spoken: bool = False, decodes: bool = True
    ) -> Odd:
        seconds = len(self._line) / RATE if spoken else None
        return Odd(self._folder / name, codes, seconds, decodes)

    def _film(self, name: str, *, sounds: int) -> None:
        """A picture that does not move, with the line on its first stream of sound."""
        with av.open(str(self._folder / name), "w") as made:
            video = made.add_stream("mpeg4", rate=10)
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
            streams = [made.add_stream("aac", rate=RATE, layout="mono") for _ in range(sounds)]
            for number, stream in enumerate(streams):
                feed(made, stream, self._line if number == 0 else self._line[::-1].copy(), RATE)
            for _ in range(55):
                image = np.zeros((64, 64, 3), np.uint8)
                made.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            made.mux(video.encode(None))


def read(path: Path) -> Samples:
    """A file's sound as 16 kHz mono, by PyAV alone."""
    resampler = AudioResampler(format="s16", layout="mono", rate=RATE)
    with av.open(str(path)) as container:
        pieces = [
            piece.to_ndarray()[0]
            for frame in [*container.decode(audio=0), None]
            for piece in resampler.resample(frame)
            if piece
        ]
    return np.concatenate(pieces)


def encode(
    path: Path,
    codec: str,
    samples: Samples,
    *,
    rate: int,
    layout: str = "mono",
    options: dict[str, str] | None = None,
    given: int = RATE,
    jump: float = 0.0,
) -> None:
    """Write mono samples of the rate `given`; from the middle on `jump` seconds later."""
    formats = {"aac": "adts", "ts": "mpegts", "m4a": "ipod", "wma": "asf"}
    ending = path.suffix[1:]
    with av.open(str(path), "w", format=formats.get(ending)) as made:
        stream = made.add_stream(codec, rate=48000 if codec == "libopus" else rate, layout=layout)
        stream.codec_context.options = {"strict": "experimental", **(options or {})}
        feed(made, stream, samples, given, jump)


def feed(made: Any, stream: Any, samples: Samples, given: int, jump: float = 0.0) -> None:
    """Encode samples into an open container."""
    context = stream.codec_context
    if not context.is_open:
        context.open()
    resampler = AudioResampler(
        format=context.format,
        layout=context.layout,
        rate=context.rate,
        frame_size=frame_size(context),
    )
    frame = av.AudioFrame.from_ndarray(samples[None, :], format="s16", layout="mono")
    frame.sample_rate = given
    done = 0
    for piece in [*resampler.resample(frame), *resampler.resample(None), None]:
        if piece is not None:
            piece.pts, piece.time_base = done, Fraction(1, context.rate)
            done += piece.samples
        for packet in stream.encode(piece):
            if jump and packet.pts * packet.time_base * RATE > len(samples) // 2:
                packet.pts += int(jump / packet.time_base)
                packet.dts = packet.pts
            made.mux(packet)


def frame_size(context: Any) -> int:
    """What an encoder takes at once; where it takes anything, a reasonable piece."""
    return int(context.frame_size or 4096)


def wav(
    data: bytes, *, channels: int = 1, rate: int = RATE, size: int | None = None, bits: int = 16
) -> bytes:
    """A WAV file with a header of one's choice."""
    size = len(data) if size is None else size
    align = channels * bits // 8 & 0xFFFF
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * align & 0xFFFFFFFF, align, bits)
    head = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(len(head) + size, 0xFFFFFFFF)) + head + data


def png(width: int, height: int) -> bytes:
    """A PNG picture of one colour: a few bytes, whatever its size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + check

    rows = bytes((width * 4 + 1) * min(height, 64))
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def id3(picture: bytes) -> bytes:
    """An ID3v2.3 tag with a cover picture."""
    body = b"\0image/png\0\x03\0" + picture
    frame = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes(len(frame) >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + size + frame


def pictured_flac(flac: bytes, picture: bytes) -> bytes:
    """A FLAC file with a PICTURE block behind its STREAMINFO."""
    kind = b"image/png"
    block = (
        struct.pack(">II", 3, len(kind))
        + kind
        + struct.pack(">IIIIII", 0, 8, 8, 32, 0, len(picture))
    )
    block += picture
    return flac[:42] + b"\x06" + struct.pack(">I", len(block))[1:] + block + flac[42:]


def lures(target: str, host: str) -> Iterator[tuple[str, str]]:
    """Playlists and descriptions that name `target`."""
    segment = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n"
    yield "list.m3u8", segment
    yield "list.mp3", segment
    key = f'#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n'
    yield "key.m3u8", segment.replace("#EXTINF", key + "#EXTINF", 1)
    yield "master.m3u8", f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n"
    yield "list.ffconcat", f"ffconcat version 1.0\nfile '{target}'\n"
    yield "list.pls", f"[playlist]\nNumberOfEntries=1\nFile1={target}\n"
    yield "list.asx", f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'
    yield (
        "live.mpd",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT9S"><Period><AdaptationSet mimeType="audio/wav">'
        f'<Representation id="a" bandwidth="1"><BaseURL>{target}</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>",
    )
    address, _, port = host.partition(":")
    yield (
        "stream.sdp",
        f"v=0\no=- 0 0 IN IP4 {address}\ns=x\nc=IN IP4 {address}\nt=0 0\n"
        f"a=control:{target}\nm=audio {port} RTP/AVP 0\n",
    )
    yield "redirect.rtsp", f"RTSPtext\nrtsp://{host}/x\n"
    yield "concat.mp3", f"concat:{target}"


def outside(mov: bytes, path: str) -> bytes:
    """A QuickTime film whose sound is said to lie in another file."""
    start = mov.index(b"dref") - 4
    size = struct.unpack(">I", mov[start : start + 4])[0]
    name = path.rpartition("/")[2].encode()[:63]
    alias = bytes(10) + b"\1x".ljust(28, b"\0") + bytes(12)
    alias += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    alias += struct.pack(">HH", 0, 0) + bytes(16)
    text = path.encode()
    alias += struct.pack(">hH", 2, len(text)) + text + bytes(len(text) % 2) + b"\xff\xff\0\0"
    entry = struct.pack(">I", len(alias) + 12) + b"alis" + bytes(4) + alias
    box = struct.pack(">I", len(entry) + 16) + b"dref" + bytes(4) + struct.pack(">I", 1) + entry
    made = bytearray(mov[:start] + box + mov[start + size :])
    at = 0
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):  # each holds the next
        at = made.rindex(kind, 0, start) - 4
        grown = struct.unpack(">I", made[at : at + 4])[0] + len(box) - size
        made[at : at + 4] = struct.pack(">I", grown)
    return bytes(made)


def opus_bomb(path: Path, options: dict[str, str], *, seconds: int) -> None:
    """Opus packets of two bytes and 120 ms each: two frames of 60 ms with nothing in them."""
    with av.open(str(path), "w", options=options) as made:
        stream = made.add_stream("libopus", rate=48000, layout="mono")
        stream.codec_context.open()
        for number in range(seconds * 1000 // 120):
            packet = av.Packet(bytes((0x1B, 2)))
            packet.stream, packet.time_base = stream, Fraction(1, 48000)
            packet.pts = packet.dts = number * 5760
            packet.duration = 5760
            made.mux(packet)
