"""Calibrations: what is measured of a tiny model, that it is kept, and what becomes of one that fails."""

import logging
from pathlib import Path

import pytest

from plo.experiment import calibration, estimates
from plo.experiment.calibration import CalibrationError, calibrate, calibration_key
from plo.experiment.calibration_run import Calibration
from plo.experiment.estimates import estimate
from plo.experiment.recorded import find_recorded

NEEDED = {
    "start", "reference", "cell", "stage", "checkpoint", "evaluation", "evaluation of the reference", "memory",
    "training log-probs", "training kl_ref_pi", "memory log-probs", "memory kl_ref_pi", "scoring log_ratio",
    "memory scoring log_ratio", "bytes of a model", "bytes of a checkpoint", "bytes of a cell", "bytes of a stage",
    "bytes of reference", "bytes of hidden states",
}  # fmt: skip


def test_every_part_of_an_experiment_is_measured(tiny, tmp_path):
    """A tiny Llama of 16 hidden units: its hidden states take 16 times 2 or 4 bytes."""
    experiment = tiny(losses=["dpo", "tdpo2", "sepo"], store=str(tmp_path / "plo.db"))
    figures = Calibration(experiment, tmp_path).run()
    assert figures.keys() == NEEDED
    assert all(value > 0 for name, value in figures.items() if name != "cell"), figures
    assert figures["bytes of hidden states"] in (32.0, 64.0)
    adapter = experiment.model.lora_r * 4 * 2  # at least two modules' rows of rank r, float32
    assert figures["bytes of a checkpoint"] > figures["bytes of a model"] > adapter
    assert figures["memory"] < 5 and figures["training kl_ref_pi"] < 1


@pytest.fixture
def measured(monkeypatch):
    """Stands for the process that measures; it returns the experiments that it measured."""
    asked = []
    monkeypatch.setattr(
        calibration, "_measured", lambda experiment, scratch: asked.append(experiment) or {"start": 7.0}
    )
    return asked


def test_a_calibration_is_kept_for_machine_model_shape_of_data_and_settings(tiny, measured, monkeypatch):
    def key(**changes):
        known = find_recorded(tiny(**changes))
        return calibration_key(known.inputs.experiment, known.variants, known.inputs.data.train)

    first = key()
    assert key(seeds=[0, 1, 2], name="other", **{"train.lr": 1e-5, "train.steps": 7}) == first
    others = [key(losses=["ipo"]), key(**{"train.batch_size": 2}), key(**{"evaluation.max_new_tokens": 5})]
    monkeypatch.setattr(calibration, "environment", lambda: {"plo.cpu": "another"})
    assert len({first, *others, key()}) == 5

    for expected in ("calibrated today", "calibrated today"):
        found = estimate(tiny())
        assert found.costs.figures["start"].value == 7.0 and found.costs.figures["start"].source == expected
    assert len(measured) == 1, "the second time it is read"
    monkeypatch.setattr(calibration, "_day", lambda day: "2020-01-01")
    assert estimate(tiny(), measure=False).costs.figures["start"].source == "calibrated 2020-01-01"


def test_nothing_is_measured_unless_it_is_asked_for(tiny, measured):
    assert estimate(tiny(), measure=False).costs.figures == {} and measured == []


def test_a_calibration_that_fails_leaves_a_plan_and_a_line(tiny, monkeypatch, caplog):
    """The loss exists in this process alone, so the process that measures does not find it."""
    from plo.losses import register_loss

    @register_loss("only_here", needs=("ref_logps",))
    def only_here(pairs, *, beta: float = 0.1):
        return -beta * pairs.log_ratio_margin()

    told = []
    with caplog.at_level(logging.WARNING, logger="plo"):
        found = estimate(tiny(losses=["only_here"]), measuring=lambda: told.append(1))
    assert told == [1] and found.costs.figures == {} and len(found.plan.cells) == 3
    (line,) = [record.getMessage() for record in caplog.records if record.name == estimates.__name__]
    assert "The calibration failed" in line and "'only_here'" in line
    assert not list(Path("home").glob("calibration-*")), "scratch folders are removed"


@pytest.mark.slow
def test_a_process_of_its_own_measures(tiny):
    experiment = tiny(losses=["dpo"])
    costs = calibrate(experiment, "key")
    assert costs.get("memory") > 0.2 and costs.get("start") > 0.5
    assert calibrate(experiment, "key").to_dict() == costs.to_dict()
    with pytest.raises(CalibrationError, match="nowhere"):
        calibrate(
            experiment.model_copy(update={"model": experiment.model.model_copy(update={"name": "./nowhere"})}), "k"
        )
