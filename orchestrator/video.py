"""Whether a URL is YouTube's. The worker takes the video's id out; here only the route counts."""

from __future__ import annotations

from urllib.parse import urlsplit

HOSTS = ("youtube.com", "youtu.be", "youtube-nocookie.com")


def is_youtube(url: str) -> bool:
    """Whether the URL's host is one of YouTube's."""
    try:
        host = (urlsplit(url).hostname or "").rstrip(".").lower()
    except ValueError:
        return False
    return any(host == known or host.endswith("." + known) for known in HOSTS)
