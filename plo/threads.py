"""Work for many threads that can be interrupted: first with a word about what is waited for, then at once."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = 0.5  # seconds that work under way may take to end before a word is said about it


def run_all(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    done: Callable[[Item, Result], None],
    stop: threading.Event,
    awaited: Callable[[int], None],
) -> None:
    """Call `work` for every item in `workers` threads, and `done(item, result)` in this one, as results come in.

    After an error, or Ctrl-C, no further item is begun, and the work under way is waited for, as its results may be paid
    for. Ctrl-C during that wait leaves at once. (The threads of `concurrent.futures` would be joined at the end of the
    process all the same; these are daemons.)

    Args:
        stop: set when no result is wanted any more; `work` may look at it.
        awaited: is given the number of threads that are waited for, if they do not end within half a second.

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
