"""A worker that does what its job's input says: the worker protocol without the SDK.

Input: `tell` is a URL to which what happens is posted; the other keys are read in `work`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from typing import Any

ID = os.environ["RUNPOD_POD_ID"]
TAKE = os.environ["RUNPOD_WEBHOOK_GET_JOB"].replace("$ID", ID)
DONE = os.environ["RUNPOD_WEBHOOK_POST_OUTPUT"].replace("$RUNPOD_POD_ID", ID)
PING = os.environ["RUNPOD_WEBHOOK_PING"].replace("$RUNPOD_POD_ID", ID)

Json = dict[str, Any]


def call(url: str, body: Json | None = None) -> Any:
    """The JSON answer, if there is one."""
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def post(job: Json, body: Json) -> None:
    call(DONE.replace("$ID", job["id"]) + "&isStream=false", body)


def tell(job: Json, event: str, **more: Any) -> None:
    if url := job["input"].get("tell"):
        call(url, {"event": event, "pid": os.getpid(), "worker": ID, **more})


def work(job: Json) -> None:
    wish = job["input"]
    child = subprocess.Popen(["sleep", "600"]) if "child" in wish else None
    environment = dict(os.environ) if "environment" in wish else None
    tell(job, "started", child=child and child.pid, environment=environment, take=TAKE)
    for progress in wish.get("progress", ()):
        post(job, {"status": "IN_PROGRESS", "output": progress})
    if "progress" in wish:
        tell(job, "posted")
    if "die" in wish:  # a path: only if there is no such file yet; else always
        mark = Path(wish["die"])
        if not mark.name or not mark.exists():
            if mark.name:
                mark.touch()
            os._exit(7)
    if "forget" in wish and not Path(wish["forget"]).exists():
        Path(wish["forget"]).touch()
        return
    if "deaf" in wish:
        threading.Event().wait()
    if "wait" in wish:
        wait_for_stop(job)
        return
    result = {name: wish[name] for name in ("output", "error", "stopPod") if name in wish}
    post(job, result)
    if "late" in wish:
        post(job, {"status": "IN_PROGRESS", "output": wish["late"]})
        tell(job, "late")
    if wish.get("stopPod"):
        threading.Event().wait()  # as the SDK does: the platform ends the process


def wait_for_stop(job: Json) -> None:
    while True:
        answer = call(TAKE.replace("/job-take/", "/job-stop/"))
        if answer and job["id"] in answer["jobsToStop"]:
            tell(job, "stopped")
            return


def main() -> None:
    if "--die" in sys.argv:
        sys.exit(3)
    call(PING)
    while True:
        if job := call(TAKE + "&job_in_progress=0"):
            work(job)


if __name__ == "__main__":
    main()
