"""What handler/sdk.py leans on in the RunPod SDK, and what it leaves behind."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import runpod
from conftest import ROOT
from runpod.serverless.utils import rp_debugger

LOOK = """
import json, subprocess, sys
started = []
popen = subprocess.Popen
subprocess.Popen = lambda *given, **named: started.append(str(given)) or popen(*given, **named)
from handler import sdk
serverless = sdk.serverless()
import cpuinfo
from runpod.serverless.utils import rp_debugger
print(json.dumps({
    "probes": [given for given in started if "cpuinfo" in given],
    "start": serverless.start.__module__,
    "module": cpuinfo.get_cpu_info.__module__,
    "processor": rp_debugger.PROCESSOR,
}))
"""


def test_the_sdk_is_imported_without_a_probe() -> None:
    """No other Python is started; the name of the CPU is known, and py-cpuinfo is as it was."""
    run = subprocess.run(
        [sys.executable, "-c", LOOK], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seen = json.loads(run.stdout.splitlines()[-1])
    assert seen["probes"] == []
    assert seen["start"] == "runpod.serverless"
    assert seen["module"] == "cpuinfo.cpuinfo"
    assert seen["processor"] == rp_debugger.PROCESSOR


def test_the_probe_is_used_for_the_name_alone() -> None:
    """The SDK asks py-cpuinfo in one place, by the function that is stood in for."""
    package = Path(runpod.__file__).parent
    asking = [path for path in package.rglob("*.py") if "cpuinfo" in path.read_text()]
    assert [path.name for path in asking] == ["rp_debugger.py"]
    source = inspect.getsource(rp_debugger)
    assert source.count("cpuinfo.") == 1
    assert 'cpuinfo.get_cpu_info()["brand_raw"]' in source
    assert "except KeyError:" in source
