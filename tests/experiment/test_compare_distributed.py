"""`plo compare` in two processes: it records what one process records, and outlives cells and processes that fail."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plo.experiment.matrix import compare
from plo.tracking import Tracker

PLUGIN = """
from pathlib import Path
from plo import register_loss
from plo import distributed

distributed.all_failed.__defaults__ = (1.0,)  # seconds: the test need not wait for long
seen = 0

@register_loss("broken", needs=("ref_logps",), replace=True)
def broken(pairs):
    "Fails in every process, in the midst of the forward pass."
    raise RuntimeError("broken everywhere")

@register_loss("flaky", needs=("ref_logps",), replace=True)
def flaky(pairs):
    "Fails once, in one process, after a checkpoint."
    global seen
    seen += 1
    if distributed.rank() == 1 and seen == 4 and not Path("failed").exists():
        Path("failed").touch()
        raise RuntimeError("broken here")
    return -pairs.log_ratio_margin().clamp(max=1.0)
"""
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}  # as accelerate launch sets it


@pytest.mark.slow
@pytest.mark.parametrize(("peft", "environment"), [("lora", {}), ("lora", FSDP), ("full", FSDP)], ids=str)
def test_two_processes_record_what_one_does_and_outlive_failures(tiny, peft, environment):
    Path("plugin.py").write_text(PLUGIN)
    changes = {"losses": ["broken", "dpo", "flaky"], "plugins": ["plugin.py"], "train.lr": 1e-2}
    changes |= {"model.peft": peft, "model.dtype": "float32", "train.schedule": "constant"}
    experiment = tiny(**changes)
    compare(experiment.model_copy(update={"store": "alone.db", "out": Path("alone")}))

    first = _launch(experiment, environment)
    assert first.returncode != 0 and "broken here" in first.stderr
    ended = _status("plo.db")
    assert ended.pop("flaky") in ("RUNNING", "FAILED")  # as the main process was sooner or later to notice, and end
    assert ended == {"reference": "FINISHED", "sft": "FINISHED", "dpo": "FINISHED", "broken": "FAILED"}
    second = _launch(experiment, environment)
    assert second.returncode == 1 and "1 cells failed: broken seed 0" in second.stderr
    assert "3 of 5 cells are finished already." in second.stderr
    assert second.stderr.count("done   flaky") == 1  # one process speaks

    assert _status("plo.db") == _status("alone.db")
    ours, theirs = _cells("plo.db"), _cells("alone.db")
    assert [cell.key for cell in ours.values()] == [theirs[name].key for name in ours]
    for name in ("dpo", "flaky"):
        for metric in ("loss", "grad_norm", "margin", "logps/chosen", "accuracy", "preference_accuracy"):
            expected = theirs[name].history(metric)
            assert len(expected) > 1
            assert ours[name].history(metric) == pytest.approx(expected, abs=1e-4, rel=1e-4), f"{metric} of {name}"
    _same_files(Path("runs"), Path("alone"))


def _launch(experiment, environment) -> subprocess.CompletedProcess:
    Path("experiment.yaml").write_text(experiment.model_dump_json())  # JSON is YAML
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "plo", "compare", "experiment.yaml"],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=900,
    )


def _cells(store: str) -> dict:
    return {cell.tags["plo.variant"]: cell for cell in Tracker(store, create=False).cells()}


def _status(store: str) -> dict[str, str]:
    return {name: cell.status for name, cell in _cells(store).items()}


def _same_files(ours: Path, theirs: Path) -> None:
    """The same files, and the same trained weights."""
    from safetensors.torch import load_file
    from torch.testing import assert_close

    found, expected = ({p.relative_to(folder) for p in folder.rglob("*")} for folder in (ours, theirs))
    assert found == expected
    weights = [path for path in found if path.suffix == ".safetensors"]
    assert len(weights) == 3
    for path in weights:
        assert_close(load_file(ours / path), load_file(theirs / path), atol=1e-4, rtol=1e-4)
