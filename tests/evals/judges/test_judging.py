"""Both orders, the cache that processes share, the budget, answers that cannot be read."""

import math
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time

import pandas as pd
import pytest

from plo.configured import HyperParameterError
from plo.evals.judges import (
    Judge,
    JudgeError,
    JudgeSession,
    Question,
    TransientError,
    Verdict,
    VerdictCache,
    get_judge,
    register_judge,
)
from plo.evals.judges.cache import key_of
from plo.evals.judges.judge import read_spec, spec_text


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
    again.ask([Question("q", "never", "y")], fresh=True)
    assert tries[Question("q", "never", "y")] == 8


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


def test_files_of_the_first_form_are_still_read(tmp_path):
    path, judge, known = tmp_path / "v.db", Scripted(lambda q: None), Question("q", "x", "y")
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE verdicts (key TEXT PRIMARY KEY, judge TEXT NOT NULL, p REAL NOT NULL, answer TEXT NOT NULL, "
            "cost REAL NOT NULL, time TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID"
        )
        row = (key_of(judge, known), "scripted", 0.75, "B", 0.1)
        db.execute("INSERT INTO verdicts (key, judge, p, answer, cost) VALUES (?,?,?,?,?)", row)
    db.close()
    for _ in range(2):
        answers = JudgeSession(judge, cache=path).ask([known, Question("q", "x", "z")])
        assert [(v.p, v.answer) for v in answers] == [(0.75, "B"), (None, "")]
    assert judge.asked == [Question("q", "x", "z")] * 4


def test_a_damaged_verdict_is_asked_again(tmp_path, caplog):
    """One bit of p's mantissa, in the file itself: SQLite reads it without a word."""
    path, judge = tmp_path / "v.db", Scripted(lambda q: 0.8140625)
    questions = [Question("q", "x", "y"), Question("q", "x", "z")]
    JudgeSession(judge, cache=path).ask(questions)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack(">d", 0.8140625))
    content[place + 1] ^= 4
    path.write_bytes(content)
    with sqlite3.connect(path) as db:
        assert sorted(p for (p,) in db.execute("SELECT p FROM verdicts")) != [0.8140625] * 2
    db.close()

    assert [v.p for v in JudgeSession(judge, cache=path).ask(questions)] == [0.8140625] * 2
    assert len(judge.asked) == 3  # the damaged one alone
    [line] = caplog.messages
    assert str(path) in line and "damaged" in line
    assert [v.p for v in JudgeSession(judge, cache=path).ask(questions)] == [0.8140625] * 2 and len(judge.asked) == 3


def test_files_without_checksums_get_them(tmp_path):
    path, judge, known = tmp_path / "v.db", Scripted(lambda q: 0.1), Question("q", "x", "y")
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE verdicts (key TEXT PRIMARY KEY, judge TEXT NOT NULL, p REAL, answer TEXT NOT NULL, "
            "tries INTEGER NOT NULL, time TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID"
        )
        row = (key_of(judge, known), "scripted", 0.75, "B", 1)
        db.execute("INSERT INTO verdicts (key, judge, p, answer, tries) VALUES (?,?,?,?,?)", row)
    db.close()
    for _ in range(2):
        assert [v.p for v in JudgeSession(judge, cache=path).ask([known])] == [0.75]
    assert judge.asked == []


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
    # Of calls 2, 3 and 2 make a verdict: the eighth call would be the second of the third question's three. A question
    # costs 2 x .125 + .25 = .5, and a call may cost .5: it is refused where less than that is left.
    ("budget", "calls", "message"),
    [({"calls": 7}, 7, r"7 calls at a cost"), ({"money": 1.5}, None, r"\d calls at a cost")],
)
def test_a_budget_that_failures_use_up(budget, calls, message, concurrency):
    questions = [Question("q", "x", str(i)) for i in range(3)]
    judge = Flaky(2, retries=8, concurrency=concurrency)
    judging = JudgeSession(judge, **budget)
    with pytest.raises(JudgeError, match=rf"budget of the judge scripted is spent before all was asked: {message}"):
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
        JudgeError, match=r"4 questions.* cost of 2, .*2 calls and 2.5 left. None of them"
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
    with pytest.raises(JudgeError, match="nothing after a colon"):
        JudgeSession("longer:than").judge()


def test_concurrency():
    barrier = threading.Barrier(3, timeout=10)  # breaks where fewer than three are under way at once

    def says(q):
        barrier.wait()
        return 0.1 * int(q.b)

    answers = JudgeSession(Scripted(says, concurrency=3)).ask([Question("q", "x", str(i)) for i in range(9)])
    assert [v.p for v in answers] == [0.1 * i for i in range(9)]


