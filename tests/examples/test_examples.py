"""The scripts of examples/ run as they are, on a tiny model where they take one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAYS = {
    "own_loss.py": "one pair with a margin of 5 nats: 0.25",
    "compare_two_losses.py": "| ipo(beta=0.2) |",
    "train_with_trl.py": "[",
    "judge_plugin.py": "accuracy of `longer` on 3 pairs: 0.67",
}


def test_every_example_is_run():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_example(name, tiny, tmp_path):
    model = [tiny().model.name] if "[MODEL]" in (ROOT / "examples" / name).read_text() else []
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, ROOT / "examples" / name, *model]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SAYS[name] in done.stdout
