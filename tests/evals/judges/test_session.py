"""A judge session: both orders, each question once, answers that cannot be read, progress."""

import math
import threading

import pandas as pd
import pytest
from scripted import Scripted, frame

from plo.evals.judges import (
    JudgeError,
    JudgeSession,
    Question,
    Verdict,
    register_judge,
)


def test_both_orders_by_hand():
    p = {("x", "y"): 0.9, ("y", "x"): 0.4, ("u", "v"): 0.7, ("v", "u"): 0.8, ("s", "t"): 0.5, ("t", "s"): 0.75}
    judge = Scripted(lambda q: p[q.a, q.b])
    out = JudgeSession(judge).verdicts(frame(("q", "x", "y"), ("q", "u", "v"), ("q", "s", "t"), index=[7, 3, 5]))
    assert out.index.tolist() == [7, 3, 5]
    assert out.p_ab.tolist() == [0.9, 0.7, 0.5]
    assert out.p_ba.tolist() == pytest.approx([0.6, 0.2, 0.25])
    assert out.win.tolist() == [1.0, 0.5, 0.25]
    assert out.consistent.tolist() == [1, 0, 0]
    one = JudgeSession(judge).verdicts(frame(("q", "x", "y")), both=False)
    assert one.p_ba.tolist() == [0.9] and one.consistent.isna().all()


def test_nothing_is_asked_twice():
    judge = Scripted(lambda q: 0.9)
    judging = JudgeSession(judge)
    questions = frame(("q", "x", "y"), ("q", "x", "y"), ("q", "y", "x"), ("q", " same\n", "same"))
    out = judging.verdicts(questions)
    assert len(judge.asked) == 2  # (x, y) and (y, x) are the two orders of three rows
    assert out.loc[3, ["p_ab", "p_ba", "win", "consistent"]].tolist() == [0.5, 0.5, 0.5, 1.0]
    pd.testing.assert_frame_equal(JudgeSession(judge).verdicts(questions), out)
    assert len(judge.asked) == 2
    assert judging.counts.asked == 2 and judging.counts.cost == 0.5


@pytest.mark.parametrize("change", ["name", "version", "prompt", "a", "b", "moved"])
def test_the_key_is_all_that_a_verdict_depends_on(change):
    judge, question = Scripted(lambda q: 0.9), {"prompt": "p", "a": "x", "b": "yz"}
    JudgeSession(judge).ask([Question(**question)])
    if change in question:
        question[change] += "!"
    elif change == "moved":
        question |= {"a": "xy", "b": "z"}
    else:
        setattr(judge, change, "other")
    JudgeSession(judge).ask([Question(**question)])
    assert len(judge.asked) == 2


def test_a_pointwise_judge_is_asked_once():
    judge = Scripted(lambda q: 0.9, pointwise=True)
    out = JudgeSession(judge).verdicts(frame(("q", "x", "y")))
    assert len(judge.asked) == 1 and out.loc[0].tolist() == [0.9, 0.9, 1.0, 0.9, 1.0]


def test_unreadable_answers_are_asked_again_and_counted():
    tries = {}

    def says(q):
        tries[q] = tries.get(q, 0) + 1
        return None if q.a == "never" or (q.a == "third" and tries[q] < 3) else 0.9

    judge = Scripted(says)
    judging = JudgeSession(judge)
    out = judging.verdicts(frame(("q", "never", "y"), ("q", "third", "y")), both=True)
    assert out.p_ab.isna().tolist() == [True, False] and math.isnan(out.win[0]) and math.isnan(out.consistent[0])
    assert not math.isnan(out.p_ba[0]) and out.win[1] == 0.5
    assert tries == {
        Question("q", "never", "y"): 4,
        Question("q", "third", "y"): 3,
        Question("q", "y", "never"): 1,
        Question("q", "y", "third"): 1,
    }
    assert judging.counts.unreadable == 1 and judging.counts.asked == 9
    again = JudgeSession(judge)
    assert again.ask([Question("q", "never", "y")])[0].p is None
    assert tries[Question("q", "never", "y")] == 4  # its tries are used up, in earlier runs too
    assert again.counts.unreadable == 1 and again.counts.cached == 1 and again.counts.asked == 0


def test_the_tries_left_are_made_in_the_next_run():
    answers = iter([None, None, None, 0.9])
    judge = Scripted(lambda q: next(answers))
    question = Question("q", "x", "y")
    assert JudgeSession(judge, calls=2).ask([question])[0].p is None and len(judge.asked) == 2
    assert JudgeSession(judge).ask([question])[0].p == 0.9 and len(judge.asked) == 4
    assert JudgeSession(judge).ask([question])[0].p == 0.9 and len(judge.asked) == 4  # kept as any other


def test_a_refused_question_is_asked_once_a_run():
    judge, told = Scripted(lambda q: 0.9), []
    judge.judge = lambda questions: judge.asked.extend(questions) or [Verdict(None, "too long", refused=True)]
    for run in (1, 2):
        judging = JudgeSession(judge, tell=told.append)
        assert judging.ask([Question("q", "x", "y")])[0].p is None
        assert judging.counts.unreadable == 1 and len(judge.asked) == run
        assert told[-1] == "scripted: 1 of 1 answers could not be read, the first: 'too long'"


def test_functions():
    calls = []

    @register_judge("longer")
    def longer(prompt, a, b):
        calls.append((a, b))
        return float(len(b) > len(a))

    for _ in range(2):
        assert JudgeSession("longer").verdicts(frame(("q", "x", "yy"))).win.tolist() == [1.0]
    assert len(calls) == 2  # in the cache
    for p in (0.1, 0.9):  # two functions of one text: what they close over is not known
        assert JudgeSession(lambda prompt, a, b, p=p: p).verdicts(frame(("q", "x", "yy"))).p_ab.tolist() == [p]
    with pytest.raises(JudgeError, match="no argument after a colon"):
        JudgeSession("longer:than").judge()


def test_concurrency():
    barrier = threading.Barrier(3, timeout=10)  # breaks where fewer than three are under way at once

    def says(q):
        barrier.wait()
        return 0.1 * int(q.b)

    answers = JudgeSession(Scripted(says, concurrency=3)).ask([Question("q", "x", str(i)) for i in range(9)])
    assert [v.p for v in answers] == [0.1 * i for i in range(9)]


def test_progress(monkeypatch):
    monkeypatch.setattr("plo.evals.judges.session.EVERY", 0.0)
    questions, told = [Question("q", "x", str(i)) for i in range(2)], []
    JudgeSession(Scripted(lambda q: 0.9), tell=told.append).ask(questions)
    assert told[0] == "scripted: 2 of 2 questions to ask, cost 1" and told[1].startswith("scripted: 1/2, spent 0.")
    assert told[2:] == ["scripted: 2/2, spent 0.5"]
    told.clear()
    JudgeSession(lambda prompt, a, b: 0.9, tell=told.append).ask(questions)
    assert told == ["<lambda>: 2 of 2 questions to ask", "<lambda>: 1/2", "<lambda>: 2/2"]
