"""Ctrl-C, SIGTERM and SIGUSR1 in the midst of a comparison: it stops at a checkpoint, says so in the record, and goes on from there."""

import os
import signal
from pathlib import Path

import pytest

from plo.backbone.trainer import PreferenceTrainer
from plo.experiment.cell import Evaluator
from plo.experiment.matrix import compare
from plo.interrupt import Interrupted, exit_code, listening
from plo.tracking import Tracker

FLOAT32 = {"model.dtype": "float32"}


def statuses():
    """Status of the comparison, of its stages and of its cells, of the latest attempts."""
    [comparison] = Tracker("plo.db").comparisons()
    stages = {stage["name"]: stage["status"] for stage in Tracker("plo.db").stages(comparison.run_id)}
    return {"": comparison.status} | stages | {cell.name: cell.status for cell in comparison.cells() if cell.run_id}


def interrupted(experiment, monkeypatch, number, of, method, at):
    """Run it, with a signal at the `at`-th call of a method; returns what was said."""
    inner, calls, said = getattr(of, method), [], []

    def signalling(self, *arguments, **keywords):
        calls.append(self)
        if len(calls) == at:
            os.kill(os.getpid(), number)
        return inner(self, *arguments, **keywords)

    with monkeypatch.context() as context, listening():
        context.setattr("plo.interrupt.log.warning", said.append)
        context.setattr(of, method, signalling)
        with pytest.raises(Interrupted) as raised:
            compare(experiment)
    assert raised.value.exit_code == exit_code(number)
    return "".join(said), calls


def test_it_ends_after_the_step_with_a_checkpoint_and_goes_on_from_there(tiny, monkeypatch):
    experiment = tiny(losses=["sft", "dpo"], **FLOAT32)
    said, steps = interrupted(experiment, monkeypatch, signal.SIGINT, PreferenceTrainer, "compute_loss", at=6)
    assert "waiting for the training step under way and its checkpoint. Start the same command again" in said
    found = statuses()
    assert found.pop("") == "KILLED" and found.pop("dpo seed 0") == "KILLED" and set(found.values()) == {"FINISHED"}
    [state] = Path("runs").glob("*/dpo*/checkpoint-*/trainer_state.json")
    assert len(steps) == 6  # no step was begun after the signal
    assert state.parent.name == f"checkpoint-{sum(trainer is steps[-1] for trainer in steps)}"
    assert not compare(experiment).failed
    assert set(statuses().values()) == {"FINISHED"}


def test_an_evaluation_under_way_is_made_again(tiny, monkeypatch):
    experiment = tiny(losses=["sft"], **FLOAT32)
    said, _ = interrupted(experiment, monkeypatch, signal.SIGINT, Evaluator, "_evaluate", at=2)
    assert "the evaluation under way is repeated at the next start" in said
    assert statuses()["sft seed 0"] == statuses()[""] == "KILLED"
    assert list(Path("runs").glob("*/sft*/checkpoint-*")) and not list(Path("runs").glob("*/sft*/evaluation-*"))


def test_a_stage_stops_at_a_checkpoint_too(tiny, monkeypatch):
    experiment = tiny(stages=["sft", "preference"], **FLOAT32)
    interrupted(experiment, monkeypatch, signal.SIGUSR1, PreferenceTrainer, "compute_loss", at=2)
    assert statuses() == {
        "": "KILLED",
        "sft": "KILLED",
        "reference seed 0": "KILLED",
    }  # the seed's stage is its reference
    [state] = Path("home/stages").glob("*/checkpoint-*/trainer_state.json")
    assert state.parent.name == "checkpoint-2" and (state.parent / "seconds.json").exists()


def test_what_an_interruption_leads_to_in_a_library_is_no_failure(tiny, monkeypatch):
    """gloo's "connection closed by peer", where another process of the launch has ended first."""
    inner = Evaluator._evaluate

    def swallowed(self, *arguments):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            inner(self, *arguments)
        except KeyboardInterrupt:
            raise RuntimeError("Connection closed by peer") from None

    monkeypatch.setattr(Evaluator, "_evaluate", swallowed)
    with pytest.raises(Interrupted), listening():
        compare(tiny(**FLOAT32))
    assert set(statuses().values()) == {"KILLED"}
