"""The file of verdicts: earlier forms, damage, kills, several processes."""

import signal
import sqlite3
import struct
import subprocess
import sys
import time

import pytest
from scripted import Scripted

from plo.evals.judges import (
    JudgeError,
    JudgeSession,
    Question,
    VerdictCache,
)
from plo.evals.judges.cache import key_of


@pytest.mark.parametrize(
    ("p", "last", "value"),
    [("p REAL NOT NULL", "cost REAL", 0.1), ("p REAL", "tries INTEGER", 1)],
    ids=["with costs", "without checksums"],
)
def test_files_of_earlier_versions_are_still_read(p, last, value, tmp_path):
    path, judge, known = tmp_path / "v.db", Scripted(lambda q: None), Question("q", "x", "y")
    with sqlite3.connect(path) as db:
        db.execute(
            f"CREATE TABLE verdicts (key TEXT PRIMARY KEY, judge TEXT NOT NULL, {p}, answer TEXT NOT NULL, {last} NOT NULL, "
            "time TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP) WITHOUT ROWID"
        )
        row = (key_of(judge, known), "scripted", 0.75, "B", value)
        db.execute(f"INSERT INTO verdicts (key, judge, p, answer, {last.split()[0]}) VALUES (?,?,?,?,?)", row)
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
