"""Both orders, the cache that processes share, the budget, answers that cannot be read."""

import math
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from plo.evals.judges import Judge, JudgeError, Judging, Question, Verdict, VerdictCache, register_judge


class Scripted(Judge):
    """Answers by a function of the question; remembers what it was asked."""

    name, version = "scripted", "1"

    def __init__(self, says, **attributes):
        self.says, self.asked = says, []
        vars(self).update(attributes)

    def judge(self, questions):
        self.asked += questions
        return [Verdict(self.says(q), cost=0.25) for q in questions]

    def estimate(self, questions):
        return 0.5 * len(questions)


def frame(*rows, index=None):
    return pd.DataFrame(rows, columns=["prompt", "a", "b"], index=index)


def test_both_orders_by_hand():
    p = {("x", "y"): 0.9, ("y", "x"): 0.4, ("u", "v"): 0.7, ("v", "u"): 0.8, ("s", "t"): 0.5, ("t", "s"): 0.75}
    judge = Scripted(lambda q: p[q.a, q.b])
    out = Judging(judge).verdicts(frame(("q", "x", "y"), ("q", "u", "v"), ("q", "s", "t"), index=[7, 3, 5]))
    assert out.index.tolist() == [7, 3, 5]
    assert out.p_ab.tolist() == [0.9, 0.7, 0.5]
    assert out.p_ba.tolist() == pytest.approx([0.6, 0.2, 0.25])
    assert out.win.tolist() == [1.0, 0.5, 0.25]
    assert out.consistent.tolist() == [1, 0, 0]
    one = Judging(judge).verdicts(frame(("q", "x", "y")), both=False)
    assert one.p_ba.tolist() == [0.9] and one.consistent.isna().all()


def test_nothing_is_asked_twice():
    judge = Scripted(lambda q: 0.9)
    judging = Judging(judge)
    questions = frame(("q", "x", "y"), ("q", "x", "y"), ("q", "y", "x"), ("q", " same\n", "same"))
    out = judging.verdicts(questions)
    assert len(judge.asked) == 2  # (x, y) and (y, x) are the two orders of three rows
    assert out.loc[3, ["p_ab", "p_ba", "win", "consistent"]].tolist() == [0.5, 0.5, 0.5, 1.0]
    pd.testing.assert_frame_equal(Judging(judge).verdicts(questions), out)
    assert len(judge.asked) == 2
    assert judging.counts.asked == 2 and judging.counts.cost == 0.5


@pytest.mark.parametrize("change", ["name", "version", "prompt", "a", "b", "moved"])
def test_the_key_is_all_that_a_verdict_depends_on(change):
    judge, question = Scripted(lambda q: 0.9), {"prompt": "p", "a": "x", "b": "yz"}
    Judging(judge).ask([Question(**question)])
    if change in question:
        question[change] += "!"
    elif change == "moved":
        question |= {"a": "xy", "b": "z"}
    else:
        setattr(judge, change, "other")
    Judging(judge).ask([Question(**question)])
    assert len(judge.asked) == 2


def test_a_pointwise_judge_is_asked_once():
    judge = Scripted(lambda q: 0.9, pointwise=True)
    out = Judging(judge).verdicts(frame(("q", "x", "y")))
    assert len(judge.asked) == 1 and out.loc[0].tolist() == [0.9, 0.9, 1.0, 0.9, 1.0]


def test_unreadable_answers_are_asked_again_and_counted():
    tries = {}

    def says(q):
        tries[q] = tries.get(q, 0) + 1
        return None if q.a == "never" or (q.a == "third" and tries[q] < 3) else 0.9

    judge = Scripted(says)
    judging = Judging(judge)
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
    Judging(judge).ask([Question("q", "never", "y")])
    assert tries[Question("q", "never", "y")] == 8  # not kept as a verdict


def test_budget_is_refused_before_any_call():
    judge, told = Scripted(lambda q: 0.9), []
    rows = frame(*(("q", "x", f"y{i}") for i in range(5)))
    with pytest.raises(JudgeError, match=r"10 questions at a cost of 5, .*9 calls left.*raise the budget"):
        Judging(judge, calls=9).verdicts(rows)
    with pytest.raises(JudgeError, match=r"10 questions at a cost of 5, .*9 calls and 4.9 left"):
        Judging(judge, calls=9, money=4.9).verdicts(rows)
    assert not judge.asked
    judging = Judging(judge, calls=12, money=5.0, tell=told.append)
    judging.verdicts(rows)
    assert told[0] == "scripted: 10 of 10 questions to ask, cost 5" and told[-1].startswith("scripted: 10/10")
    judging.verdicts(rows)  # all known: costs nothing
    with pytest.raises(JudgeError, match=r"4 questions at a cost of 2, .*2 calls and 2.5 left"):  # over its life
        judging.verdicts(frame(("q", "x", "z1"), ("q", "x", "z2")))
    assert len(judge.asked) == 10


