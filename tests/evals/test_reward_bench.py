"""RewardBench 2 for implicit rewards: best of four and the ties score by hand, on rows of its format."""

import json
import math

import numpy as np
import pytest
from stub import StubSubject

from plo.evals import EvaluationError, get_model_evaluation
from plo.subjects import SubjectError

TANH = math.tanh


def row(subset, id, right, wrong, **more):
    """A row whose responses are named by their rewards."""
    texts = {"chosen": [f"r{r}" for r in right], "rejected": [f"r{r}" for r in wrong]}
    counts = {"num_correct": len(right), "num_rejected": len(wrong), "total_completions": len(right) + len(wrong)}
    return {
        "id": id,
        "prompt": f"{subset} {id}",
        "subset": subset,
        "models": [],
        "additional_metadata": {},
        **texts,
        **counts,
        **more,
    }


def reward(text):
    return float(text.removeprefix("r"))


def run(tmp_path, rows, margin=lambda r: reward(r.chosen) - reward(r.rejected), **options):
    file = tmp_path / "test.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    subject = StubSubject(None, margin=margin)
    return get_model_evaluation("reward_bench", {"data": file, **options})(subject)


BEST = [
    row("Math", "1", [2], [1, 0, -1]),  # won
    row("Math", "2", [2], [1, 3, 0]),  # lost
    row("Math", "3", [2], [2, 2, 1]),  # three are equal: a third
    row("Precise IF", "1", [0], [-1, -2, -3]),  # won
]
TIES = [
    row("Ties", "tied:0", [5, 6], [2, 3]),  # s = 1, g = 2
    row("Ties", "ref:0", [4], [1, 3.5]),  # g = .5
    row("Ties", "tied:1", [1, 2, 4], [0.5]),  # s = 3, g = .5
    row("Ties", "ref:1", [1], [2]),  # g = -1
]


def test_best_of_four(tmp_path):
    found = run(tmp_path, BEST)
    assert found.metrics["accuracy_math"] == pytest.approx((1 + 0 + 1 / 3) / 3)
    assert found.metrics["accuracy_precise_if"] == 1 and found.metrics["unscored"] == 0
    assert found.metrics["score"] == pytest.approx((4 / 9 + 1) / 2)
    items = found.items.set_index("prompt_id")
    assert list(items.index) == ["Math/1", "Math/2", "Math/3", "Precise IF/1"]
    assert items["score"].mean() == pytest.approx(found.metrics["score"])
    # the standard error of half the mean of three, the other subset having one prompt
    want = math.sqrt((1 / 4) * np.var([1, 0, 1 / 3]) / 3)
    assert items["score"].std(ddof=0) / math.sqrt(4) == pytest.approx(want)


def test_the_ties_score(tmp_path):
    """tied: both right above wrong, 1; ref: 1/2; g > s: 1/2; min(g, g_ref) > s: 0; tanh(.5 - 1), tanh(-1/3 - 1)."""
    found = run(tmp_path, TIES)
    margin = (TANH(0.5 - 1) + TANH(-1 / 3 - 1)) / 2
    score = 0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0 + 0.01 * margin
    assert found.metrics["ties"] == pytest.approx(score) and found.metrics["score"] == pytest.approx(score)
    assert found.items["ties"].mean() == pytest.approx(score)
    lone = run(tmp_path, TIES[:3])  # a prompt without its ref twin counts for accuracy alone
    assert lone.metrics["ties"] == pytest.approx(0.3 + 0.3 + 0.2 + 0 + 0.01 * TANH(0.5 - 1))
    equal = [row("Ties", "tied:0", [1, 1], [0]), row("Ties", "ref:0", [1], [0])]  # s = 0: the ratio is infinite
    assert run(tmp_path, equal).metrics["ties"] == pytest.approx(1.01)


def test_the_untrained_model_wins_a_quarter(tmp_path):
    found = run(tmp_path, BEST + TIES, margin=lambda r: 0.0)
    assert found.metrics["accuracy_math"] == found.metrics["accuracy_precise_if"] == 0.25
    assert found.metrics["ties"] == 0.0


def test_beta_does_not_matter(tmp_path):
    one = run(tmp_path, BEST + TIES)
    ten = run(tmp_path, BEST + TIES, margin=lambda r: 10 * (reward(r.chosen) - reward(r.rejected)))
    assert one.metrics == pytest.approx(ten.metrics)


def test_what_cannot_be_scored_is_left_out_and_said(tmp_path):
    rows = [*BEST[:2], row("Math", "4", [1], [1, 0, 9]), row("Math", "5", [1], [0, 2, 3], rejected=["r0", " ", "r3"])]
    long = lambda r: math.nan if r.rejected == "r9" else reward(r.chosen) - reward(r.rejected)  # noqa: E731
    found = run(tmp_path, rows, margin=long)
    assert found.metrics["accuracy_math"] == 0.5 and found.metrics["unscored"] == 0.5
    assert "2 of 4 prompts are left out" in found.notes[-1] and "1 of them because of their texts" in found.notes[-1]


def test_subsets_and_trials(tmp_path):
    found = run(tmp_path, BEST + TIES, subsets=("math", "Ties"), prompts=1)
    assert found.items["prompt_id"].tolist() == ["Math/1", "Ties/tied:0", "Ties/ref:0", "Ties/tied:1", "Ties/ref:1"]
    assert "Only 1 prompts of each subset" in found.notes[1]
    with pytest.raises(EvaluationError, match="no subset 'Maths': it has Math, Precise IF, Ties"):
        run(tmp_path, BEST + TIES, subsets=("Maths",))


def test_faults_are_named(tmp_path):
    with pytest.raises(EvaluationError, match=r"test\.jsonl:1: no row of RewardBench 2"):
        run(tmp_path, [{**BEST[0], "chosen": "text"}])
    with pytest.raises(SubjectError, match="has no model"):
        run(tmp_path, BEST, margin=None)
