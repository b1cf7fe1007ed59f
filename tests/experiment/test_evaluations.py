"""Evaluations of a model: on trained cells and on anything else, recorded beside the cell, each once."""

import json
from pathlib import Path

import pandas as pd
import pytest

from plo.config import ConfigError, EvaluationConfig
from plo.evals import EVALUATIONS, EvaluationError, Findings, register_evaluation
from plo.experiment.evaluations import evaluate_anything, evaluate_recorded, find
from plo.experiment.matrix import compare
from plo.experiment.subjects import Outputs
from plo.tracking import Tracker

ASKED = ["Case 1:", "Case 50:"]


@pytest.fixture(autouse=True)
def length():
    """An evaluation that asks, measures and counts how often it is run."""
    ran = []

    @register_evaluation("length", level="model", higher_is_better={"characters": None, "reference": None})
    def length(subject, *, temperature: float = 1.0):
        ran.append(subject.name)
        texts = subject.sample(ASKED, max_new_tokens=6, temperature=temperature)["text"]
        other = subject.reference.sample(ASKED, max_new_tokens=6)["text"] if subject.reference else texts
        items = pd.DataFrame({"prompt_id": [0, 1], "characters": texts.str.len(), "reference": other.str.len()})
        metrics, lengths = (
            items[["characters", "reference"]].mean().to_dict(),
            {"characters": ("characters", "reference")},
        )
        return Findings(metrics, items, ("a note",), files={"x.txt": "\n".join(texts)}, lengths=lengths)

    yield ran
    EVALUATIONS._entries.pop("length")


def experiment(tiny, *suite):
    return tiny(evaluation={"prompts": 3, "samples": 1, "max_new_tokens": 4, "suite": list(suite)})


def cells():
    return {cell.name: cell for cell in Tracker(create=False).cells()}


def test_a_comparison_evaluates_every_cell_once_beside_its_own_metrics(tiny, length):
    assert not compare(experiment(tiny, "repetition", "length")).failed
    assert length == ["reference", "sft", "dpo"]
    dpo, reference = cells()["dpo seed 0"], cells()["reference seed 0"]
    items = dpo.table("length.json")
    assert dpo.metrics["length.characters"] == items["characters"].mean() and "repetition" in dpo.metrics
    assert dpo.metrics["length.reference"] == reference.metrics["length.characters"]
    assert json.loads(dpo.tags["plo.notes.length"]) == ["a note"]
    assert json.loads(dpo.tags["plo.lengths.length"]) == {"characters": ["characters", "reference"]}
    assert len(dpo.table("samples.json")) == 3  # the cell's own table is still its own
    compare(experiment(tiny, "repetition", "length"))
    assert len(length) == 3


def test_an_evaluation_added_later_trains_nothing_and_reads_the_trained_policy(tiny, length, monkeypatch):
    import plo.experiment.matrix as matrix

    compare(experiment(tiny, "repetition", "length"))
    first = cells()["dpo seed 0"].table("length.json")
    compare(experiment(tiny, "repetition"))
    monkeypatch.setattr(matrix, "run_cell", lambda *a: pytest.fail("trained again"))
    compare(experiment(tiny, "repetition", {"length": {"temperature": 0.0}}))
    assert len(length) == 6
    greedy = cells()["dpo seed 0"].table("length.json")  # the latest settings count
    assert not greedy.equals(first)
    tracker, comparison, only = find("tiny", None)
    assert not evaluate_recorded(comparison, only, {"suite": ("length",)}, tracker, _quiet())
    assert len(length) == 6  # recorded already
    run = cells()["sft seed 0"].run_id
    tracker, comparison, only = find(run, None)
    evaluate_recorded(comparison, only, {"suite": ({"length": {"temperature": 0.5}},)}, tracker, _quiet())
    assert length[6:] == ["sft"]


