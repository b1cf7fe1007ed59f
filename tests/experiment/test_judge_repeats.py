"""A noisy judge asked three times: findings, what was paid, and the leaderboard's lines, card and components."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest

from plo.config import EvaluationConfig
from plo.evals import Findings, register_evaluation
from plo.evals.judges import register_judge
from plo.evals.judges.judge import Judge, Verdict
from plo.evals.repeats import join_repeats
from plo.experiment.evaluations import evaluate_anything
from plo.leaderboards.build import read
from plo.leaderboards.page.document import to_html
from plo.leaderboards.render import to_markdown
from plo.tracking import Tracker

PROMPTS = [f"Case {i}:" for i in range(40)]


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A judge that prefers the longer answer in 7 of 10 of its verdicts, by a hash of the question and its repeat."""
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))  # where no verdict is kept from before
    asked = []

    class Moody(Judge):
        name, version = "moody", "1"

        def __init__(self, argument, template):
            pass

        def judge(self, questions):
            asked.extend(questions)
            return [self.verdict(question) for question in questions]

        def verdict(self, question):
            chance = hashlib.sha256(repr(question).encode()).digest()[0] / 256
            right = float(len(question.b) > len(question.a))
            return Verdict(right if chance < 0.7 else 1 - right, cost=0.002)

    register_judge("moody")(Moody)

    @register_evaluation("duel", level="model", higher_is_better={"win_rate": True}, bounds=(0, 1))
    def duel(subject, judging):
        texts = subject.sample(PROMPTS)["text"]
        found = judging.verdicts(pd.DataFrame({"prompt": PROMPTS, "a": "another", "b": texts}))
        items = pd.DataFrame({"prompt_id": range(len(PROMPTS)), "win_rate": found["win"]})
        return Findings({"win_rate": float(items["win_rate"].mean())}, items, tables={"duel_verdicts.json": found})

    return asked


def evaluate(tmp_path, tracker, judge):
    for name, text in (("long", "a long answer"), ("short", "short")):
        rows = [{"instruction": prompt, "output": text, "generator": name} for prompt in PROMPTS]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        config = EvaluationConfig(suite=("duel",), judge=judge)
        assert not evaluate_anything(str(tmp_path / f"{name}.json"), None, "noisy", config, [0], tracker)


def test_the_noise_of_a_judge_asked_three_times(tmp_path, asked):
    tracker = Tracker(tmp_path / "plo.db")
    evaluate(tmp_path, tracker, "moody")
    assert len(asked) == 2 * 2 * 40
    evaluate(tmp_path, tracker, "moody(repeats=3)")
    evaluate(tmp_path, tracker, "moody(repeats=3)")
    assert len(asked) == len(set(asked)) == 3 * 2 * 2 * 40  # the first of three is known, and none is asked twice

    cells = {cell.name.split()[0]: cell for cell in tracker.cells()}
    thrice, once = cells["long"].findings
    assert thrice.params == {"judge": "moody", "repeats": "3"} and once.params == {"judge": "moody"}
    each = thrice.table("duel_repeats.json")
    assert each.groupby("repeat").size().tolist() == [40, 40, 40]
    assert each[each["repeat"] == 1]["win_rate"].tolist() == once.items["win_rate"].tolist()
    assert thrice.items["win_rate"].tolist() == pytest.approx(each.groupby("prompt_id")["win_rate"].mean().tolist())
    assert thrice.metrics["win_rate"] == pytest.approx(each["win_rate"].mean())
    assert thrice.table("duel_verdicts.json")["repeat"].value_counts().tolist() == [40, 40, 40]
    usage = thrice.about["usage"]
    assert usage["answered"] == 160 and usage["cost"] == pytest.approx(0.32) and usage["seconds"] > 0

    # By hand from the recorded items, with the formula of the analysis of variance
    by_cell = [cell.findings[0].table("duel_repeats.json") for cell in cells.values()]
    y = np.array([t.pivot(index="prompt_id", columns="repeat", values="win_rate").to_numpy() for t in by_cell])
    rest = y - y.mean(2, keepdims=True) - y.mean(1, keepdims=True) + y.mean((1, 2), keepdims=True)
    prompt = (rest**2).sum() / (2 * 39 * 2)

    board = read(tracker, "noisy", "short", primary="duel [repeats=3].win_rate")
    (found,) = (noise for section in board.sections for noise in section.noise.values())
    assert found.prompt == pytest.approx(prompt) and found.cells == 2 and found.repeats == 3
    assert board.components["judge noise"] == pytest.approx(prompt / 3)
    text = to_markdown(board)
    line = f"asked 3 times: from one repeat to the next a prompt's value moves by an sd of {prompt**0.5:.3g}"
    price = "cost 2 in the currency of the judge's prices (320 were asked)"
    for shown in (text, to_html(board).replace("&#39;", "'")):
        assert line in shown and price in shown
    assert "| judge noise |" in text


def test_joined_findings_by_hand():
    def one(wins, note, annotations):
        items = pd.DataFrame({"prompt_id": [4, 2, 4], "win_rate": wins, "name": ["x", "y", "z"]})
        rate, files = {"win_rate": items["win_rate"].mean()}, {"a.json": annotations, "b": "same"}
        return Findings(rate, items, (note,), files=files, curves={8: rate})

    found = join_repeats("duel", [one([1.0, 0.0, np.nan], "n", "1"), one([0.0, 0.5, 1.0], "m", "2")])
    assert found.items.values.tolist() == [[4, 0.5, "x"], [2, 0.25, "y"], [4, 1.0, "z"]]
    assert found.metrics == found.curves[8] == {"win_rate": pytest.approx((0.5 + 0.5) / 2)}
    assert found.notes == ("n", "m") and found.files == {"a.json": "1", "b": "same", "a_repeat2.json": "2"}
    assert found.tables["duel_repeats.json"]["repeat"].tolist() == [1, 1, 1, 2, 2, 2]
    alone = one([1.0, 0.0, 0.0], "n", "1")
    assert join_repeats("duel", [alone]) is alone
