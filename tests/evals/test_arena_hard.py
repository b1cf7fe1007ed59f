"""Arena-Hard v2 on small files of its formats: verdicts, scores and rates by hand; the regression against another solver."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scripted import Scripted
from stub import StubSubject

from plo.evals import EvaluationError, get_model_evaluation
from plo.evals.arena_hard_official import (
    equal_style_rate,
    markdown_of,
    official_rates,
    official_template,
    scores,
    style_differences,
    style_of,
)
from plo.evals.judges import JudgeSession, get_template

BASELINE = "o3-mini-2025-01-31"
# The form of a clone's utils/judge_utils.py and config/arena-hard-v2.0.yaml.
JUDGE_UTILS = """
COMMON = "Judge them.\\n[[A>B]] or so."
JUDGE_SETTINGS = {
    "hard_prompt": {"baseline": "o3-mini-2025-01-31", "system_prompt": COMMON},
    "creative_writing": {"baseline": "gemini-2.0-flash-001", "system_prompt": "Other words."},
}
"""
CONFIG = 'prompt_template: "<|User Prompt|>\\n{QUESTION}\\n<|A|>\\n{ANSWER_A}\\n<|B|>\\n{ANSWER_B}"\n'


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def said(uid):
    return [{"role": "user", "content": f"task {uid}"}, {"role": "assistant", "content": {"answer": f"base {uid}"}}]


@pytest.fixture
def clone(tmp_path):
    """A clone with four hard prompts and one of creative writing."""
    folder = tmp_path / "arena-hard-auto"
    data = folder / "data/arena-hard-v2.0"
    kinds = {
        "q0": "hard_prompt",
        "q1": "hard_prompt",
        "c0": "creative_writing",
        "q2": "hard_prompt",
        "q3": "hard_prompt",
    }
    lines(
        data / "question.jsonl",
        [{"uid": u, "category": k, "subcategory": k, "prompt": f"task {u}"} for u, k in kinds.items()],
    )
    for model in (BASELINE, "gemini-2.0-flash-001"):
        answers = [
            {"uid": u, "ans_id": "x", "model": model, "messages": said(u), "tstamp": 1.0} for u in reversed(kinds)
        ]
        lines(data / f"model_answer/{model}.jsonl", answers)
    (folder / "utils").mkdir()
    (folder / "utils/judge_utils.py").write_text(JUDGE_UTILS)
    (folder / "config").mkdir()
    (folder / "config/arena-hard-v2.0.yaml").write_text(CONFIG)
    return folder


class Verdicts(Scripted):
    """States the verdicts of a function (prompt, whether the baseline is shown first), read by a judge prompt."""

    def __init__(self, says, **attributes):
        template = get_template("arena_hard")
        super().__init__(
            lambda q: template.read(says(q.prompt, q.a.startswith("base"))), template=template, **attributes
        )


def run(judge, answer=lambda message, k, t: f"mine {message[0]['content'][-2:]}", name="arena_hard", **options):
    subject = StubSubject(answer, chat=True)
    return get_model_evaluation(name, options)(subject, JudgeSession(judge)), subject


def test_five_verdicts_make_a_weighted_rate_by_hand(clone):
    """q0: much better twice, 6 games won; q1: a little worse, then a draw; q2: equal texts; q3: unreadable."""
    stated = {
        "task q0": ("I say [[B>>A]]", "[[A>>B]]"),  # the baseline is shown first, then the model
        "task q1": ("[[A>B]]", "[A=B]"),
        "task q3": ("[[B>A]]", "none"),
    }
    judge = Verdicts(lambda prompt, first: stated[prompt][0 if first else 1])
    found, subject = run(judge, lambda m, k, t: "base q2" if m[0]["content"] == "task q2" else "mine", data=clone)
    assert [m[0]["content"] for m in subject.calls[0][0]] == ["task q0", "task q1", "task q2", "task q3"]
    items = found.items.set_index("prompt_id")
    assert items["unweighted_win_rate"].tolist()[:3] == [1, 0.25, 0.5]
    assert items["unreadable"].tolist() == [0, 0, 0, 1]
    # won / games: 6 / 6, .5 / 2, 1 / 2: 7.5 of 10
    assert found.metrics["win_rate"] == pytest.approx(0.75)
    assert items["win_rate"].mean() == pytest.approx(0.75) and math.isnan(items.loc["q3", "win_rate"])
    # the ratio's residuals 6 - .75 6, .5 - .75 2, 1 - .75 2, over 10 / 3 games a question
    assert (items["win_rate"].dropna() - 0.75).tolist() == pytest.approx([1.5 * 0.3, -1 * 0.3, -0.5 * 0.3])
    assert found.metrics["unweighted_win_rate"] == pytest.approx(1.75 / 3)
    assert math.isnan(found.metrics["style_controlled_win_rate"])
    assert found.notes[0] == (
        "Arena-Hard v2 prompts, judge scripted: 4 of 4 prompts of hard_prompt against o3-mini-2025-01-31, "
        "lengths in characters."
    )
    assert "needs 50 readable questions, and there are 3" in " ".join(found.notes)


def test_what_is_written_is_in_the_official_formats(clone):
    """Their script reads games[1] as the one in which the model is shown first; our table reads the files alike."""
    judge = Verdicts(lambda prompt, first: "[[B>>A]]" if first else "[[A>B]]")
    found, _ = run(judge, data=clone, prompts=2)
    assert found.items["prompt_id"].tolist() == ["q0", "q2"]
    data = clone / "data/arena-hard-v2.0"
    judged = [json.loads(line) for line in found.files["arena_hard_judgments.jsonl"].splitlines()]
    assert judged[0]["games"] == [{"score": "B>>A"}, {"score": "A>B"}] and judged[0]["baseline"] == BASELINE
    lines(data / "model_judgment/scripted/stub.jsonl", judged)
    (data / "model_answer/stub.jsonl").write_text(found.files["arena_hard_answers.jsonl"])
    assert official_rates(data, "scripted", style=None) == {"stub": 1.0}
    with pytest.raises(
        EvaluationError, match="no metadata of the answer of o3-mini-2025-01-31 to q0: run the official"
    ):
        official_rates(data, "scripted")


def test_creative_writing_has_its_own_baseline(clone):
    found, subject = run(Verdicts(lambda *_: "[[A=B]]"), name="arena_hard_creative", data=clone)
    assert len(subject.calls[0][0]) == 1 and "against gemini-2.0-flash-001" in found.notes[0]


def test_official_prompts_are_read_from_a_clone_without_running_it(clone):
    template = official_template(clone, "hard_prompt")
    filled = template.fill("Why {a}?", "x", "y")
    assert filled[0]["content"] == "Judge them.\n[[A>B]] or so."
    assert filled[1]["content"] == "<|User Prompt|>\nWhy {a}?\n<|A|>\nx\n<|B|>\ny"
    assert official_template(clone, "creative_writing").messages[0][1] == "Other words."
    (clone / "utils/judge_utils.py").write_text("import os\nos.abort()\nJUDGE_SETTINGS = os.environ\n")
    with pytest.raises(EvaluationError, match="cannot be read"):
        official_template(clone, "hard_prompt")
    with pytest.raises(EvaluationError, match="git clone https"):
        official_template(None, "hard_prompt")


@pytest.mark.parametrize(
    ("answer", "p"),
    [
        ("My final verdict is tie: [[A=B]]", 0.5),
        ("[[A>>B]] no: [[b>a]]", 0.75),  # the last one, in either case
        ("[A>B]", 0.25),
        ("[[A>B]] then [B>>A]", 0.25),  # double brackets first
        ("[[B<<A]].", 0.0),
        ("<think>[[B>>A]]</think>[[A>B]]", 0.25),
        ("[[C]] A>B", None),
    ],
)
def test_a_verdict_is_read_as_the_official_script_reads_it(answer, p):
    assert get_template("arena_hard").read(answer) == p


def test_scores_are_three_games_where_one_is_significantly_better():
    outcome, weight = scores([0, 0.2, 0.5, 0.75, 0.9, math.nan])
    assert outcome[:5].tolist() == [0, 0, 0.5, 1, 1] and weight.tolist() == [3, 1, 1, 1, 3, 0]


def test_markdown_is_counted_outside_code():
    text = "# a\n## b\n- x\n * y\n1. z\n**bold** and __too__\n```\n# no\n- no\n```\n####### seven"
    assert markdown_of(text) == {
        "header_count": {"h1": 1, "h2": 1, "h3": 0, "h4": 0, "h5": 0, "h6": 0},
        "list_count": {"ordered": 1, "unordered": 2},
        "bold_count": {"**": 1, "__": 1},
    }


def test_style_differences_by_hand():
    ours = style_of({"token_len": 30, **markdown_of("# a\n- x\n- y")})
    assert ours == [30, 1, 2, 0]
    x = style_differences([ours], [[10, 0, 4, 0]])
    d, e = 2 / 31, 4 / 11
    assert x[0].tolist() == pytest.approx([20 / 40, (1 / 31) / (1 / 31 + 1), (d - e) / (d + e + 1), 0])
    assert style_differences([[0, 0, 0, 0]], [[0, 0, 0, 0]]).tolist() == [[0, 0, 0, 0]]  # two empty answers


@pytest.fixture(scope="module")
def games():
    """400 games whose winner depends on length, with the features and outcomes."""
    random = np.random.default_rng(0)
    base = np.column_stack([random.integers(50, 500, 400), random.integers(0, 9, (400, 3))])
    ours = np.column_stack([(base[:, 0] * random.uniform(0.8, 3, 400)).round(), random.integers(0, 9, (400, 3))])
    x = style_differences(ours, base)
    won = random.random(400) < 1 / (1 + np.exp(-(-0.8 + 4 * x[:, 0])))
    return ours, base, x, won.astype(float)


def test_the_rate_at_equal_style_is_the_intercept(games):
    sm = pytest.importorskip("statsmodels.api")
    _, _, x, won = games
    weight = np.where(np.arange(400) % 3 == 0, 3.0, 1.0)
    d = sm.GLM(won, sm.add_constant(x), family=sm.families.Binomial(), freq_weights=weight).fit().params[0]
    assert equal_style_rate(won, weight, x) == pytest.approx(1 / (1 + math.exp(-d)), abs=1e-6)
    assert equal_style_rate(won, weight, np.zeros((400, 4))) == pytest.approx(weight @ won / weight.sum(), abs=1e-6)


def test_the_official_table_is_one_regression_over_the_centred_features_of_all_games(games, tmp_path):
    """Three models in the official formats, and statsmodels on the same games written out three times where they count so."""
    sm = pytest.importorskip("statsmodels.api")
    ours, base, _, won = games
    uids, style = [f"q{i}" for i in range(400)], ("token_len", "header_count", "list_count", "bold_count")

    def metadata(row):
        return {style[0]: int(row[0]), **{name: {"x": int(n)} for name, n in zip(style[1:], row[1:], strict=True)}}

    answers = lambda model, rows: [  # noqa: E731
        {"uid": u, "model": model, "messages": [], "metadata": metadata(r)} for u, r in zip(uids, rows, strict=True)
    ]
    lines(tmp_path / "model_answer/base.jsonl", answers("base", base))
    games_of, features, outcomes = [], [], []
    for number, model in enumerate(("m0", "org/m1", "m2")):
        rows = np.roll(ours, 7 * number, axis=0)
        lines(tmp_path / f"model_answer/m{number}.jsonl", answers(model, rows))
        judged = []
        for i, u in enumerate(uids):
            win = bool(won[(i + 131 * number) % 400])
            strong = i % 5 == 0
            second = ("B" + ">" * (1 + strong) + "A") if win else ("A" + ">" * (1 + strong) + "B")
            judged.append({"uid": u, "category": "hard_prompt", "model": model, "baseline": "base"})
            judged[-1]["games"] = [{"score": second}, {"score": "A=B"}] if i else [{"score": None}, {"score": "A=B"}]
            if i:
                games_of += [number] * (3 if strong else 1) + [number]
                features += [style_differences([rows[i]], [base[i]])[0]] * (4 if strong else 2)
                outcomes += [float(win)] * (3 if strong else 1) + [0.5]
        lines(tmp_path / f"model_judgment/j/m{number}.jsonl", judged)
    table = official_rates(tmp_path, "j")
    x = np.array(features)
    x = (x - x.mean(0)) / x.std(0, ddof=1)
    players = pd.get_dummies(pd.Series(games_of)).to_numpy(dtype=float)
    fit = sm.GLM(np.array(outcomes), np.hstack([players, x]), family=sm.families.Binomial()).fit()
    assert list(table) == ["m0", "m1", "m2"]
    assert list(table.values()) == pytest.approx((1 / (1 + np.exp(-fit.params[:3]))).tolist(), abs=1e-6)


def test_style_control_of_a_model_that_wins_by_length(clone):
    """The judge's P(longer is better) = sigmoid(4 (l - l') / (l + l')) exactly: half at equal length, whatever the lengths."""
    data = clone / "data/arena-hard-v2.0"
    uids = [f"q{i}" for i in range(60)]
    lines(data / "question.jsonl", [{"uid": u, "category": "hard_prompt", "prompt": f"task {u}"} for u in uids])
    fixed = [{"role": "assistant", "content": {"answer": "b" * 100}}]
    lines(data / f"model_answer/{BASELINE}.jsonl", [{"uid": u, "model": BASELINE, "messages": fixed} for u in uids])
    judge = Scripted(lambda q: 1 / (1 + math.exp(-4 * (len(q.b) - len(q.a)) / (len(q.a) + len(q.b)))))
    found, _ = run(judge, lambda message, k, t: "m" * (90 + 2 * int(message[0]["content"][6:])), data=clone)
    values = found.items["style_controlled_win_rate"].dropna()
    assert len(values) == 35
    assert found.metrics["style_controlled_win_rate"] == pytest.approx(0.5, abs=1e-5)
    assert values.mean() == pytest.approx(0.5, abs=1e-5)
    assert found.metrics["win_rate"] > 0.65 and found.metrics["unweighted_win_rate"] > 0.9


def test_faults_are_named(clone, tmp_path):
    judge = Verdicts(lambda *_: "[[A=B]]")
    with pytest.raises(
        EvaluationError, match=r"has no data/arena-hard-v2.0/question.jsonl: put that file of the hub's data set"
    ):
        run(judge, data=tmp_path)
    other = tmp_path / "other.jsonl"
    lines(other, [{"uid": "q0", "model": "other", "messages": [{"content": {"answer": "x"}}]}])
    with pytest.raises(EvaluationError, match="other has no answer to 3 questions, the first q1"):
        run(judge, data=clone, baseline=other)
    lines(other, [{"uid": "q0", "model": "other", "messages": [{"content": "x"}]}])
    with pytest.raises(EvaluationError, match="cannot be read"):
        run(judge, data=clone, baseline=other)
    # any folder on the way to the files will do
    assert run(judge, data=clone / "data/arena-hard-v2.0")[0].metrics["unweighted_win_rate"] == 0.5
