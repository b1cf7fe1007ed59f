"""Ctrl-C, SIGTERM and SIGUSR1: the first signal logs a sentence at once and ends the run in order, the second ends it at once.

    with listening():                                     # the commands do this
        with awaiting("waiting for 3 calls to the judge"):
            ...                                           # a signal raises `Interrupted` here
        with finishing("waiting for the step under way"):
            while not requested():                        # a signal does not raise here: look for it
                ...
        # a signal that came meanwhile raises here

Outside `listening` these functions do nothing, and Ctrl-C raises Python's `KeyboardInterrupt`.

SIGUSR1 asks a process to stop and to be started again, which Slurm sends before the time of a job is over (`--signal=USR1@90`). The exit
code then is `START_AGAIN`. Schedulers send it to a process several times, so a second SIGUSR1 ends nothing.
"""

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

log = logging.getLogger("plo")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
START_AGAIN = 75  # exit code after SIGUSR1, EX_TEMPFAIL of sysexits.h: the same command is to be started again
SAME_REQUEST = 3.0  # seconds in which a second signal is the launcher's copy of the Ctrl-C that the terminal sent

Awaited = str | Callable[[], str]


class Interrupted(KeyboardInterrupt):
    """Raised in the main thread after one of `SIGNALS`. No `except Exception` catches it."""

    def __init__(self, number: int):
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = exit_code(number)


class _Wait(NamedTuple):
    what: Awaited
    raises: bool  # whether a signal raises at once


_waits = [_Wait("the run ends", raises=True)]
_at_signal: _Wait | None = None  # the innermost wait at the time of the signal
_received: int | None = None  # the first signal
_listening = False


@contextmanager
def listening(*, quiet: bool = False) -> Iterator[None]:
    """Handle `SIGNALS` in the block. Inside another `listening`, or in another thread, this does nothing.

    Args:
        quiet: log no sentence at a signal, in a process whose parent logs one.
    """
    global _received, _listening, _at_signal
    if _listening or threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    _listening, _received, _at_signal = True, None, None
    watch = threading.Thread(
        target=_answer, args=(ours, quiet), daemon=True
    )  # it logs even while the main thread is busy
    watch.start()
    descriptor = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _raise) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(descriptor)
        theirs.close()  # ends the thread
        watch.join(timeout=1)
        ours.close()
        _listening, _received = False, None


@contextmanager
def awaiting(what: Awaited) -> Iterator[None]:
    """Let a signal raise `Interrupted` at once in the block; `what` says in words what the process waits for."""
    check()
    with _waiting(what, raises=True):
        yield


@contextmanager
def finishing(what: Awaited) -> Iterator[None]:
    """Let something be finished before a signal raises: in the block it is only noted (see `requested`), after it it raises."""
    with _waiting(what, raises=False):
        yield
    if _waits[-1].raises:
        check()


def requested() -> int | None:
    """Return the signal that asked the process to end, or None."""
    return _received


def request(number: int) -> None:
    """Note a signal that another process of the launch received, as if it had come to this one."""
    global _received
    _received = _received or number


def exit_code(number: int) -> int:
    """Return the exit code of a process that a signal ended: `START_AGAIN` for SIGUSR1, else what a shell reports, 128 + `number`."""
    return START_AGAIN if number == signal.SIGUSR1 else 128 + number


def check() -> None:
    """Raise `Interrupted` if the process was asked to end. Call it where a library may have swallowed the exception."""
    if _received is not None:
        raise Interrupted(_received)


@contextmanager
def _waiting(what: Awaited, raises: bool) -> Iterator[None]:
    _waits.append(_Wait(what, raises))
    try:
        yield
    finally:
        _waits.pop()


def _raise(number: int, frame: object) -> None:
    """Handle a signal. Python calls this in the main thread, between two of its own operations."""
    global _received, _at_signal
    if _received is not None:
        return
    _received, _at_signal = number, _waits[-1]
    if _at_signal.raises:
        raise Interrupted(number)


def _answer(signals: socket.socket, quiet: bool) -> None:
    """Log a sentence at the first signal, and end the process at the second; this runs in a thread of its own."""
    first, since = None, 0.0
    while numbers := signals.recv(1):
        if (number := numbers[0]) not in SIGNALS:
            continue
        if first is None:
            first, since = number, time.monotonic()
            if not quiet and int(os.environ.get("RANK", "0")) == 0:  # one process logs it
                log.warning(sentence(number))
        elif number == signal.SIGUSR1:
            continue
        elif int(os.environ.get("WORLD_SIZE", "1")) == 1 or time.monotonic() - since > SAME_REQUEST:
            os._exit(exit_code(first))


def sentence(number: int) -> str:
    """Write the sentence that the user reads after the first signal."""
    what = (_at_signal or _waits[-1]).what
    again = {signal.SIGINT: "Ctrl-C again", signal.SIGUSR1: "SIGTERM"}.get(signal.Signals(number), "a second signal")
    return (
        f"\nInterrupted ({signal.Signals(number).name}): {what() if callable(what) else what}. Start the same command again to go on: what is finished "
        f"is kept. To end at once: {again}."
    )
