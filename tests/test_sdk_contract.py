"""The parts of the RunPod SDK that lifecycle.py leans on and that it does not document."""

from __future__ import annotations

import inspect
from importlib.metadata import version

from runpod.serverless.modules import rp_fitness, rp_http, rp_job, rp_scale, worker_state


def test_the_pinned_version_is_installed() -> None:
    """Everything here was read in this version; another one must be read again first."""
    assert version("runpod") == "1.12.0"


def test_the_flag_is_read_from_the_config_after_the_handler() -> None:
    """`config["refresh_worker"]` is looked at after the handler returned, and sets `stopPod`."""
    source = inspect.getsource(rp_job.handle_job)
    flag = source.index('config.get("refresh_worker"')
    assert source.index("run_job(") < flag < source.index('job_result["stopPod"] = True')
    assert source.index('job_result["stopPod"] = True') < source.index("send_result(")


def test_the_result_is_posted_by_transmit() -> None:
    """`_transmit(session, url, data)` is looked up in its module when a result is posted."""
    assert list(inspect.signature(rp_http._transmit).parameters)[1:] == ["url", "job_data"]
    assert "await _transmit(session, url, serialized_job_data)" in inspect.getsource(
        rp_http._handle_result
    )


def test_a_job_is_in_progress_until_its_result_was_posted() -> None:
    """`JobsProgress` is one object for the process, and loses a job after the post alone."""
    assert worker_state.JobsProgress() is worker_state.JobsProgress()
    source = inspect.getsource(rp_scale.JobScaler.handle_job)
    assert source.index("self.jobs_handler(") < source.index("self.job_progress.remove(job)")


def test_sigterm_stops_the_taking_of_jobs() -> None:
    """The SDK's SIGTERM handler sets the flag that ends job taking, and lets the job finish."""
    assert "signal.SIGTERM, self.handle_shutdown" in inspect.getsource(rp_scale.JobScaler.start)
    assert "self.kill_worker()" in inspect.getsource(rp_scale.JobScaler.handle_shutdown)
    assert "while self.is_alive()" in inspect.getsource(rp_scale.JobScaler.get_jobs)


def test_the_image_can_leave_checks_out() -> None:
    """The variable that the Dockerfile sets is read before any of those checks is imported."""
    source = inspect.getsource(rp_fitness._ensure_system_checks_registered)
    variable = source.index('"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "").lower() == "true"')
    assert variable < source.index("from .rp_system_fitness import")
