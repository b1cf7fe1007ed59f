"""A launcher that starts fewer processes than it was asked for."""

import subprocess
import sys

import pytest

CODE = "from plo import distributed; distributed.start(); print(distributed.lost_processes())"


@pytest.mark.parametrize(("asked", "said"), [("2", "started one process instead of 2"), ("1", "None")])
def test_accelerate_s_single_process_on_cpus_is_said(asked, said, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(CODE)
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", asked]
    done = subprocess.run([*launcher, "--num_machines", "1", str(script)], capture_output=True, text=True)
    assert said in done.stdout, done.stderr


def test_without_a_launcher_nothing_is_said():
    done = subprocess.run([sys.executable, "-c", CODE, "--num_processes", "2"], capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr
