"""Grades of reproductions, and differences between two leaderboards, on fabricated stores; pages and damaged files."""

import copy
import json

import numpy as np
import pandas as pd
import pytest

from plo.leaderboards import LeaderboardError, read
from plo.leaderboards.diff import diff
from plo.leaderboards.grade import grade
from plo.leaderboards.manifest import manifest
from plo.leaderboards.manifest_file import read_manifest, runnable
from plo.leaderboards.packed import pack
from plo.statistics import rerun
from plo.tracking import MADE_WITH, Tracker, made_with_file

FACTS = {
    "packages": {"torch": "2.1"}, "plo": {"version": "1", "commit": "c"}, "hardware": {"threads": 2},
    "data": {"rows": "r", "template": "t", "tokens": "k"}, "model": {}, "engine": "local",
}  # fmt: skip
SETTINGS = {"losses": ["dpo", "ipo"], "baseline": "dpo", "primary": "reward", "margin": 0.3, "train": {"lr": 0.1}}


def record(path, name="first", shift=0.0, facts=FACTS, tags=None, losses=("reference", "dpo", "ipo"), start=1, **more):
    """Record 3 seeds of each loss; `shift` moves the rewards of dpo from the training step `start` on."""
    tracker = Tracker(path)
    parent = tracker.comparison(name, f"key-{name}", SETTINGS | {"name": name} | more)
    tracker.keep(parent, made_with_file("m"), json.dumps(facts))
    for loss in losses:
        for seed in range(3):
            own = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation", MADE_WITH: "m"}
            own |= {"plo.loss": loss, "plo.variant": loss, "plo.seed": seed, "plo.code": f"code of {loss}"} | (
                tags or {}
            )
            cell = tracker.start_cell(parent, f"{loss}/{seed}", f"{loss} seed {seed}", own)
            moved = shift * (1 + 0.1 * seed) if loss == "dpo" else 0.0
            for step in (1, 2, 3):
                cell.log({"loss": 0.7 - 0.1 * step + (moved if step >= start else 0)}, step)
            rng = np.random.default_rng([seed, len(loss)])
            reward = rng.normal({"reference": 0, "dpo": 0.5, "ipo": 0.6}[loss] + 0.2 * seed, 0.1, 4) + moved
            text = [f"text {loss} {seed} {moved} {prompt}" for prompt in range(4)]
            cell.table(
                pd.DataFrame({"prompt_id": range(4), "sample": 0, "prompt": "p", "text": text, "reward": reward}),
                "samples.json",
            )
            cell.log({"reward": float(reward.mean()), "kl": 0.1}, 3)
            cell.finish()
    return manifest(read(Tracker(path, create=False), name))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record(tmp_path_factory.mktemp("store") / "plo.db")


def test_the_same_numbers_are_identical_whatever_the_circumstances(recorded, tmp_path):
    facts = FACTS | {"packages": {"torch": "2.2"}, "hardware": {"threads": 1}}
    found = grade(recorded, record(tmp_path / "plo.db", "first-again", facts=facts))
    assert found.word == "identical" and not found.stages
    assert found.facts == ["package torch: 2.1 -> 2.2", "hardware threads: 2 -> 1"]


def test_a_move_that_seeds_could_have_made_is_the_same_within_seed_noise(recorded, tmp_path):
    found = grade(recorded, record(tmp_path / "plo.db", "first-again", shift=0.001, start=2))
    assert found.word == "same within seed noise" and found.metric == "reward"
    assert [*found.stages] == ["training", "samples", "evaluations", "statistics"]
    assert found.stages["training"].startswith("The training of dpo seed 0 differs from step 2 on; 3 of 9 cells differ")
    assert "(12 of their 12 samples)" in found.stages["samples"]
    row = found.rows["dpo"]
    assert row.difference == pytest.approx(0.0011) and row.low < 0.0011 < row.high < row.margin and row.seeds == 3


def test_a_larger_move_differs_and_the_first_stage_is_named(recorded, tmp_path):
    found = grade(recorded, record(tmp_path / "plo.db", "first-again", shift=3.0))
    assert found.word == "differs" and next(iter(found.stages)) == "training" and not found.rows["dpo"].within_noise
    assert found.sentence.startswith(
        "The first stage that differs is training: The training of dpo seed 0 differs from step 1"
    )


def test_a_changed_loss_differs_even_where_its_reward_hardly_moves(recorded, tmp_path):
    changed = copy.deepcopy(record(tmp_path / "plo.db", "first-again", shift=0.001))
    for cell in changed["cells"]:
        cell["code"] = "other" if cell["variant"] == "dpo" else cell["code"]
    found = grade(recorded, changed)
    assert found.word == "differs" and next(iter(found.stages)) == "training"
    assert any(fact.startswith("code of dpo: code of dpo -> other") for fact in found.facts)


@pytest.mark.parametrize(
    ("change", "stage", "said"),
    [
        ({"data": {"rows": "other", "template": "t", "tokens": "k"}}, "data", "digest other instead of r"),
        ({"data": {"rows": "r", "template": "t", "tokens": "other"}}, "tokens", "other token ids"),
    ],
)
def test_other_data_differ_before_anything_else(recorded, tmp_path, change, stage, said):
    found = grade(recorded, record(tmp_path / "plo.db", "first-again", facts=FACTS | change, shift=0.001))
    assert found.word == "differs" and next(iter(found.stages)) == stage and said in found.stages[stage]


def test_another_model_is_the_reference_s_stage(recorded, tmp_path):
    found = grade(recorded, record(tmp_path / "plo.db", "first-again", tags={"plo.model": "another"}))
    assert [*found.stages] == ["reference"] and "digest another instead of model" in found.stages["reference"]


