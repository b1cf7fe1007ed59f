"""The AlpacaEval evaluation, with stub subjects and judges whose verdicts are known."""

import gzip
import json
import math
import sys

import pandas as pd
import pytest

pytest.importorskip("alpaca_eval")

from plo.configured import HyperParameterError
from plo.evals import (
    EvaluationError,
    alpaca,
    get_model_evaluation,
)
from plo.evals.alpaca_official import official_order
from plo.evals.judges import Judge, JudgeSession, Verdict


class Answers:
    """A subject that answers by a function of the instruction."""

    name, seed, reference, chat, trained_on, paths = "stub", 0, None, True, (), {}

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def sample(self, prompts, *, samples=1, temperature=1.0, top_p=1.0, max_new_tokens=256):
        self.asked.append((samples, temperature, top_p, max_new_tokens))
        assert all([m["role"] for m in prompt] == ["user"] for prompt in prompts)
        texts = [prompt[0]["content"] for prompt in prompts]
        rows = {"prompt_id": range(len(texts)), "sample": 0, "prompt": texts, "text": [self.answer(t) for t in texts]}
        return pd.DataFrame(rows).iloc[::-1]  # whatever the order of the rows


class Recorded(Judge):
    """A judge that answers from a function (prompt, a, b) and keeps what it was asked."""

    def __init__(self, function, name="recorded"):
        self.function, self.name, self.asked = function, name, []

    def judge(self, questions):
        self.asked += questions
        return [Verdict(self.function(q.prompt, q.a, q.b)) for q in questions]


@pytest.fixture
def baseline(tmp_path):
    """Four instructions and answers of another baseline."""
    rows = [{"instruction": f"task {i}", "output": f"base {i}", "generator": "other", "dataset": "d"} for i in range(4)]
    path = tmp_path / "model_outputs.json"
    path.write_text(json.dumps(rows))
    return path


def run(answer, function, **options):
    judge = function if isinstance(function, Judge) else Recorded(function)
    return get_model_evaluation("alpaca_eval", options)(Answers(answer), JudgeSession(judge)), judge


def test_both_orders_by_hand(baseline):
    """task 0: .9 and 1 - .3; task 1: always the first; task 2: equal texts, unasked; task 3: unreadable in one order."""

    def judge(prompt, a, b):
        ours_second = b.startswith("mine")
        return {"task 0": 0.9 if ours_second else 0.3, "task 1": 0.2, "task 3": 0.5 if ours_second else None}[prompt]

    found, asked = run(lambda i: "base 2" if i == "task 2" else f"mine {i}", judge, baseline=baseline)
    assert len(asked.asked) == 6 + 3  # the answer that cannot be read is asked for three times more
    items = found.items.set_index("prompt_id")
    assert items.loc[[0, 1, 2], "win_rate"].tolist() == pytest.approx([0.8, 0.5, 0.5])
    assert items.loc[[0, 1, 2], "discrete_win_rate"].tolist() == [1, 0.5, 0.5]
    assert items["unreadable"].tolist() == [0, 0, 0, 1] and math.isnan(items.loc[3, "win_rate"])
    assert items["length"].tolist() == [11, 11, 6, 11] and items["base_length"].tolist() == [6] * 4
    metrics = found.metrics
    assert metrics["win_rate"] == pytest.approx(1.8 / 3) and metrics["discrete_win_rate"] == pytest.approx(2 / 3)
    assert metrics["win_rate_se"] == pytest.approx(math.sqrt(0.06 / 2 / 3))  # deviations .2, .1, .1
    assert (metrics["length"], metrics["unreadable"], metrics["consistency"]) == (9.75, 0.25, 0.5)
    assert math.isnan(metrics["length_controlled_win_rate"])
    assert found.notes[0] == "AlpacaEval prompts, judge recorded: 4 of 4 instructions against other, in both orders."
    assert found.notes[1].startswith("1 of 4 verdicts could not be read")
    assert found.notes[2].startswith("No length-controlled win rate: it is defined for all 805")


def test_the_official_order_is_asked_once_and_undone(baseline):
    found, judge = run(lambda i: f"mine {i}", lambda prompt, a, b: 0.9, baseline=baseline, official=True)
    switched = [official_order(f"task {i}") for i in range(4)]
    assert len(set(switched)) == 2
    assert [q.a.startswith("mine") for q in judge.asked] == switched
    assert found.items["win_rate"].tolist() == pytest.approx([0.1 if s else 0.9 for s in switched])
    assert found.items["discrete_win_rate"].tolist() == [0 if s else 1 for s in switched]
    assert math.isnan(found.metrics["consistency"])


def test_what_is_written_loads_in_the_package(baseline, tmp_path):
    from alpaca_eval import utils
    from alpaca_eval.metrics import get_winrate

    found, _ = run(lambda i: f"mine é {i}", lambda p, a, b: None if p == "task 3" else 0.25, baseline=baseline)
    for name, text in found.files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    outputs = utils.load_or_convert_to_dataframe(tmp_path / "model_outputs.json")
    assert outputs.to_dict("records")[1] == {
        "dataset": "d", "instruction": "task 1", "output": "mine é task 1", "generator": "stub"
    }  # fmt: skip
    rated = utils.load_or_convert_to_dataframe(tmp_path / "annotations.json")
    assert rated["annotator"].tolist() == ["recorded"] * 4
    assert get_winrate(rated)["win_rate"] == pytest.approx(100 * found.metrics["win_rate"])


