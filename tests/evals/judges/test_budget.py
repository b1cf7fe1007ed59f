"""Calls of a judge: every call counts, the budget holds, and a fault keeps what was answered."""

import math

import pytest
from scripted import Scripted, frame

from plo.evals.judges import (
    JudgeError,
    JudgeSession,
    Question,
    TransientError,
    Verdict,
)


class Flaky(Scripted):
    """Fails so many times a question, then answers."""

    def __init__(self, failures, **attributes):
        super().__init__(lambda q: 0.9, **attributes)
        self.failures = failures

    def judge(self, questions):
        self.asked += questions
        if self.asked.count(questions[0]) <= self.failures:
            raise TransientError("later.", wait=0.0, cost=0.125)
        return [Verdict(0.9, cost=0.25)]


def test_every_call_counts():
    judging = JudgeSession(Flaky(2, retries=2))
    assert judging.ask([Question("q", "x", "y"), Question("q", "x", "z")]) == [Verdict(0.9, cost=0.25)] * 2
    assert judging.counts.asked == 6 and judging.counts.cost == 2 * (2 * 0.125 + 0.25)
    with pytest.raises(JudgeError, match=r"later\. It was called 2 times"):
        JudgeSession(Flaky(2, retries=1)).ask([Question("q", "u", "v")])


@pytest.mark.parametrize("concurrency", [1, 4])
@pytest.mark.parametrize(
    # Verdicts take 2, 3 and 2 calls: the eighth call would be the second of the third question's three. A question
    # costs 2 x .125 + .25 = .5, and a call may cost .5: it is refused where less than that is left.
    ("budget", "calls", "message"),
    [({"calls": 7}, 7, r"7 calls at a cost"), ({"money": 1.5}, None, r"\d calls at a cost")],
)
def test_a_budget_that_failures_use_up(budget, calls, message, concurrency):
    questions = [Question("q", "x", str(i)) for i in range(3)]
    judge = Flaky(2, retries=8, concurrency=concurrency)
    judging = JudgeSession(judge, **budget)
    with pytest.raises(
        JudgeError, match=rf"budget of the judge scripted is spent before all questions were asked: {message}"
    ):
        judging.ask(questions)
    sent = len(judge.asked)
    assert judging.counts.asked == sent and (calls is None or sent == calls)
    assert judging.counts.cost <= budget.get("money", math.inf)
    rest = JudgeSession(judge)
    rest.ask(questions)
    assert rest.counts.cached == sum(judge.asked[:sent].count(q) == 3 for q in questions)  # what was had is kept
    if concurrency == 1:
        assert rest.counts.cached == 2


def test_budget_is_refused_before_any_call():
    judge, told = Scripted(lambda q: 0.9), []
    rows = frame(*(("q", "x", f"y{i}") for i in range(5)))
    with pytest.raises(JudgeError, match=r"10 questions at a cost of 5, .*9 calls left.*raise the budget"):
        JudgeSession(judge, calls=9).verdicts(rows)
    with pytest.raises(JudgeError, match=r"10 questions at a cost of 5, .*9 calls and 4.9 left"):
        JudgeSession(judge, calls=9, money=4.9).verdicts(rows)
    assert not judge.asked
    judging = JudgeSession(judge, calls=12, money=5.0, tell=told.append)
    judging.verdicts(rows)
    assert told[0] == "scripted: 10 of 10 questions to ask, cost 5" and len(told) == 1
    judging.verdicts(rows)  # all known: costs nothing
    with pytest.raises(
        JudgeError, match=r"4 questions.* cost of 2, .*2 calls and 2.5 left. None was asked"
    ):  # over its life
        judging.verdicts(frame(("q", "x", "z1"), ("q", "x", "z2")))
    assert len(judge.asked) == 10


def test_asking_again_keeps_to_the_budget():
    judge = Scripted(lambda q: None)
    judging = JudgeSession(judge, calls=3)
    assert judging.ask([Question("q", "x", "y"), Question("q", "y", "x")]) == [Verdict(None, cost=0.25)] * 2
    assert len(judge.asked) == 2 and judging.counts.unreadable == 2


def test_what_a_judge_must_not_say():
    with pytest.raises(JudgeError, match=r"one probability in \[0, 1\]"):
        JudgeSession(Scripted(lambda q: 1.5)).ask([Question("q", "x", "y")])


def test_a_fault_keeps_what_was_had():
    def says(q):
        if q.b == "y3":
            raise JudgeError("gone")
        return 0.9

    judge = Scripted(says)
    with pytest.raises(JudgeError, match="gone"):
        JudgeSession(judge).ask([Question("q", "x", f"y{i}") for i in range(6)])
    judge.asked.clear()
    JudgeSession(judge).ask([Question("q", "x", f"y{i}") for i in range(3)])
    assert not judge.asked
