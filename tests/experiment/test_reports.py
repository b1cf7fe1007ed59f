"""Trackers alongside MLflow: they show what MLflow records, one that fails stops nothing, and keys do not change."""

import json
import logging
from types import SimpleNamespace
from typing import ClassVar

import pytest
import transformers.integrations as integrations
from transformers import TrainerControl, TrainerState, TrainingArguments

from plo.config import ConfigError
from plo.experiment import reports
from plo.experiment.keys import comparison_key
from plo.experiment.matrix import compare
from plo.experiment.reports import Reports
from plo.tracking import Tracker


def cells():
    return {cell.name: cell for cell in Tracker(create=False).cells()}


def read_events(folder):
    """{tag: {step: value}} of the event files in a folder, by TensorBoard's own reader."""
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}, events


def open_reports(tmp_path, *trackers, key="k" * 64, step=0):
    """Reports of a training that has begun at a step, and what transformers gives its callbacks."""
    about = {"name": "dpo seed 0", "group": "tiny", "key": key, "settings": {"beta": "0.1"}}
    made = Reports(trackers, folder=tmp_path / "tb", marks=tmp_path / "cell" / "reported.json", **about)
    about = TrainingArguments(str(tmp_path / "out"), report_to=[]), TrainerState(global_step=step), TrainerControl()
    about[1].is_world_process_zero = True
    made.on_train_begin(*about, model=None)
    return made, about


def test_tensorboard_shows_the_curve_and_the_evaluations_that_mlflow_has(tiny, monkeypatch):
    import plo.experiment.runner as runner

    pytest.importorskip("tensorboard")
    assert not compare(tiny(report_to=["tensorboard"])).failed
    (root,) = (path / "tensorboard" for path in cells()["dpo seed 0"].folder.parents if (path / "tensorboard").is_dir())
    assert sorted(folder.name[:3] for folder in root.iterdir()) == ["dpo", "sft"]  # the reference is not trained
    (folder,) = root.glob("dpo-seed0-*")
    scalars, events = read_events(folder)
    for tag, name in (("train/loss", "loss"), ("train/margin", "margin"), ("eval/kl", "kl")):
        recorded = cells()["dpo seed 0"].history(name)
        assert scalars[tag] == pytest.approx(recorded, rel=1e-6, abs=1e-9), name  # float32 in event files
    assert len(scalars["train/loss"]) >= 4 and len(scalars["eval/kl"]) == 2
    (text,) = events.Tensors("plo/text_summary")[0].tensor_proto.string_val
    assert json.loads(text) == {"loss": "dpo", "seed": "0", "beta": "0.1", "label_smoothing": "0.0"}

    monkeypatch.setattr(runner, "run_cell", lambda *a: pytest.fail("trained again"))
    assert not compare(tiny()).failed, "trackers are in no key"


def test_trackers_are_in_no_key(tiny):
    plain, reported = (
        SimpleNamespace(experiment=tiny(**more), model_identity="m", data=SimpleNamespace(digest="d"), suite=())
        for more in ({}, {"report_to": ["wandb", "tensorboard"]})
    )
    assert comparison_key(plain) == comparison_key(reported)


