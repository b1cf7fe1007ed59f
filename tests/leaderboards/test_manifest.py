"""The manifest of a fabricated store: its digests by hand, its numbers as recorded, and what old stores lack."""

import hashlib
import json
import math

import pandas as pd
import pytest

from plo.leaderboards import LeaderboardError, circumstances, read
from plo.leaderboards.manifest import manifest
from plo.leaderboards.manifest_file import check_local
from plo.tracking import MADE_WITH, Tracker, made_with_file

SHARED = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation"}
FACTS = {"packages": {"torch": "2"}, "plo": {"version": "1", "commit": "c"}, "hardware": {"threads": 4}}
SAMPLES = pd.DataFrame({
    "prompt_id": [1, 0], "sample": [0, 0], "prompt": ["b", "a"], "text": ["y\u05d0", "x"], "reward": [0.25, math.nan],
})  # fmt: skip


def record(path, made_with=None, text=None, **settings):
    tracker = Tracker(path)
    parent = tracker.comparison("first", "key", {"losses": ["dpo"], "plugin_sha256": {"my.py": "ab"}, **settings})
    if made_with:
        tracker.keep(parent, made_with_file("m1"), json.dumps(made_with))
        tracker.keep(parent, "experiment.yaml", text)
    for loss in ("reference", "dpo"):
        own = {"plo.loss": loss, "plo.variant": loss, "plo.seed": 0, **({MADE_WITH: "m1"} if made_with else {})}
        cell = tracker.start_cell(parent, f"{loss}/0", f"{loss} seed 0", SHARED | own)
        cell.log({"loss": 0.7, "tokens_per_second": 12.0}, 1)
        cell.log({"loss": math.inf, "tokens_per_second": 13.0}, 2)
        cell.table(SAMPLES, "samples.json")
        cell.log({"reward": 1 / 3, "kl": math.nan}, 2)
        cell.finish()
    return read(Tracker(path, create=False), "first")


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def test_digests_are_those_of_the_canonical_form(tmp_path):
    board = record(tmp_path / "plo.db")
    found = manifest(board)
    cell = next(one for one in found["cells"] if one["variant"] == "dpo")
    first, second = sha256('[0,0,"a","x"]'), sha256('[1,0,"b","y\\u05d0"]')  # in order of prompts
    assert cell["samples"] == {
        "count": 2,
        "texts": sha256(f'["{first}","{second}"]'),
        "numbers": sha256('[["prompt_id",[0,1]],["reward",[NaN,0.25]],["sample",[0,0]]]'),
        "each": first[:6] + second[:6],
    }
    # What a machine's speed changes is no part of the training.
    assert cell["curve"] == {"steps": [1, 2], "each": sha256('{"loss":0.7}')[:6] + sha256('{"loss":Infinity}')[:6]}
    assert "tokens_per_second" not in cell["metrics"]


def test_numbers_are_exact_and_every_value_is_json(tmp_path):
    found = json.loads(json.dumps(manifest(record(tmp_path / "plo.db")), allow_nan=False))
    dpo = next(one for one in found["cells"] if one["variant"] == "dpo")
    assert dpo["metrics"]["reward"] == 1 / 3 and dpo["metrics"]["kl"] == "nan" and dpo["metrics"]["loss"] == "inf"
    assert dpo["points"]["2"] == {"kl": "nan", "reward": 1 / 3}
    assert found["plo_manifest"] == 1 and found["comparisons"][0]["plugins"] == {"my.py": "ab"}
    assert [row["variant"] for row in found["table"]["rows"]] == ["reference", "dpo"]


def test_an_older_store_says_what_it_lacks(tmp_path):
    found = manifest(record(tmp_path / "plo.db"))
    assert found["comparisons"][0]["experiment_file"] == "not recorded"
    (made,) = found["made_with"].values()
    assert made["hardware"] == "not recorded" and "wrote this manifest" in made["packages_are"] and made["packages"]
    assert {cell[name] for cell in found["cells"] for name in ("code", "made_with", "threads")} == {"not recorded"}


