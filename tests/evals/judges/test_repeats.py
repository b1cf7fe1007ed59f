"""A judge that is asked several times: a verdict of its own for each repeat, none asked twice, and their mean."""

import math

import pandas as pd
import pytest
from scripted import Scripted, frame

from plo.evals.judges import JudgeError, JudgeSession, Question, Verdict, make_judge_card
from plo.evals.judges.judge import split_repeats

# P(second shown better) of three repeats, by the two texts in the order shown
SAYS = {
    ("x", "y"): [0.9, 0.2, 0.9],
    ("y", "x"): [0.4, 0.3, 0.8],
    ("u", "v"): [None, 0.5, 0.7],
    ("v", "u"): [0.2, 0.1, None],
}
FRAME = frame(("q", "x", "y"), ("q", "u", "v"), index=[7, 3])


def judge(**attributes):
    return Scripted(lambda q: SAYS[q.a, q.b][q.repeat], **attributes)


def test_the_mean_of_three_repeats_by_hand():
    said = judge()
    out = JudgeSession(said, repeats=3).verdicts(FRAME)
    # y's wins in the orders (x, y) and (y, x): 1 1 | 0 1 | 1 0; v's: - 1 | .5 1 | 1 -
    assert out.win.tolist() == pytest.approx([(1 + 0.5 + 0.5) / 3, 0.75])
    assert out.p_ab.tolist() == pytest.approx([2 / 3, 0.6]) and out.p_ba.tolist() == pytest.approx([0.5, 0.85])
    assert out.p.tolist() == pytest.approx([(0.75 + 0.45 + 0.55) / 3, 0.7])
    assert out.consistent.tolist() == pytest.approx([1 / 3, 0]) and out.index.tolist() == [7, 3]


def test_every_repeat_has_a_verdict_of_its_own_and_none_is_asked_twice():
    once = judge()
    first = JudgeSession(once).verdicts(FRAME)  # without repeats, as before
    asked = len(once.asked)
    thrice = JudgeSession(once, repeats=3)
    thrice.begin()
    tables = [thrice.verdicts(FRAME) for _ in thrice.each_repeat()]
    pd.testing.assert_frame_equal(tables[0], first)
    assert [table.win.tolist()[0] for table in tables] == [1.0, 0.5, 0.5]
    assert math.isnan(tables[0].win[3]) and math.isnan(tables[2].win[3]) and tables[1].win[3] == 0.75
    # 4 questions and 2 more repeats; the unreadable one of the last repeat is asked 4 times, that of the first was before
    assert len(once.asked) == asked + 8 + 3
    pd.testing.assert_frame_equal(
        JudgeSession(once, repeats=3).verdicts(FRAME), JudgeSession(judge(), repeats=3).verdicts(FRAME)
    )
    assert len(once.asked) == asked + 8 + 3


def test_a_judge_that_keeps_nothing_is_asked_once_for_all_repeats():
    said = judge(cached=False)
    judging = JudgeSession(said, repeats=3)
    assert len([judging.verdicts(frame(("q", "x", "y"))) for _ in judging.each_repeat()]) == 3
    assert len(said.asked) == len(set(said.asked)) == 6


def test_the_budget_is_checked_for_all_repeats_before_any_call():
    said = judge()
    with pytest.raises(JudgeError, match="asked 6 questions .* 5 calls left. None was asked"):
        judging = JudgeSession(said, repeats=3, calls=5)
        [judging.verdicts(frame(("q", "x", "y"))) for _ in judging.each_repeat()]
    assert not said.asked


def test_the_option_of_every_judge():
    assert split_repeats({"openai:m": {"repeats": 2, "timeout": 9}}) == ({"openai:m": {"timeout": 9}}, 2)
    assert JudgeSession("openai:m@http://127.0.0.1:1/v1(repeats=3)").judge().name == "openai:m@http://127.0.0.1:1/v1"
    for wrong in ("0", "1.5", "true", "101", "many"):
        with pytest.raises(JudgeError, match="a whole number from 1 to 100"):
            JudgeSession(f"openai:m(repeats={wrong})")
    for same in ("hf:embedded", "reward:org/model", "gold:sentiment", "replay:file.json"):
        with pytest.raises(JudgeError, match="gives the same verdict whenever it is asked"):
            JudgeSession(f"{same}(repeats=2)")
        assert JudgeSession(f"{same}(repeats=1)").repeats == 1


def test_a_card_over_repeats_by_hand():
    pairs = pd.DataFrame([("q", "x", "y", 1), ("q", "u", "v", 1)], columns=["prompt", "a", "b", "gold"])
    card = make_judge_card(JudgeSession(judge(), repeats=3), pairs)
    # wins of b: 1 1 | 0 1 | 1 0 and - 1 | .5 1 | 1 -
    assert card.accuracy.value == pytest.approx((4 / 6 + 3.5 / 4) / 2)
    assert card.unreadable == 2 and card.consistency.value == pytest.approx((1 / 3 + 0) / 2)
    # asked with a shown first: 1 0 1 agree in one of three pairs; - .5 1 in none of one
    assert card.retest.value == pytest.approx((1 / 3 + 0) / 2)


def test_one_call_gets_a_batch():
    sizes = []

    class Batched(Scripted):
        def judge(self, questions):
            sizes.append(len(questions))
            return super().judge(questions)

    said = Batched(lambda q: 0.1 * len(q.b), batch=4, cached=False)
    judging = JudgeSession(said, calls=10)
    answers = judging.ask([Question("q", "x", "y" * i) for i in range(1, 10)])
    assert [v.p for v in answers] == pytest.approx([0.1 * i for i in range(1, 10)]) and sizes == [4, 4, 1]
    assert judging.counts.asked == 9 and judging.counts.seconds > 0
    with pytest.raises(JudgeError, match="answered 2 questions with .0.5.: it must return one .* for each"):
        judge = Scripted(lambda q: 0.5, batch=2)
        judge.judge = lambda questions: [Verdict(0.5)]
        JudgeSession(judge).ask([Question("q", "x", "y"), Question("q", "x", "z")])
