"""Work for many threads that can be interrupted: the first Ctrl-C waits a moment for work under way, the second one does not."""

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = 0.5  # seconds for work under way to end before `awaited` is called
LAST_SECONDS = 5.0  # after Ctrl-C, in which the results of work under way are still waited for


def run_all(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    done: Callable[[Item, Result], None],
    stop: threading.Event,
    awaited: Callable[[int, float], None],
) -> None:
    """Call `work` for every item in `workers` threads, and `done(item, result)` in this thread as results arrive.

    After an error or Ctrl-C no further item is begun, and the function waits for the work under way, as its results may
    have cost money: after an error until the end, after Ctrl-C for a few seconds. Ctrl-C during that wait returns at once.
    The threads are daemons; those of `concurrent.futures` would be joined at the end of the process all the same.

    Args:
        stop: set when results are no longer needed; `work` may look at it.
        awaited: receives the number of threads still running, if they do not end within half a second, and the maximum
            number of seconds for which they are waited for.

    Raises:
        Exception: the first one that `work` or `done` raised.
    """
    todo = deque(items)
    waiting, ended = len(todo), queue.SimpleQueue()

    def labour() -> None:
        while not stop.is_set():
            try:
                item = todo.popleft()
            except IndexError:
                return
            try:
                ended.put((item, work(item), None))
            except BaseException as error:
                ended.put((item, None, error))  # first, so that it is raised, and not what `stop` leads to elsewhere
                stop.set()

    longest = math.inf
    threads = [threading.Thread(target=labour, daemon=True, name=f"plo {n}") for n in range(min(workers, waiting))]
    try:
        for thread in threads:
            thread.start()
        while waiting:
            item, result, error = ended.get()
            if error is not None:
                raise error
            done(item, result)
            waiting -= 1
    except KeyboardInterrupt:
        longest = LAST_SECONDS
        raise
    finally:
        stop.set()
        started = [thread for thread in threads if thread.ident]
        if busy := _join(started, PATIENCE):
            awaited(busy, longest)
            _join(started, longest)


def _join(threads: Iterable[threading.Thread], seconds: float) -> int:
    """Wait up to some seconds for threads to end, and return how many still run."""
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(None if seconds == math.inf else max(0.0, until - time.monotonic()))
    return sum(thread.is_alive() for thread in threads)