def test_what_the_runs_recorded_is_what_it_says(tmp_path):
    text = "# why\nlosses: [dpo]\nstore: https://me:secret@host/mlflow\n"
    found = manifest(record(tmp_path / "plo.db", FACTS, text, store="https://me:secret@host/mlflow", out="/somewhere"))
    assert found["made_with"] == {"m1": FACTS} and {cell["made_with"] for cell in found["cells"]} == {"m1"}
    (comparison,) = found["comparisons"]
    assert comparison["experiment_file"].startswith("# why\nlosses: [dpo]\n")
    assert comparison["settings"] == {"losses": ["dpo"]}  # without store and folder, which are the machine's
    assert "secret" not in json.dumps(found)


def test_paths_of_the_machine_are_published_as_their_last_names(tmp_path):
    text = 'model: /home/me/models/135m  # and "~/work/x.yaml"\ndata: org/name\n# https://host/a/b </think> a/b ../near/c\n'
    settings = {
        "model": {"name": "/home/me/my models/135m"},
        "data": {"source": "org/name", "options": {"file": "~/data/x.jsonl"}},
        "evaluation": {
            "judge": "hf:/home/me/judge(repeats=3)",
            "suite": [{"alpaca_eval": {"data": "/home/me/alpaca/"}}],
        },
        "plugins": ["/home/me/my.py", "C:\\\\Users\\\\me\\\\own.py"],
    }
    facts = FACTS | {"model": {"name": "file:///home/me/models/135m", "weights": "w"}}
    found = manifest(record(tmp_path / "plo.db", facts, text, **settings))
    (comparison,) = found["comparisons"]
    assert comparison["settings"] == {
        "losses": ["dpo"],
        "model": {"name": "<local>/135m"},
        "data": {"source": "org/name", "options": {"file": "<local>/x.jsonl"}},
        "evaluation": {"judge": "hf:<local>/judge(repeats=3)", "suite": [{"alpaca_eval": {"data": "<local>/alpaca"}}]},
        "plugins": ["<local>/my.py", "<local>/own.py"],
    }
    assert comparison["experiment_file"] == (
        'model: <local>/135m  # and "<local>/x.yaml"\ndata: org/name\n# https://host/a/b </think> a/b ../near/c\n'
    )
    assert found["made_with"]["m1"]["model"] == {"name": "<local>/135m", "weights": "w"}

    settings, path = comparison["settings"], tmp_path / "page.html"
    with pytest.raises(LeaderboardError, match=r"hold: model.name=<local>/135m; .*Name them here, such as model.name="):
        check_local(settings, ["data"], path)
    check_local(settings, ["model", "data.options", "evaluation.judge", "evaluation.suite"], path)
    # By another name it is the same experiment, as the contents are compared. Pages of before had whole paths.
    for name in ("/data/other", "near", "org/135m"):
        other = json.loads(json.dumps(found).replace("<local>/135m", name).replace("org/name", "org/other"))
        assert [*circumstances.settings(found, other)] == ["setting data.source: org/name -> org/other"]


def test_of_very_many_samples_each_cell_has_one_digest(tmp_path, monkeypatch):
    monkeypatch.setattr("plo.leaderboards.manifest.MOST_SAMPLES", 3)  # there are two cells with two samples
    found = manifest(record(tmp_path / "plo.db"))
    assert not found["each_sample"] and all("each" not in cell["samples"] for cell in found["cells"])
    assert all(len(cell["samples"]["texts"]) == 64 for cell in found["cells"])


@pytest.mark.parametrize("made_with", [None, FACTS])
def test_the_same_records_give_the_same_manifest(tmp_path, made_with):
    board = record(tmp_path / "plo.db", made_with, "losses: [dpo]")
    assert manifest(board) == manifest(read(Tracker(tmp_path / "plo.db", create=False), "first"))
