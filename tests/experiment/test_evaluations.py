"""Evaluations of a model: on trained cells and on anything else, recorded beside the cell, each once."""

import contextlib
import json
import sqlite3
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from plo.config import ConfigError, EvaluationConfig, Experiment
from plo.evals import EVALUATIONS, Findings, register_evaluation
from plo.evals.judges.template import TemplateError
from plo.experiment import evaluations
from plo.experiment.evaluations import evaluate_anything, evaluate_recorded, find, measure_judge
from plo.experiment.matrix import compare
from plo.subjects import SubjectError
from plo.subjects.engines import Adapter
from plo.subjects.outputs import Outputs
from plo.tracking import Tracker, TrackingError, patience

ASKED = ["Case 1:", "Case 50:"]


@pytest.fixture(autouse=True)
def length():
    """An evaluation that asks, measures and counts how often it is run."""
    ran = []

    @register_evaluation("length", level="model", higher_is_better={"characters": None, "reference": None})
    def length(subject, *, temperature: float = 1.0, against: str = "reference"):
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


def finding(name):
    """The last one of the cell's."""
    return cells()[name].findings[0]


def cells():
    return {cell.name: cell for cell in Tracker(create=False).cells()}


def test_a_comparison_evaluates_every_cell_once_beside_its_own_metrics(tiny, length):
    assert not compare(experiment(tiny, "repetition", "length")).failed
    assert length == ["reference", "sft", "dpo"]
    found = finding("dpo seed 0")
    assert found.metrics["characters"] == found.items["characters"].mean()
    assert found.metrics["reference"] == finding("reference seed 0").metrics["characters"]
    lengths = {"characters": ["characters", "reference"]}
    about = dict(found.about)
    assert sorted(metric["name"] for metric in about.pop("described")) == ["characters", "reference"]
    assert about == {"notes": ["a note"], "lengths": lengths, "judges": [], "but_judge": found.settings}
    assert found.params == {}
    assert "repetition" in cells()["dpo seed 0"].metrics
    compare(experiment(tiny, "repetition", "length"))
    assert len(length) == 3


def test_an_evaluation_added_later_trains_nothing_and_reads_the_trained_policy(tiny, length, monkeypatch):
    import plo.experiment.runner as runner

    compare(experiment(tiny, "repetition", "length"))
    first = finding("dpo seed 0")
    compare(experiment(tiny, "repetition"))
    monkeypatch.setattr(runner, "run_cell", lambda *a: pytest.fail("trained again"))
    compare(experiment(tiny, "repetition", {"length": {"temperature": 0.0}}))
    assert len(length) == 6
    greedy = finding("dpo seed 0")
    assert not greedy.items.equals(first.items) and greedy.params == {"temperature": "0.0"}
    assert [one.run_id for one in cells()["dpo seed 0"].findings] == [greedy.run_id, first.run_id]  # both are kept
    tracker, comparison, only = find("tiny", None)
    assert not evaluate_recorded(comparison, only, {"suite": ("length",)}, tracker)
    assert len(length) == 6  # recorded already
    run = cells()["sft seed 0"].run_id
    tracker, comparison, only = find(run, None)
    evaluate_recorded(comparison, only, {"suite": ({"length": {"temperature": 0.5}},)}, tracker)
    assert length[6:] == ["sft"]