def test_asking_again_keeps_to_the_budget():
    judge = Scripted(lambda q: None)
    judging = Judging(judge, calls=3)
    assert judging.ask([Question("q", "x", "y"), Question("q", "y", "x")]) == [Verdict(None, cost=0.25)] * 2
    assert len(judge.asked) == 2 and judging.counts.unreadable == 2


def test_what_a_judge_must_not_say():
    with pytest.raises(JudgeError, match=r"one probability in \[0, 1\]"):
        Judging(Scripted(lambda q: 1.5)).ask([Question("q", "x", "y")])


def test_a_fault_keeps_what_was_had():
    def says(q):
        if q.b == "y3":
            raise JudgeError("gone")
        return 0.9

    judge = Scripted(says)
    with pytest.raises(JudgeError, match="gone"):
        Judging(judge).ask([Question("q", "x", f"y{i}") for i in range(6)])
    judge.asked.clear()
    Judging(judge).ask([Question("q", "x", f"y{i}") for i in range(3)])
    assert not judge.asked


def test_functions():
    calls = []

    @register_judge("longer")
    def longer(prompt, a, b):
        calls.append((a, b))
        return float(len(b) > len(a))

    for _ in range(2):
        assert Judging("longer").verdicts(frame(("q", "x", "yy"))).win.tolist() == [1.0]
    assert len(calls) == 2  # in the cache
    for p in (0.1, 0.9):  # two functions of one text: what they close over is not known
        assert Judging(lambda prompt, a, b, p=p: p).verdicts(frame(("q", "x", "yy"))).p_ab.tolist() == [p]
    with pytest.raises(JudgeError, match="nothing after a colon"):
        Judging("longer:than").judge()


def test_batches_and_concurrency():
    sizes = []

    class Batched(Scripted):
        def judge(self, questions):
            sizes.append(len(questions))
            return super().judge(questions)

    judging = Judging(Batched(lambda q: 0.1 * int(q.b), batch=4, concurrency=3))
    answers = judging.ask([Question("q", "x", str(i)) for i in range(10)])
    assert [v.p for v in answers] == [0.1 * i for i in range(10)] and sorted(sizes) == [2, 4, 4]


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "verdicts.db").write_text("no database at all, but a text of some length")
    with pytest.raises(JudgeError, match=r"verdicts\.db cannot be used"):
        VerdictCache(tmp_path / "verdicts.db")


RUN = """
import sys
import pandas as pd
from plo.evals.judges import Judging
url, cache = sys.argv[1:]
frame = pd.DataFrame({"prompt": [f"p{i}" for i in range(50)], "a": "x", "b": "y"})
judging = Judging({f"openai:m@{url}": {"concurrency": 4}}, cache=cache)
out = judging.verdicts(frame)
"""


def start(server, path):
    return subprocess.Popen([sys.executable, "-c", RUN, server.url, str(path)])


def check(server, path):
    """The same again, in this process: right, and complete in the cache."""
    before = len(server.asked)
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", server.url, str(path)])
        exec(RUN, found)
    assert found["out"].p_ab.tolist() == [1.0] * 50 and found["out"].p_ba.tolist() == [0.0] * 50  # always the second
    counts = found["judging"].counts
    assert counts.asked + counts.cached == 100 and len(server.asked) - before == counts.asked
    return counts


def test_killed_half_way_it_asks_only_for_what_is_missing(serve, tmp_path):
    server = serve(lambda body: "B", delay=0.02)
    process = start(server, tmp_path / "v.db")
    while server.answered < 40:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.2)  # requests that are under way end
    before = len(server.asked)
    assert before < 100
    counts = check(server, tmp_path / "v.db")
    assert before - counts.cached <= 4  # at most the calls that were under way when it was killed


def test_processes_share_the_cache(serve, tmp_path):
    server = serve(lambda body: "B", delay=0.01)
    processes = [start(server, tmp_path / "v.db") for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert 100 <= len(server.asked) <= 200
    assert check(server, tmp_path / "v.db").cached == 100
