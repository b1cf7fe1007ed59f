"""Work for many threads that can be interrupted: the first Ctrl-C waits for work under way, the second one does not."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = 0.5  # seconds for work under way to end before `awaited` is called


def run_all(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    done: Callable[[Item, Result], None],
    stop: threading.Event,
    awaited: Callable[[int], None],
) -> None:
    """Call `work` for every item in `workers` threads, and `done(item, result)` in this thread as results arrive.

    After an error or Ctrl-C no further item is begun, and the function waits for the work under way, as its results may
    have cost money. Ctrl-C during that wait returns at once. The threads are daemons; those of `concurrent.futures` would
    be joined at the end of the process all the same.

    Args:
        stop: set when results are no longer needed; `work` may look at it.
        awaited: receives the number of threads still running, if they do not end within half a second.

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
                ended.put((item, None, error))

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
    finally:
        stop.set()
        patient = time.monotonic() + PATIENCE
        started = [thread for thread in threads if thread.ident]
        for thread in started:
            thread.join(max(0.0, patient - time.monotonic()))
        if busy := sum(thread.is_alive() for thread in started):
            awaited(busy)
            for thread in started:
                thread.join()