def test_progress(monkeypatch):
    monkeypatch.setattr("plo.evals.judges.judging.EVERY", 0.0)
    questions, told = [Question("q", "x", str(i)) for i in range(2)], []
    JudgeSession(Scripted(lambda q: 0.9), tell=told.append).ask(questions)
    assert told[0] == "scripted: 2 of 2 questions to ask, cost 1" and told[1].startswith("scripted: 1/2, spent 0.")
    assert told[2:] == ["scripted: 2/2, spent 0.5"]
    told.clear()
    JudgeSession(lambda prompt, a, b: 0.9, tell=told.append).ask(questions)
    assert told == ["<lambda>: 2 of 2 questions to ask", "<lambda>: 1/2", "<lambda>: 2/2"]


def test_options_in_the_text():
    @register_judge("longer")
    def longer(prompt, a, b, *, margin: int = 0, note: str = ""):
        return float(len(b) > len(a) + margin)

    for spec in ("longer(margin=3)", {"longer": {"margin": 3}}, " longer (margin = 3) "):
        judge = get_judge(spec)
        assert judge("p", "x", "yyy") == 0.0 and judge("p", "x", "yyyyy") == 1.0 and judge.name == "longer(margin=3)"
        assert JudgeSession(spec).name == "longer"
    assert get_judge("longer(note='a (b=1)')").params["note"] == "a (b=1)"
    with pytest.raises(HyperParameterError, match="no hyper-parameter 'size'"):
        get_judge("longer(size=3)")
    with pytest.raises(JudgeError, match=r"'longer\(3\)' cannot be read: write KIND:NAME\(option=value"):
        get_judge("longer(3)")
    with pytest.raises(JudgeError, match="Cannot make a judge of 3"):
        get_judge(3)


@pytest.mark.parametrize(
    ("spec", "name", "options"),
    [
        ("openai:m@http://h:1/v1", "openai:m@http://h:1/v1", {}),
        ("openai:m@http://h:1/v1(price_in=2.5, logprobs=False)", "openai:m@http://h:1/v1", {"price_in": 2.5, "logprobs": False}),
        ("openai:m(request={'stop': ['(', ')'], 'n': None})", "openai:m", {"request": {"stop": ["(", ")"], "n": None}}),
        ("hf:my model (2)/final(dtype=bfloat16)", "hf:my model (2)/final", {"dtype": "bfloat16"}),
        ({"hf:my model (2)": None}, "hf:my model (2)", {}),
        ({"openai:m": {"price_in": 1}}, "openai:m", {"price_in": 1}),
    ],
)  # fmt: skip
def test_what_a_specification_says(spec, name, options):
    assert read_spec(spec) == (name, options) and JudgeSession(spec).name == name


def test_names_of_what_is_no_text():
    def longer(prompt, a, b):
        return 0.5

    assert JudgeSession(longer).name == "longer" and JudgeSession(Scripted(longer)).name == "scripted"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("opnai:gpt-4o", "no judge 'opnai'.*'openai'"),
        ("openai:gpt-4o(price=2)", "no hyper-parameter 'price'"),
        ("openai:gpt-4o(price_in=cheap)", "price_in='cheap'"),
        ("openai:gpt-4o", "OPENAI_API_KEY"),
        ("gold:joy", "no gold reward 'joy'"),
        ("replay:nowhere.json", "nothing at nowhere.json"),
        ("hf:nowhere(dtyp=float32)", "no hyper-parameter 'dtyp'"),
        ("reward:nowhere(dtype=7)", "dtype=7"),
        ({"gold:sentiment": {}, "hf:embedded": {}}, "not one name"),
    ],
)
def test_check_tells_before_anything_is_loaded(spec, message):
    with pytest.raises(ValueError, match=message):
        JudgeSession(spec).check()


def test_check_loads_no_model_and_calls_nobody(serve):
    server = serve(lambda body: "A")
    for spec in ("hf:nowhere", "reward:nowhere(dtype=float32)", f"openai:m@{server.url}", "gold:sentiment"):
        JudgeSession(spec).check()
    assert not server.asked


def test_check_wants_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(JudgeError, match=r"pip install 'plo\[evals\]'"):
        JudgeSession("openai:m@http://127.0.0.1:1/v1").check()


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "verdicts.db").write_text("no database at all, but a text of some length")
    with pytest.raises(JudgeError, match=r"verdicts\.db cannot be used"):
        VerdictCache(tmp_path / "verdicts.db")


RUN = """
import sys
import pandas as pd
from plo.evals.judges import JudgeSession
url, cache = sys.argv[1:]
frame = pd.DataFrame({"prompt": [f"p{i}" for i in range(50)], "a": "x", "b": "y"})
judging = JudgeSession({f"openai:m@{url}": {"concurrency": 4}}, cache=cache)
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


def test_a_specification_as_the_command_line_takes_it():
    spec = {"openai:m@http://h/v1": {"timeout": 5, "request": {"seed": 1}}}
    text = spec_text(spec)
    assert text.startswith("openai:m@http://h/v1(timeout=5, ") and read_spec(text) == read_spec(spec)
    assert spec_text("hf:embedded") == spec_text({"hf:embedded": {}}) == "hf:embedded"
