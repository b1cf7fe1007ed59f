"""A cell whose files a disk or a kill damaged ends with the numbers of an undisturbed one, and says what happened."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from plo.backbone.trainer import PreferenceTrainer
from plo.experiment.cell import run_cell
from plo.experiment.evaluations import _policy
from plo.experiment.keys import Cell
from plo.experiment.workbench import workbench
from plo.scorers import get_variant
from plo.tracking import ActiveRun, ModelLost, RecordedCell, Tracker
from plo.tracking.recording import Unrecorded

# Of a training of 4 steps, evaluated at 2 and 4, that was killed before it was recorded: the file, and where it goes on.
KINDS = {
    "evaluation-4.json": 4,  # evaluated again by the last checkpoint
    "samples-4.parquet": 4,
    "evaluation-2.json": 2,  # the last checkpoint is past it: back to the one before
    "checkpoint-4/trained.safetensors": 2,
}


class Killed(Unrecorded):
    def finish(self, metrics=None):
        raise KeyboardInterrupt


def results(folder):
    found = {path.name: json.loads(path.read_text())["metrics"] for path in folder.glob("evaluation-*.json")}
    return found, {path.name: pd.read_parquet(path) for path in folder.glob("samples-*.parquet")}


def assert_same(found, expected):
    for name, values in expected[0].items():
        assert found[0][name] == pytest.approx(values, rel=1e-5, abs=1e-7, nan_ok=True), name
    for name, frame in expected[1].items():
        pd.testing.assert_frame_equal(found[1][name], frame, rtol=1e-5)
    assert found[0].keys() == expected[0].keys() and found[1].keys() == expected[1].keys()


def no_texts(cell):
    """No texts along its training, which no evaluation reads here."""


def test_a_cell_goes_on_from_what_is_whole(tiny, harm, caplog, monkeypatch):
    bench = workbench(tiny(**{"train.steps": 4, "train.lr": 1e-2}))
    cell = Cell(get_variant("dpo"), 0, "key")
    folder = cell.folder(Path("runs"))
    started, train = [], PreferenceTrainer.train

    def remembered(self, resume_from_checkpoint):
        started.append(resume_from_checkpoint and int(Path(resume_from_checkpoint).name.removeprefix("checkpoint-")))
        return train(self, resume_from_checkpoint=resume_from_checkpoint)

    monkeypatch.setattr(PreferenceTrainer, "train", remembered)

    def run():
        with pytest.raises(KeyboardInterrupt):
            run_cell(cell, bench, Killed(ActiveRun), Path("runs"), None)
        return results(folder)

    undisturbed = run()
    assert undisturbed[0].keys() == {"evaluation-2.json", "evaluation-4.json"} and started == [None]
    shutil.copytree(folder, "kept")
    for damaged, step in KINDS.items():
        shutil.rmtree(folder)
        shutil.copytree("kept", folder)
        harm(folder / damaged)
        caplog.clear()
        assert_same(run(), undisturbed)
        assert started[-1] == step, damaged
        assert any(Path(damaged).name in line and "damaged" in line for line in caplog.messages), damaged

    shutil.rmtree(folder / "checkpoint-2")
    harm(folder / "evaluation-2.json")  # no checkpoint is left that is not past it
    assert_same(run(), undisturbed)
    assert started[-1] is None

    weights = folder / "model" / "adapter_model.safetensors"
    tags = {"plo.seed": "0", "plo.variant": "dpo", "plo.folder": str(folder / "model")}
    recorded = RecordedCell("id", "dpo seed 0", "tiny", "key", "FINISHED", tags, {}, {}, Tracker())
    _policy(bench, recorded, no_texts)
    harm(weights)
    with pytest.raises(ModelLost, match=r"dpo seed 0.*damaged in adapter_model\.safetensors.*bring back a copy"):
        _policy(bench, recorded, no_texts)
    assert weights.exists()  # it may be the only one there is