def test_a_published_model_comes_back_from_its_recorded_verdicts(shared_data, monkeypatch):
    """alpaca-7b's outputs and GPT-4's recorded preferences through the whole evaluation: the published row."""
    folder = shared_data / "alpaca_eval"
    rows = json.loads(gzip.decompress((folder / "results/alpaca-7b/annotations.json.gz").read_bytes()))
    rows = {row["instruction"]: row for row in rows}

    def replay(prompt, a, b):
        y = rows[prompt]["preference"] - 1
        return y if a == rows[prompt]["output_1"] else 1 - y

    judge = Recorded(replay, name="openai:gpt-4-1106-preview")
    found, _ = run(lambda i: rows[i]["output_2"], judge, data=folder, official=True)
    published = pd.read_csv(folder / "published_leaderboard.csv", index_col=0).loc["alpaca-7b"]
    assert 100 * found.metrics["win_rate"] == pytest.approx(published["win_rate"], abs=1e-9)
    assert 100 * found.metrics["win_rate_se"] == pytest.approx(published["standard_error"], abs=1e-9)
    assert 100 * found.metrics["discrete_win_rate"] == pytest.approx(published["discrete_win_rate"], abs=1e-9)
    lc = 100 * found.metrics["length_controlled_win_rate"]
    assert lc == pytest.approx(published["length_controlled_winrate"], abs=0.2)
    items = found.items["length_controlled_win_rate"]
    assert items.notna().sum() == 35 and 100 * items.mean() == pytest.approx(lc)
    assert 0.006 < items.std() / math.sqrt(35) < 0.014  # a bootstrap over the instructions gives .011
    assert int(found.metrics["length"]) == published["avg_length"]
    assert found.notes[0].startswith("AlpacaEval 2:")

    monkeypatch.setattr(alpaca, "length_controlled_items", lambda rows, files: rows["preference"])  # 36 fits each
    # Anything less goes under another name: another judge, plo's protocol, or a part of the instructions.
    other = Recorded(replay, name="openai:gpt-4-1106-preview@http://localhost:8000")
    official = {"official": True}
    for asked, options in ((other, official), (judge, {}), (judge, official | {"instructions": 100})):
        found, _ = run(lambda i: rows[i]["output_2"], asked, data=folder, **options)
        assert found.notes[0].startswith(f"AlpacaEval prompts, judge {asked.name}: ")
    assert found.items["prompt_id"].tolist() == [805 * i // 100 for i in range(100)]
    assert 0 < found.metrics["length_controlled_win_rate"] < 0.2


def test_no_data_no_length_control(shared_data, tmp_path):
    folder = tmp_path / "results" / "gpt4_1106_preview"
    folder.mkdir(parents=True)
    source = shared_data / "alpaca_eval/results/gpt4_1106_preview/model_outputs.json.gz"
    (folder / "model_outputs.json").write_bytes(gzip.decompress(source.read_bytes()))
    subject = Answers(lambda i: "mine")
    subject.paths = {"alpaca_eval": tmp_path}  # where the run's own configuration named one
    judging = JudgeSession(lambda prompt, a, b: 0.25)
    found = get_model_evaluation("alpaca_eval", {"instructions": 120, "max_new_tokens": 7, "temperature": 0.0})(
        subject, judging
    )
    assert subject.asked == [(1, 0.0, 1.0, 7)]
    assert "has no df_gamed.csv" in found.notes[-1] and math.isnan(found.metrics["length_controlled_win_rate"])
    few = get_model_evaluation("alpaca_eval", {"instructions": 99})(subject, judging)
    assert "its fit needs 100 verdicts, and 99 could be read" in few.notes[-1]


def test_nothing_readable_and_known_prompts_are_said(baseline):
    subject = Answers(lambda i: "mine")
    subject.trained_on = ("task 2", "something else")
    found = get_model_evaluation("alpaca_eval", {"baseline": baseline, "instructions": 2})(
        subject, JudgeSession(lambda p, a, b: None)
    )
    assert math.isnan(found.metrics["win_rate"]) and found.metrics["unreadable"] == 1
    assert found.notes[-1] == "1 of the instructions are among the model's training prompts."


def test_faults_are_named(tmp_path, baseline, monkeypatch):
    (tmp_path / "bad.json").write_text('[{"instruction": "x"}]')
    with pytest.raises(EvaluationError, match=r"bad\.json cannot be read .*output"):
        run(str, lambda *_: 0.5, baseline=tmp_path / "bad.json")
    whole = gzip.compress(b"[]" * 100)
    (tmp_path / "bad.json.gz").write_bytes(whole[:10] + b"\xff" * 6 + whole[16:])
    with pytest.raises(EvaluationError, match=r"bad\.json\.gz cannot be read .*Error -3"):
        run(str, lambda *_: 0.5, baseline=tmp_path / "bad.json.gz")
    with pytest.raises(EvaluationError, match=r"has no alpaca_eval_gpt4_baseline\.json"):
        run(str, lambda *_: 0.5, data=tmp_path)
    with pytest.raises(HyperParameterError, match="instructions=806"):
        get_model_evaluation("alpaca_eval", {"instructions": 806})
    monkeypatch.setitem(sys.modules, "alpaca_eval.metrics", None)
    with pytest.raises(EvaluationError, match=r"pip install 'plo\[evals\]'"):
        run(str, lambda *_: 0.5, baseline=baseline)