def test_a_missing_package_is_named_before_anything_is_loaded(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(reports, "is_installed", lambda name: name != "trackio")
    with pytest.raises(
        ConfigError, match=r"^report_to=wandb,trackio: trackio cannot be imported.*pip install trackio;"
    ):
        compare(tiny(report_to="wandb,trackio"))
    assert not (tmp_path / "plo.db").exists()
    with pytest.raises(ConfigError, match="report_to"):
        tiny(report_to="mlflow")


@pytest.mark.parametrize("event", ["on_train_begin", "on_log"])
def test_a_tracker_that_fails_is_left_out_and_the_others_go_on(event, tmp_path, monkeypatch, caplog):
    pytest.importorskip("tensorboard")
    seen = []

    class Broken:
        def __getattr__(self, name):
            def call(*arguments, **keywords):
                seen.append(name)
                if name == event:
                    raise RuntimeError("no route to host")

            return call

    monkeypatch.setattr(reports, "TrackioCallback", Broken)
    with caplog.at_level(logging.WARNING, "plo"):
        made, about = open_reports(tmp_path, "trackio", "tensorboard")
        with made:
            for step in (1, 2):
                about[1].global_step = step
                made.on_log(*about, logs={"loss": 0.5 / step})
            made.evaluated({"kl": 3.0}, 2)
            made.on_train_end(*about)
    assert seen.count(event) == 1 and seen[-1] == event
    (said,) = [record.getMessage() for record in caplog.records]
    assert "dpo seed 0: trackio gets no more reports (RuntimeError: no route to host" in said and "MLflow" in said
    scalars, _ = read_events(tmp_path / "tb")
    assert scalars == {"train/loss": {1: 0.5, 2: 0.25}, "eval/kl": {2: 3.0}}


def test_a_resumed_training_hides_what_the_killed_attempt_reported_after_its_checkpoint(tmp_path):
    """The first attempt is killed at step 3, the second goes on from a checkpoint at step 2, with other numbers."""
    pytest.importorskip("tensorboard")
    for first, losses in ((0, {1: 1.0, 2: 2.0, 3: 3.0}), (2, {3: 30.0})):
        made, about = open_reports(tmp_path, "tensorboard", step=first)
        for step in range(1, 1 + first):
            made.evaluated({"kl": -1.0}, step - 1)  # reported by the first attempt: not again
        for step, loss in losses.items():
            about[1].global_step = step
            made.on_log(*about, logs={"loss": loss})
        made.__exit__(KeyboardInterrupt)
    scalars, _ = read_events(tmp_path / "tb")
    assert scalars == {"train/loss": {1: 1.0, 2: 2.0, 3: 30.0}}


class Recorder:
    """A tracker's callback that keeps what it was told, (step, logs), over all attempts."""

    told: ClassVar[list] = []

    def on_log(self, args, state, control, logs, **keywords):
        self.told.append((state.global_step, *logs))

    def __getattr__(self, name):
        return lambda *arguments, **keywords: None


def test_an_attempt_that_repeats_steps_reports_none_twice(tmp_path, monkeypatch):
    """The first attempt is killed after step 5 and goes on from step 3; the third lacked memory and begins anew at 0."""
    told: list = []
    monkeypatch.setattr(Recorder, "told", told)
    monkeypatch.setattr(reports, "TrackioCallback", Recorder)
    for first, last in ((0, 5), (3, 6), (0, 8)):
        made, about = open_reports(tmp_path, "trackio", step=first)
        for step in range(max(first, 1), last + 1):
            about[1].global_step = step
            if step > first:
                made.on_log(*about, logs={"loss": 1.0})
            if step % 3 == 0:
                made.evaluated({"kl": 1.0}, step)
        made.on_log(*about, logs={"train_runtime": 1.0})  # at the last step, as transformers does
        made.__exit__(KeyboardInterrupt)
    assert [step for step, name in told if name == "loss"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step for step, name in told if name == "eval_kl"] == [3, 6]
    assert [step for step, name in told if name == "train_runtime"] == [5, 6, 8]

    (tmp_path / "cell" / "reported.json").write_text("{")  # damaged: reported twice rather than not
    made, about = open_reports(tmp_path, "trackio")
    about[1].global_step = 1
    made.on_log(*about, logs={"loss": 1.0})
    assert told[-1] == (1, "loss")


def test_what_a_killed_process_reported_just_before_is_reported_again(tmp_path, monkeypatch):
    """A step takes 25 seconds, and trackers may lose the last 60: of 8 steps the first 5 are surely there."""
    told: list = []
    monkeypatch.setattr(Recorder, "told", told)
    monkeypatch.setattr(reports, "TrackioCallback", Recorder)
    for attempt in (1, 2):
        made, about = open_reports(tmp_path, "trackio")
        for step in range(1, 9):
            monkeypatch.setattr(reports.time, "monotonic", lambda step=step: 25.0 * step)
            about[1].global_step = step
            made.on_log(*about, logs={"loss": 1.0})
        assert attempt == 2 or json.loads((tmp_path / "cell" / "reported.json").read_text()) == {"trackio train": 5}
    assert [step for step, _ in told] == [1, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8]


def test_weights_and_biases_offline_gets_a_run_with_name_group_and_settings(tmp_path, monkeypatch):
    """What its own log of an offline run holds. A training that starts again after lack of memory keeps its run."""
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    made, about = open_reports(tmp_path, "wandb")
    with made:
        assert (wandb.run.name, wandb.run.group, wandb.run.project, wandb.run.id) == (
            "dpo seed 0", "tiny", "plo", "k" * 16,
        )  # fmt: skip
        assert wandb.run.config["plo"] == {"beta": "0.1"}
        made.on_train_begin(*about, model=None)
        about[1].global_step = 7
        made.on_log(*about, logs={"loss": 0.5, "margin": 2.0})
        made.evaluated({"kl": 3.0}, 7)
        summary = dict(wandb.run.summary)
        made.on_train_end(*about)
    assert wandb.run is None and len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    assert {name: summary[name] for name in ("train/loss", "eval/kl", "train/global_step")} == {
        "train/loss": 0.5, "eval/kl": 3.0, "train/global_step": 7,
    }  # fmt: skip


def test_trackio_has_a_run_in_the_project_of_the_comparison(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    assert integrations.TrackioCallback is reports.TrackioCallback
    made, about = open_reports(tmp_path, "trackio")
    with made:
        about[1].global_step = 7
        made.on_log(*about, logs={"loss": 0.5})
        made.evaluated({"kl": 3.0}, 7)
        made.on_train_end(*about)
    import trackio

    runs = trackio.Api().runs("tiny")
    assert [run.name for run in runs] == [f"dpo seed 0 {'k' * 8}"]
