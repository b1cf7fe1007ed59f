"""The Slurm script: valid bash, one driver a task, and a task that was interrupted is queued again."""

import os
import signal
import subprocess
import time

import pytest

from plo.experiment.slurm import Resources, slurm_script
from plo.values import read_duration

DRIVER = """#!/bin/bash
echo "$*" > arguments
trap 'sleep 0.3; exit {code}' USR1
trap 'exit 143' TERM
touch started
for _ in $(seq 200); do sleep 0.1; done
"""


@pytest.fixture
def cluster(tmp_path):
    """A function that starts a script whose driver exits with a code at SIGUSR1, with a scontrol that writes what it is asked."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/asked\n')
    (tools / "scontrol").chmod(0o755)

    def start(code, **changes):
        driver = tmp_path / "driver"
        driver.write_text(DRIVER.format(code=code))
        driver.chmod(0o755)
        script = tmp_path / "job.sh"
        script.write_text(slurm_script("mine", [str(driver), "compare", "a b.yaml"], 3, Resources(3600, 2)))
        task = {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "2", "SLURM_RESTART_COUNT": "1", **changes}
        path = f"{tools}:{os.environ['PATH']}"
        process = subprocess.Popen(["bash", script], cwd=tmp_path, env=os.environ | {"PATH": path} | task)
        while not (tmp_path / "started").exists():
            time.sleep(0.02)
        return process

    return start


def asked(tmp_path):
    return (tmp_path / "asked").read_text().split("\n")[:-1] if (tmp_path / "asked").exists() else []


def test_a_script_has_the_resources_of_the_estimate_and_is_valid_bash(tmp_path):
    script = slurm_script("my runs/1", ["plo", "compare", "x=a b"], 4, Resources(90_061, 8, 2.05, True, 100.0))
    (tmp_path / "job.sh").write_text(script)
    subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=True)
    options = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert {"job-name=plo-my-runs-1", "array=0-3", "time=1-01:02:00", "cpus-per-task=8", "gres=gpu:1"} < set(options)
    assert "mem=3G" in options, "1.3 times 2.05 GB"
    assert "signal=B:USR1@300" in options, "three steps of 100 s"
    assert "plo compare 'x=a b' &" in script
    short = slurm_script("a", ["plo"], 1, Resources(10.0, 1))
    assert "--time=0-00:05:00" in short and "USR1@120" in short and "--mem" not in short and "--gres" not in short


def test_an_interrupted_task_is_queued_again(cluster, tmp_path):
    process = cluster(75)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(10) == 75
    assert asked(tmp_path) == ["requeue 17_2"]
    assert (tmp_path / "arguments").read_text() == "compare a b.yaml\n"


@pytest.mark.parametrize(("code", "restarts"), [(1, "0"), (0, "0"), (75, "100")])
def test_a_task_that_failed_or_was_restarted_too_often_is_not_queued_again(cluster, tmp_path, code, restarts):
    process = cluster(code, SLURM_RESTART_COUNT=restarts)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(10) == code and asked(tmp_path) == []


def test_a_cancelled_task_ends_its_driver(cluster, tmp_path):
    process = cluster(75)
    process.terminate()
    assert process.wait(10) == 143 and asked(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("1h30m", 5400), ("45 min", 2700), ("90", 5400), ("1d", 86400)]
)
def test_durations(text, seconds):
    assert read_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "2 weeks", "0m", "-1h"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match="write 2h, 45m or 1h30m"):
        read_duration(text)
