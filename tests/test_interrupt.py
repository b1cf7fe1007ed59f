"""Ctrl-C, SIGTERM and SIGUSR1: the sentence, what is finished first, and how the process ends."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from plo import interrupt

SCRIPT = """
import concurrent.futures, contextlib, hashlib, sys, time
from plo.interrupt import Interrupted, awaiting, finishing, listening, requested

def hanging(seconds=60):
    print("ready", flush=True)
    time.sleep(seconds)

def wait():
    with concurrent.futures.ThreadPoolExecutor() as pool, awaiting("waiting for 1 call"):
        pool.submit(hanging).result()

def compiled():  # no signal handler of Python's runs in there
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

def step():
    print("ready", flush=True)
    with finishing("waiting for the step"):
        while not requested():
            time.sleep(.01)
        print("step is whole", flush=True)

def command():  # as plo's commands run; a thread that hangs keeps Python from ending
    import threading, typer
    from plo.cli.shared import friendly
    def body():
        threading.Thread(target=time.sleep, args=(1,)).start()
        with friendly():
            hanging()
    typer.run(body)

try:
    sys.argv, what = sys.argv[:1], sys.argv[1]
    with listening() if what != "command" else contextlib.nullcontext():
        globals()[what]()
except Interrupted as error:
    sys.exit(error.exit_code)
"""
CODES = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, interrupt.START_AGAIN)]


@pytest.fixture
def start():
    """Starts a process of the script; when it returns, signals may come."""
    processes = []

    def start(what, **environment):
        command = [sys.executable, "-c", SCRIPT, what]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(process := subprocess.Popen(command, **pipes, env=os.environ | environment))
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        return process

    yield start
    for process in processes:
        process.kill()


def ended(process, within=5):
    """Return standard output, standard error and exit code of an ended process."""
    out, err = process.communicate(timeout=within)
    return out, err, process.returncode


@pytest.mark.parametrize(("number", "code"), CODES)
def test_the_first_signal_lets_the_work_under_way_end(start, number, code):
    process = start("step")
    process.send_signal(number)
    out, err, returned = ended(process)
    assert out == "step is whole\n" and returned == code
    assert err.startswith(f"\nInterrupted ({number.name}): waiting for the step. Start the same command again to go on")


@pytest.mark.parametrize("where", ["wait", "compiled"])
@pytest.mark.parametrize(("number", "code"), CODES[:2])
def test_it_is_answered_at_once_and_the_second_ends_at_once(start, where, number, code):
    """Whatever the main thread does: it waits for a thread that hangs, or is in the midst of compiled code."""
    process = start(where)
    process.send_signal(number)
    assert process.stderr.readline() == "\n"
    expected = {"wait": "waiting for 1 call", "compiled": "the run ends"}[where]
    assert process.stderr.readline().startswith(f"Interrupted ({number.name}): {expected}. ")
    assert process.poll() is None
    started = time.monotonic()
    process.send_signal(number)
    assert ended(process)[2] == code and time.monotonic() - started < 1


def test_sigusr1_may_come_again_and_the_code_says_to_start_again(start):
    """Schedulers send it to a process several times; the one signal that then ends it at once is another one."""
    assert os.EX_TEMPFAIL == interrupt.START_AGAIN == 75
    process = start("compiled")
    for _ in range(3):
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err, code = ended(process)
    assert code == 75 and "To end at once: SIGTERM." in err


@pytest.mark.parametrize(("number", "code"), CODES)
def test_a_command_ends_with_the_code_of_its_signal(start, number, code):
    process = start("command")
    process.send_signal(number)
    if number == signal.SIGUSR1:
        for _ in range(8):  # also while Python waits for its threads
            time.sleep(0.1)
            process.send_signal(number)
    assert ended(process)[2] == code


def test_in_a_launch_one_process_speaks_and_the_launchers_copy_of_a_signal_is_no_second_one(start):
    process = start("wait", WORLD_SIZE="2", RANK="1")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
    assert process.poll() is None
    time.sleep(interrupt.SAME_REQUEST)
    process.send_signal(signal.SIGINT)
    assert ended(process) == ("", "", 130)


def test_a_signal_raises_at_once_but_where_something_is_finished_first():
    steps = []
    with pytest.raises(interrupt.Interrupted) as raised, interrupt.listening():
        with interrupt.finishing("..."):
            with interrupt.finishing("..."):
                os.kill(os.getpid(), signal.SIGTERM)
                steps.append("inner")
            steps.append("outer")
        steps.append("after")
    assert steps == ["inner", "outer"] and raised.value.exit_code == 143
    with pytest.raises(interrupt.Interrupted), interrupt.listening(), interrupt.finishing("..."):
        os.kill(os.getpid(), signal.SIGINT)
        with interrupt.awaiting("..."):
            steps.append("never")
    quiet = interrupt.listening()
    with pytest.raises(interrupt.Interrupted), quiet, interrupt.finishing("..."), interrupt.awaiting("..."):
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("never")
    assert steps == ["inner", "outer"]


def test_afterwards_signals_are_what_they_were():
    handlers = [signal.getsignal(number) for number in interrupt.SIGNALS]
    threads = threading.active_count()
    quiet = interrupt.listening()
    with pytest.raises(interrupt.Interrupted), quiet, interrupt.listening():  # a command within a command
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == handlers
    assert interrupt.requested() is None and threading.active_count() == threads
    interrupt.check()
    with interrupt.awaiting("..."), interrupt.finishing("..."):
        pass
