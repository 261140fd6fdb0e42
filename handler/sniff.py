"""What a file is by its first bytes, where it is certainly no sound."""

from __future__ import annotations

import re

HEAD_BYTES = 1024  # enough for a page's doctype behind a comment or a byte order mark

# Only what can't be audio: everything else is left to the decoder, which knows best.
FORMS: tuple[tuple[bytes, str], ...] = (
    (rb"(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|script|title|meta)\b", "a web page"),
    (rb"#EXTM3U", "a playlist (HLS or M3U), not the sound itself"),
    (rb"\[playlist\]", "a playlist, not the sound itself"),
    (rb"<\?xml|<svg\b|<MPD\b|<rss\b|<Error>", "an XML document"),
    (rb"[{\[]\s*[\"{\[]", "a JSON document"),
    (rb"%PDF-", "a PDF document"),
    (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a", "a picture"),
    (rb"RIFF....WEBP", "a picture"),
    (rb"PK\x03\x04|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|\x1f\x8b\x08", "an archive"),
    (rb"MZ.{58}|\x7fELF", "a program"),
)


def no_media(head: bytes) -> str | None:
    """What the bytes are, as words for a message, if they are certainly no audio or video."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, what in FORMS:
        if re.match(pattern, start, re.I | re.S):
            return what
    return None