def test_the_policy_that_is_evaluated_is_the_trained_one(tiny):
    """Greedy text of the cell's saved adapter on its base, by transformers and peft alone, in the same precision."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    settings = {"train.lr": 0.05, "model.dtype": "float32"}
    compare(tiny(**settings, evaluation={"prompts": 2, "suite": [{"length": {"temperature": 0}}]}))
    tracker = Tracker(create=False)
    cell = cells()["dpo seed 0"]
    said = Path(tracker._client.download_artifacts(cell.findings[0].run_id, "x.txt")).read_text()
    model = AutoModelForCausalLM.from_pretrained("tiny").float()
    tokenizer = AutoTokenizer.from_pretrained("tiny")
    model = PeftModel.from_pretrained(model, cell.folder).eval()
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


def test_cells_of_one_base_are_sampled_together_and_as_they_are_alone(tiny, monkeypatch):
    from plo.backbone.model import Backbone

    compare(tiny(**{"model.dtype": "float32", "evaluation.suite": ["repetition"]}))
    rows, inner = [], Backbone.generate
    monkeypatch.setattr(
        Backbone, "generate", lambda self, ids, *a, **k: rows.append(len(ids)) or inner(self, ids, *a, **k)
    )
    tracker, comparison, only = find("tiny", None)
    evaluate_recorded(comparison, only, {"suite": ("length",)}, tracker)
    assert rows == [2, 4]  # the reference, and sft with dpo
    together, tracker = finding("dpo seed 0"), Tracker(create=False)
    run = cells()["dpo seed 0"].run_id
    tracker, comparison, only = find(run, None)
    evaluate_recorded(comparison, only, {"suite": ("length",), "batch_size": 1}, tracker)  # recorded already
    monkeypatch.setenv("PLO_HOME", str(Path("another home").resolve()))
    monkeypatch.setattr("plo.experiment.evaluation_key.VERSION", 0)
    evaluate_recorded(comparison, only, {"suite": ("length",)}, tracker)  # one cell by itself
    assert rows == [2, 4, 2, 2]
    assert finding("dpo seed 0").items.equals(together.items) and finding("dpo seed 0").run_id != together.run_id


def test_so_are_those_of_a_source_that_draws_pairs_for_every_seed(monkeypatch):
    monkeypatch.setattr(evaluations, "_adapter", lambda folder: Adapter(folder.name, folder))
    bench = SimpleNamespace(
        experiment=Experiment(losses=["dpo"], data={"source": "pocket"}, model={"name": "pocket"}), model_identity="m"
    )
    cells = [
        SimpleNamespace(key=seed, tags={"plo.variant": "dpo", "plo.seed": seed}, model=partial(Path, seed))
        for seed in "012"
    ]
    tracker = SimpleNamespace(finished=lambda *_: {})
    mates = evaluations._mates(bench, cells, tracker, "comparison", "settings")
    assert [(mate.seed, mate.adapter.identity) for mate in mates] == [(1, "1"), (2, "2")]


def test_what_was_drawn_before_a_crash_is_not_drawn_again(tiny, monkeypatch):
    from plo.backbone.model import Backbone

    compare(experiment(tiny, "length"))
    calls = []
    inner = Backbone.generate
    monkeypatch.setattr(Backbone, "generate", lambda self, *a, **k: calls.append(1) or inner(self, *a, **k))
    before = finding("dpo seed 0").items
    tracker, comparison, _ = find("tiny", None)
    for run in tracker._children(comparison.run_id, "evaluation"):
        tracker._client.delete_run(run.run_id)  # as if killed before recording
    evaluate_recorded(comparison, None, {"suite": ("length",)}, tracker)
    assert not calls and finding("dpo seed 0").items.equals(before)


def test_any_model_against_another_and_an_outputs_file(tiny, tmp_path, length):
    tiny()
    tracker = Tracker()
    config = EvaluationConfig(suite=("length",))
    assert not evaluate_anything("tiny", None, "mine", config, [0, 1], tracker)
    rows = [{"instruction": prompt, "output": "abc", "generator": "canned"} for prompt in ASKED]
    (tmp_path / "said.json").write_text(json.dumps(rows))
    assert not evaluate_anything("said.json", "tiny", "mine", config, [0], tracker)
    canned, model = finding("canned seed 0"), next(name for name in cells() if "tiny" in name)
    assert canned.metrics == {"characters": 3, "reference": finding(model).metrics["characters"]}
    assert canned.params == {"against": "tiny"}
    assert len({cell.comparison_key for cell in cells().values()}) == 1 and len(cells()) == 3
    evaluate_anything("said.json", "tiny", "mine", config, [0], tracker)
    assert len(length) == 3


@pytest.mark.parametrize("judge", ["gold:sentiment", "longest", "replay:verdicts.json"])
def test_a_judged_evaluation_is_recorded_with_its_judge(tiny, tmp_path, judge):
    """Kinds of judges that read no prompt; the win of "abc" over "a" by each, and the card recorded afterwards."""
    from plo.evals.judges import JUDGES, register_judge

    @register_judge("longest")
    def longest(prompt, a, b):
        return float(len(b) > len(a))

    @register_evaluation("duel", level="model", higher_is_better={"win_rate": True})
    def duel(subject, judging):
        texts = subject.sample(ASKED)["text"]
        found = judging.verdicts(pd.DataFrame({"prompt": ASKED, "a": "a", "b": texts}))
        items = pd.DataFrame({"prompt_id": [0, 1], "win_rate": found["win"]})
        return Findings({"win_rate": items["win_rate"].mean()}, items)

    tiny()
    rows = [{"instruction": prompt, "output": "abc great", "generator": "canned"} for prompt in ASKED]
    (tmp_path / "said.json").write_text(json.dumps(rows))
    pairs = [{"prompt": prompt, "a": "a", "b": "abc great", "p": 1.0, "gold": 1} for prompt in ASKED]
    pairs += [{"prompt": prompt, "a": "abc great", "b": "a", "p": 0.0, "gold": 0} for prompt in ASKED]
    (tmp_path / "verdicts.json").write_text(json.dumps(pairs))
    config, tracker = EvaluationConfig(suite=("duel",), judge=judge), Tracker()
    try:
        assert not evaluate_anything("said.json", None, "mine", config, [0], tracker)
        found = finding("canned seed 0")
        assert found.metrics == {"win_rate": 1.0} and found.params == {"judge": judge}
        measure_judge(config, tmp_path / "verdicts.json", "instruction", None, 0, tracker)
    finally:
        EVALUATIONS._entries.pop("duel")
        JUDGES._entries.pop("longest")
    (asked,), (check,) = found.about["judges"], tracker.judge_checks()
    assert (asked["judge"], asked["version"]) == (check["judge"], check["version"]) and asked["prompt"] is None


def test_a_prompt_that_is_not_there_is_said_before_training(tiny):
    with pytest.raises(TemplateError, match="helpfull"):
        compare(tiny(evaluation={"suite": [{"hh": {"template": "helpfull"}}], "judge": "gold:sentiment"}))
    with pytest.raises(ConfigError, match="3 seeds would be 3 copies"):
        Path("said.json").write_text(json.dumps([{"instruction": "a", "output": "b"}]))
        config = EvaluationConfig(suite=("length",))
        evaluate_anything("said.json", None, "mine", config, [0, 1, 2], Tracker())


def test_what_a_finding_depends_on(tiny, tmp_path):
    """Judge, opponent and the content of a file that an option names: another one is another settings; a time-out is not."""

    @register_evaluation("read", level="model")
    def read(subject, judging, *, path: Path, against: str = "reference"):
        return Findings({"size": float(path.stat().st_size)}, pd.DataFrame({"prompt_id": [0]}))

    tiny()
    (tmp_path / "said.json").write_text(json.dumps([{"instruction": "a", "output": "b", "generator": "canned"}]))
    (tmp_path / "other.json").write_text(json.dumps([{"instruction": "a", "output": "c", "generator": "other"}]))
    tracker, file = Tracker(), tmp_path / "file"

    def run(judge="gold:sentiment", against=None):
        config = EvaluationConfig(suite=({"read": {"path": str(file)}},), judge=judge)
        assert not evaluate_anything("said.json", against, "mine", config, [0], tracker)
        return [(one.params.get("judge"), one.params.get("against")) for one in cells()["canned seed 0"].findings]

    try:
        file.write_text("one")
        assert run() == [("gold:sentiment", None)]
        assert len(run()) == 1
        file.write_text("three")
        assert len(run()) == 2
        assert len(run(judge={"openai:m@http://localhost:1/v1": {"timeout": 5}})) == 3
        assert len(run(judge={"openai:m@http://localhost:1/v1": {"timeout": 6}})) == 3
        assert len(run(judge={"openai:m@http://localhost:1/v1": {"longest": 6}})) == 4
        assert run(against="other.json")[0] == ("gold:sentiment", "other")
    finally:
        EVALUATIONS._entries.pop("read")


def test_what_cannot_be_evaluated_is_said(tiny, tmp_path):
    with pytest.raises(ConfigError, match="needs a judge: name one"):
        compare(tiny(evaluation={"suite": ["hh"]}))
    with pytest.raises(ConfigError, match="twice"):
        compare(tiny(evaluation={"suite": ["length", {"length": {}}]}))
    config = EvaluationConfig(suite=("repetition",))
    with pytest.raises(ConfigError, match="repetition reads samples that are drawn during training"):
        evaluate_anything("tiny", None, "mine", config, [0], Tracker())
    config = EvaluationConfig(suite=("diversity",))
    with pytest.raises(ConfigError, match="none of diversity compares with another model"):
        evaluate_anything("tiny", "tiny", "mine", config, [0], Tracker())
    (tmp_path / "bad.json").write_text('[{"question": "a"}]')
    with pytest.raises(SubjectError, match="columns question, and needs 'instruction'"):
        Outputs(tmp_path / "bad.json")
    (tmp_path / "few.jsonl").write_text('{"prompt": "Case 1:", "text": "x"}\n')
    with pytest.raises(SubjectError, match=r"has 0 outputs instead of 1 for the prompt 'Case 50:'"):
        Outputs(tmp_path / "few.jsonl").sample(ASKED)


def test_a_store_that_cannot_be_read_is_not_taken_for_one_without_the_comparison(tmp_path, monkeypatch):
    """Or the comparison's name is looked for as a model's, on the hub."""
    monkeypatch.setattr(patience, "BUSY_SECONDS", 0.0)
    monkeypatch.setattr("plo.tracking.runs.LOCKED_SECONDS", 0.1)
    store = tmp_path / "plo.db"
    assert find("tiny", str(store)) is None
    Tracker(store)
    assert find("tiny", str(store)) is None
    with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TrackingError, match="locked by another process"):
            find("tiny", str(store))
    (tmp_path / "broken.db").write_bytes(b"no database" * 100)
    with pytest.raises(TrackingError, match="cannot be opened"):
        find("tiny", str(tmp_path / "broken.db"))