def test_a_cell_that_is_missing_differs(recorded, tmp_path):
    found = grade(recorded, record(tmp_path / "plo.db", "first-again", losses=("reference", "dpo")))
    assert found.word == "differs" and found.stages["cells"].startswith(
        "Not finished: ipo seed 0, ipo seed 1, ipo seed 2."
    )
    fewer = record(tmp_path / "b.db", "first-again", losses=("reference", "dpo"), tags={"plo.model": "another"})
    assert grade(recorded, fewer).sentence.startswith(
        "Not finished: ipo seed 0, ipo seed 1, ipo seed 2. The first stage"
    )


def test_the_margin_of_seed_noise_by_hand():
    old = {
        "a": {"0": 0.0, "1": 2.0},
        "b": {"0": 1.0, "1": 1.0},
    }  # variances 2 and 0 with 1 degree of freedom each: 1 with 2
    new = {"a": {"0": 0.1, "1": 2.3}, "b": {"0": 1.0, "1": 1.0}}
    found = rerun(old, new)
    assert found["a"].margin == pytest.approx(4.30265 * (2 * 1 / 2) ** 0.5, abs=1e-4)  # T(.975, 2) sqrt(2 s^2 / S)
    assert found["a"].difference == pytest.approx(0.2)
    # differences .1 and .3: standard error .1, one degree of freedom, T(.95, 1) = 6.31375
    assert (found["a"].low, found["a"].high) == pytest.approx((0.2 - 0.631375, 0.2 + 0.631375), abs=1e-4)
    assert found["a"].within_noise and found["b"].within_noise and found["b"].difference == 0
    one = rerun({"a": {"0": 0.0}}, {"a": {"0": 0.1}})["a"]
    assert not one.within_noise and np.isnan(one.margin)  # one seed has no noise that is known


def test_a_manifest_is_read_from_its_file_and_from_a_page(recorded, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(recorded))
    noted = recorded | {"note": "</script><script>alert(1)"}
    early = json.dumps(noted).replace("<", "\\u003c")  # as pages of the first version had it
    for embedded in (early, pack(noted)):
        page = f'<!doctype html><script>1 < 2</script><script type="x" id="plo-manifest">{embedded}</script><p>x'
        (tmp_path / "page.html").write_text(page)
        assert read_manifest(tmp_path / "page.html") == noted
    assert read_manifest(tmp_path / "manifest.json") == recorded


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<p>a page", "has no manifest: it is no page of plo"),
        ("{", "is damaged"),
        ("losses: dpo\n", "is neither a page nor a manifest of plo"),
        ('<script id="plo-manifest">H4sIAAAA</script>', "is damaged: it is cut"),
        ("[]", "no manifest of plo"),
        ('{"plo_manifest": 99}', "version 99, and this plo reads up to 1: install a newer one"),
    ],
)
def test_a_file_without_a_manifest_is_refused(tmp_path, text, said):
    (tmp_path / "page").write_text(text)
    with pytest.raises(LeaderboardError, match=said):
        read_manifest(tmp_path / "page")


def test_code_is_never_taken_from_a_manifest(recorded, tmp_path):
    mine, page = tmp_path / "mine.py", tmp_path / "page.html"
    mine.write_text("changed = True")
    other = copy.deepcopy(recorded)
    other["comparisons"][0]["plugins"] = {"/elsewhere/mine.py": "ab" * 32}
    with pytest.raises(
        LeaderboardError, match=r"needs the plug-in /elsewhere/mine.py \(sha256 abababababab\).*--plugin FILE"
    ):
        runnable(other, page)
    assert runnable(other, page, [mine])[1] == [mine]  # named by the user, changed or not
    other["comparisons"][0]["settings"] |= {"store": "http://elsewhere", "out": "/elsewhere"}
    assert not {"store", "out"} & runnable(other, page, [mine])[0].keys(), "a page does not say where to write"
    with pytest.raises(LeaderboardError, match="of 2 comparisons"):
        runnable(other | {"comparisons": other["comparisons"] * 2}, page)


def test_a_difference_names_settings_and_which_rows_compare(recorded, tmp_path):
    same = diff(recorded, record(tmp_path / "a.db", "second", train={"lr": 0.2}))
    assert same.facts == ["setting train.lr: 0.1 -> 0.2"] and not same.refusals
    assert [(row.variant, row.place, row.reasons) for row in same.rows] == [
        (n, "both", ()) for n in ("reference", "dpo", "ipo")
    ]
    tags = {"plo.data": "other data", "plo.code": "new code"}
    other = diff(recorded, record(tmp_path / "b.db", "third", tags=tags, losses=("reference", "dpo")))
    assert other.refusals == [
        "data (plo.data): data in A, other data in B. Run one of them again with the settings of `data` of the other."
    ]
    reasons = {row.variant: (row.place, row.reasons) for row in other.rows}
    assert reasons["ipo"] == ("A", ("the data (plo.data) differ",))
    assert reasons["dpo"][1][1] == "two losses of one name: code code of dpo in A, new code in B; rename one of them"


def test_a_head_to_head_in_one_of_two_leaderboards_names_its_own_command(recorded):
    judged = copy.deepcopy(recorded)
    judged["cells"][0]["evaluations"] = [{"evaluation": "head_to_head", "settings": "0123", "params": {}}]
    judged["judges"] = [{"judge": "longer", "version": "ab", "prompt": None, "evaluation": "head_to_head"}]
    found = diff(judged, recorded)
    assert found.evaluations["head_to_head"] == "only in A: run it for B too, plo head-to-head NAME"
    assert "judges: longer version ab in head_to_head -> none" in found.facts
