"""A cell that memory is not enough for: it says in its record that its micro-batch was halved, or it fails and no other does."""

import json

import pytest
import torch

from plo.backbone.trainer import PreferenceTrainer
from plo.experiment.cell import Evaluator
from plo.experiment.matrix import compare
from plo.tracking import Tracker

SHORT = {
    "train.steps": 6,
    "train.checkpoint_every": 2,
    "train.log_every": 1,
    "eval_at": [0.5, 1.0],
    "model.dtype": "float32",
}


@pytest.fixture
def memory(monkeypatch):
    """Limits the pairs of a forward pass of a loss, from a step on."""

    def limit(most, loss, at=1):
        inner = PreferenceTrainer.compute_loss

        def compute_loss(self, model, inputs, *arguments, **keywords):
            is_it = self.data.backbone.loss.name == loss and self.state.global_step + 1 >= at
            if is_it and len(inputs["micro_batch"].rows) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return inner(self, model, inputs, *arguments, **keywords)

        monkeypatch.setattr(PreferenceTrainer, "compute_loss", compute_loss)

    return limit


def cells():
    return {cell.name: cell for cell in Tracker(create=False).cells()}


def test_a_halved_cell_says_so_and_has_each_step_and_point_once(tiny, memory, monkeypatch):
    memory(2, "dpo", at=6)
    inner, done = Evaluator._evaluate, []
    monkeypatch.setattr(
        Evaluator, "_evaluate", lambda self, step: done.append((self.cell.label, step)) or inner(self, step)
    )
    assert not compare(tiny(**SHORT)).failed
    assert done == [("reference", 0), ("sft", 3), ("sft", 6), ("dpo", 3), ("dpo", 6)]
    [note] = json.loads(cells()["dpo seed 0"].tags["plo.notes"])
    assert note.startswith(
        "Memory ran out in the training of dpo seed 0 with 4 pairs in a forward pass: it was done with 2"
    )
    assert "plo.notes" not in cells()["sft seed 0"].tags
    client, run_id = Tracker(create=False)._client, cells()["dpo seed 0"].run_id
    assert [one.step for one in client.get_metric_history(run_id, "loss")] == [1, 2, 3, 4, 5, 6]
    assert [one.step for one in client.get_metric_history(run_id, "kl")] == [3, 6, 6]  # and once more at the end


def test_where_half_is_too_much_the_cell_fails_with_a_sentence_and_the_others_go_on(tiny, memory):
    memory(0, "dpo")
    [(name, error)] = compare(tiny(losses=["dpo", "ipo"], **SHORT)).failed.items()
    assert name == "dpo seed 0" and error.startswith(
        "OutOfMemory: Memory ran out in the training of dpo seed 0 with 4 pairs"
    )
    assert "and again with 2. Lower train.micro_batch_size" in error
    assert {name: cell.status for name, cell in cells().items() if cell.status != "FINISHED"} == {
        "dpo seed 0": "FAILED"
    }


def test_an_evaluation_that_does_not_fit_is_no_reason_to_halve_the_training(tiny, monkeypatch):
    monkeypatch.setattr("plo.experiment.cell.preference_accuracy", lambda bench: (_ for _ in ()).throw(MemoryError()))
    steps = []
    inner = PreferenceTrainer.compute_loss
    counted = lambda self, *arguments, **keywords: steps.append(self) or inner(self, *arguments, **keywords)  # noqa: E731
    monkeypatch.setattr(PreferenceTrainer, "compute_loss", counted)
    failed = compare(tiny(losses=["sft"], **SHORT)).failed
    assert list(failed) == ["sft seed 0"] and "Memory ran out in the evaluation of sft seed 0" in failed["sft seed 0"]
    assert len(steps) == 3  # up to the first point


def test_a_stage_is_halved_too(tiny, memory):
    memory(2, "sft", at=2)
    assert not compare(tiny(stages=["sft", "preference"], **{"train.steps": 3})).failed
    tracker = Tracker(create=False)
    [stage] = [one for one in tracker.stages() if one["name"] == "sft"]
    assert "the training of the stage sft with 4 pairs" in stage["tags"]["plo.notes"]
