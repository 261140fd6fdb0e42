"""A web backend in small: `python -m bench.backend --port 8000`.

One process with the orchestrator's loop and the webhook route; settings from the environment.
It prints one line of JSON when both work, and ends within a moment of SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog

from orchestrator import Orchestrator

PREFIX = "/lyricpod/webhook/"


class Route(BaseHTTPRequestHandler):
    """`POST /lyricpod/webhook/{token}`: 200 if the token is known, 404 if not, 500 on trouble."""

    protocol_version = "HTTP/1.1"
    orchestrator: Orchestrator

    def do_POST(self) -> None:
        """Hand the call on."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if not self.path.startswith(PREFIX):
            return self._answer(404)
        try:
            known = self.orchestrator.handle_webhook(self.path.removeprefix(PREFIX), body)
        except Exception:
            logging.exception("the webhook failed")
            return self._answer(500)
        return self._answer(200 if known else 404)

    def _answer(self, status: int) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing: a line for each call would be measured too."""


class Server(ThreadingHTTPServer):
    """Takes its port over from the process killed before it."""

    allow_reuse_address = True
    daemon_threads = True


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    _log_to_stderr()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    Route.orchestrator = Orchestrator.from_env()
    server = Server(("127.0.0.1", asked.port), Route)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"port": server.server_address[1]}), flush=True)
    Route.orchestrator.run(stop)
    server.shutdown()
    Route.orchestrator.close()


def _log_to_stderr() -> None:
    """Nobody reads stdout after its first line: what fills that pipe would stop this process."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


if __name__ == "__main__":
    main()