def test_the_policy_that_is_evaluated_is_the_trained_one(tiny):
    """Greedy text of the cell's saved adapter on its base, by transformers and peft alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    compare(tiny(**{"train.lr": 0.05}, evaluation={"prompts": 2, "suite": [{"length": {"temperature": 0}}]}))
    tracker = Tracker(create=False)
    cell = cells()["dpo seed 0"]
    run = cell._tables["length.json"]
    said = Path(tracker._client.download_artifacts(run, "x.txt")).read_text()
    model = AutoModelForCausalLM.from_pretrained("tiny").float()
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    model = PeftModel.from_pretrained(model, cell.tags["plo.folder"]).eval()
    expected = []
    for prompt in ASKED:
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids["input_ids"].shape[1] :]
        expected.append(tokenizer.decode(out, skip_special_tokens=True))
    assert said == "\n".join(expected)


def test_a_failing_evaluation_leaves_the_cell_and_the_others(tiny, length):
    @register_evaluation("broken", level="model")
    def broken(subject):
        raise RuntimeError("no power")

    try:
        outcome = compare(experiment(tiny, "broken", "length"))
    finally:
        EVALUATIONS._entries.pop("broken")
    assert set(outcome.failed) == {f"broken of {name} seed 0" for name in ("reference", "sft", "dpo")}
    assert "no power" in outcome.failed["broken of dpo seed 0"] and len(length) == 3
    assert cells()["dpo seed 0"].status == "FINISHED"


def test_what_was_drawn_before_a_crash_is_not_drawn_again(tiny, monkeypatch):
    from plo.backbone.model import Backbone

    compare(experiment(tiny, "length"))
    calls = []
    inner = Backbone.generate
    monkeypatch.setattr(Backbone, "generate", lambda self, *a, **k: calls.append(1) or inner(self, *a, **k))
    before = cells()["dpo seed 0"].table("length.json")
    tracker, comparison, _ = find("tiny", None)
    for run in tracker._children(comparison.run_id, "evaluation"):
        tracker._client.delete_run(run.info.run_id)  # as if killed before recording
    evaluate_recorded(comparison, None, {"suite": ("length",)}, tracker, _quiet())
    assert not calls and cells()["dpo seed 0"].table("length.json").equals(before)


def test_any_model_against_another_and_an_outputs_file(tiny, tmp_path, length):
    tiny()
    tracker = Tracker()
    config = EvaluationConfig(suite=("length",))
    assert not evaluate_anything("tiny", None, "mine", config, [0, 1], tracker, _quiet())
    rows = [{"instruction": prompt, "output": "abc", "generator": "canned"} for prompt in ASKED]
    (tmp_path / "said.json").write_text(json.dumps(rows))
    assert not evaluate_anything("said.json", "tiny", "mine", config, [0], tracker, _quiet())
    found = cells()
    assert found["canned seed 0"].metrics["length.characters"] == 3
    assert (
        found["canned seed 0"].metrics["length.reference"]
        == next(c for n, c in found.items() if "tiny" in n).metrics["length.characters"]
    )
    assert len({cell.comparison_key for cell in found.values()}) == 1 and len(found) == 3
    evaluate_anything("said.json", "tiny", "mine", config, [0], tracker, _quiet())
    assert len(length) == 3


def test_what_cannot_be_evaluated_is_said(tiny, tmp_path):
    with pytest.raises(ConfigError, match="asks a judge: name one"):
        compare(tiny(evaluation={"suite": ["hh"]}))
    with pytest.raises(ConfigError, match="stands there twice"):
        compare(tiny(evaluation={"suite": ["length", {"length": {}}]}))
    (tmp_path / "bad.json").write_text('[{"question": "a"}]')
    with pytest.raises(EvaluationError, match="columns question, and wants 'instruction'"):
        Outputs(tmp_path / "bad.json")
    (tmp_path / "few.jsonl").write_text('{"prompt": "Case 1:", "text": "x"}\n')
    with pytest.raises(EvaluationError, match=r"has 0 outputs where 1 are wanted for the prompt 'Case 50:'"):
        Outputs(tmp_path / "few.jsonl").sample(ASKED)


def _quiet():
    from rich.console import Console

    return Console(quiet=True)
