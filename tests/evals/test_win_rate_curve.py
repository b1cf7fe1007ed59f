"""Win rates along training: every number by hand, a bounded number of calls, and a recorded curve without a second training."""

import re

import pandas as pd
import pytest
from stub import StubSubject

from plo.data import Row
from plo.evals import EvaluationError, get_model_evaluation
from plo.evals.judges import JudgeSession, register_judge
from plo.evals.win_rate_curve import win_rate_curve
from plo.subjects.subject import Trajectory


def longer(prompt, a, b):
    return float(len(b) > len(a)) if len(a) != len(b) else 0.5


def drawn(*lines):
    """A frame of samples from lines (step, prompt_id, sample, text) of a training of four steps."""
    frame = pd.DataFrame(lines, columns=["step", "prompt_id", "sample", "text"])
    prompts = {0: "\n\nHuman: first\n\nAssistant:", 1: "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"}
    return frame.assign(share=frame["step"] / 4, prompt=frame["prompt_id"].map(prompts))


@pytest.fixture
def subject():
    texts = [(2, 0, "a"), (2, 1, "abcd"), (4, 0, "abc"), (4, 1, "abcd")]
    samples = drawn(*((step, i, k, text + "!" * k) for step, i, text in texts for k in (0, 1)))
    chosen = {text: answer for text, answer in zip(samples["prompt"].unique(), ("abcde", "a"), strict=True)}
    rows = {text: Row(text, answer, "x", "row") for text, answer in chosen.items()}
    reference = {(0, 0): "ab", (1, 0): " abcd ".strip(), (0, 1): "ab", (1, 1): "b"}
    made = StubSubject(lambda *a: pytest.fail("it samples"), name="dpo")
    made.trajectory = lambda: Trajectory(samples, reference, rows, ("a note",))
    return made


def test_win_rates_of_every_point_by_hand(subject):
    """The longer text wins. Step 2: "a" loses to "ab", equal texts tie: .25; step 4: "abc" wins, and the tie: .75.

    Against "abcde" and "a": at both steps one loss and one win. Lengths: (1 + 4) / 2 and (3 + 4) / 2 characters.
    """
    asked = []

    def judge(prompt, a, b):
        asked.append((prompt, a, b))
        return longer(prompt, a, b)

    found = win_rate_curve(subject, JudgeSession(judge), against=("reference", "chosen"))
    assert {step: curve["win_rate_reference"] for step, curve in found.curves.items()} == {2: 0.25, 4: 0.75}
    assert {step: curve["win_rate_chosen"] for step, curve in found.curves.items()} == {2: 0.5, 4: 0.5}
    assert {step: curve["length"] for step, curve in found.curves.items()} == {2: 2.5, 4: 3.5}
    assert found.metrics == found.curves[4] and found.metrics["length_reference"] == 3.0
    assert found.items["win_rate_reference"].tolist() == [1.0, 0.5] and found.notes == ("a note",)
    points = found.tables["win_rate_curve_points.json"]
    assert points[["share", "prompt_id", "win_rate_reference"]].values.tolist() == [
        [0.5, 0, 0.0], [0.5, 1, 0.5], [1.0, 0, 1.0], [1.0, 1, 0.5],
    ]  # fmt: skip
    # One pair of texts at two steps against the reference, three against chosen; each in both orders, equal ones never.
    assert len(asked) == len(set(asked)) == 2 * (2 + 3)
    assert {prompt for prompt, _, _ in asked} == {"first", "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"}


def test_prompts_and_samples_bound_what_is_asked(subject):
    session = JudgeSession(longer)
    found = win_rate_curve(subject, session, prompts=1)
    assert session.counts.asked == 2 * 2 and found.items["prompt_id"].tolist() == [0]
    both = win_rate_curve(subject, JudgeSession(longer), samples=2)
    # Prompt 0, step 2: "a" loses, "a!" and "ab" tie; prompt 1: tie, "abcd!" wins over "b".
    assert both.curves[2]["win_rate_reference"] == pytest.approx((0.25 + 0.75) / 2)


