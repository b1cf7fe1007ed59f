"""Ctrl-C while a judge or a served model hangs: a word first, and at the second one the end."""

import os
import signal
import threading
import time

import pytest

from plo.evals.judges import JudgeSession, Question
from plo.subjects.server import Server


@pytest.fixture
def ctrl_c():
    """Sends SIGINT to this process after so many seconds."""
    before, timers = signal.signal(signal.SIGINT, signal.default_int_handler), []

    def after(*seconds):
        timers.extend(threading.Timer(s, os.kill, (os.getpid(), signal.SIGINT)) for s in seconds)
        for timer in timers:
            timer.start()

    yield after
    for timer in timers:
        timer.cancel()
    signal.signal(signal.SIGINT, before)


def daemons():
    return [thread for thread in threading.enumerate() if thread.name.startswith("plo ")]


def test_calls_under_way_are_waited_for_with_a_word_and_kept(serve, ctrl_c):
    server, told = serve(lambda body: "B", delay=2.5), []
    spec, questions = f"openai:m@{server.url}(concurrency=2)", [Question("p", "x", str(i)) for i in range(20)]
    get = JudgeSession(spec, tell=told.append)
    get.judge()  # the client is imported
    ctrl_c(0.5)
    with pytest.raises(KeyboardInterrupt):
        get.ask(questions)
    assert "waiting for 2 calls in progress (at most 5 s)" in told[-1]
    assert "Ctrl-C stops at once" in told[-1] and "the same command continues from there" in told[-1]
    asked = len(server.asked)
    again = JudgeSession(spec)
    assert asked == 2 and len(again.cache.get(again.judge(), questions)) == 2  # what was paid for is kept


def test_the_second_one_leaves_at_once(serve, ctrl_c):
    server, told = serve(lambda body: "B", delay=30), []
    judging = JudgeSession(f"openai:m@{server.url}", tell=told.append)
    judging.judge()
    ctrl_c(0.3, 2)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judging.ask([Question("p", "x", str(i)) for i in range(20)])
    assert time.monotonic() - start < 10 and "waiting for" in told[-1]
    assert all(thread.daemon for thread in daemons())  # the end of the process does not wait for them


def test_calls_that_hang_are_not_waited_for_long(serve, ctrl_c, monkeypatch):
    monkeypatch.setattr("plo.threads.LAST_SECONDS", 1.0)
    judging = JudgeSession(f"openai:m@{serve(lambda body: 'B', delay=30).url}")
    judging.judge()
    ctrl_c(0.3)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judging.ask([Question("p", "x", str(i)) for i in range(20)])
    assert 1 < time.monotonic() - start < 10


def test_a_call_that_waits_to_be_made_again_is_not(serve, ctrl_c):
    server, told = serve(lambda body: (429, {"error": {"message": "later"}}, [("retry-after", "60")])), []
    judging = JudgeSession(f"openai:m@{server.url}(concurrency=2)", tell=told.append)
    judging.judge()
    ctrl_c(1.5)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judging.ask([Question("p", "x", str(i)) for i in range(4)])
    assert time.monotonic() - start < 10 and len(server.asked) == 2


def test_a_served_model_is_left_alike(serve, ctrl_c, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("PLO_HOME", str(tmp_path))
    subject = Server(f"server:m@{serve(lambda body: 'x', delay=30).url}", 0)
    ctrl_c(0.3, 2)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        subject.sample([[{"role": "user", "content": "p"}]])
    assert time.monotonic() - start < 10 and "stopping after 1 calls that are under way (at most 5 s)" in caplog.text