def test_thoughts_and_white_space_around_an_answer_are_not_judged(subject):
    """A prompt whose template has opened the thought, and one whose answer opens it."""
    texts = subject.trajectory().samples.query("sample == 0")
    opened = texts["prompt_id"] == 0
    texts = texts.assign(
        prompt=texts["prompt"].where(~opened, texts["prompt"] + " <think>\n"),
        text=opened.map({True: "long</think> abc\n", False: "<think>x</think>abcd"}),
    )
    reference = {(0, 0): "a very long thought</think>abcd ", (1, 0): "<think>no</think>\nabcd"}
    subject.trajectory = lambda: Trajectory(texts, reference, {}, ())
    asked = []

    def judge(prompt, a, b):
        asked.append({a, b})
        return longer(prompt, a, b)

    assert win_rate_curve(subject, JudgeSession(judge)).curves[4]["win_rate_reference"] == (0 + 0.5) / 2
    assert asked and all(pair == {"abc", "abcd"} for pair in asked)


def test_a_model_that_no_comparison_trained_has_no_curve():
    with pytest.raises(EvaluationError, match="stub has none: run it on a recorded comparison"):
        get_model_evaluation("win_rate_curve")(StubSubject(longer), JudgeSession(longer))


def test_a_comparison_records_the_curve_within_the_planned_calls_and_another_judge_trains_nothing(tiny, monkeypatch):
    import plo.experiment.runner as runner
    from plo.experiment.evaluations import evaluate_recorded, find
    from plo.experiment.matrix import compare
    from plo.experiment.plan import plan_comparison
    from plo.leaderboards import read, to_markdown
    from plo.tracking import Tracker

    asked = []

    @register_judge("longer")
    def judge(prompt, a, b):
        asked.append(prompt)
        return longer(prompt, a, b)

    register_judge("shorter")(lambda prompt, a, b: 1 - longer(prompt, a, b))
    suite = ["repetition", {"win_rate_curve": {"against": ["reference", "chosen"]}}]
    settings = {"prompts": 3, "samples": 2, "max_new_tokens": 4, "suite": suite, "judge": "longer"}
    experiment = tiny(evaluation=settings, **{"train.lr": 0.05})
    (planned,) = plan_comparison(experiment).model_evaluations
    assert (planned.calls, planned.texts) == (2 * 2 * 3 * 2, 0)  # orders, points, prompts, opponents
    assert not compare(experiment).failed
    assert 0 < len(asked) <= 3 * planned.calls  # of the reference, sft and dpo

    def finding():
        return next(cell for cell in Tracker(create=False).cells() if cell.name == "dpo seed 0").findings[0]

    first = finding()
    curve = first.history("win_rate_reference")
    cell = next(cell for cell in Tracker(create=False).cells() if cell.name == "dpo seed 0")
    assert list(curve) == list(cell.history("kl")) and len(curve) == 2
    assert first.metrics["win_rate_reference"] == list(curve.values())[-1]
    at_end = cell.table("texts_by_point.json").query("share == 1")
    assert at_end["text"].tolist() == cell.table("samples.json")["text"].tolist()

    drawn = to_markdown(read(Tracker(create=False), "tiny"))
    shown = re.findall(r"\| variant \| \d+% \| 100% \|\n.*?\| dpo \| ([\d.]+) \| ([\d.]+) \|", drawn, re.DOTALL)
    assert tuple(f"{value:.3f}" for value in curve.values()) in shown

    monkeypatch.setattr(runner, "run_cell", lambda *a: pytest.fail("trained again"))
    tracker, comparison, only = find("tiny", None)
    assert not evaluate_recorded(comparison, only, {"judge": "shorter"}, tracker)
    both = [one["win_rate_chosen"] for one in (first.metrics, finding().metrics)]
    assert both[0] == pytest.approx(1 - both[1])
