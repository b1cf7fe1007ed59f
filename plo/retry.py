"""Retry calls that fail for now."""

import threading
from collections.abc import Callable
from typing import TypeVar

from plo.errors import PloError

T = TypeVar("T")
LONGEST = 16.0  # seconds between two calls, unless the server asks for another wait


class RetryStopped(PloError):
    """A call is not retried, because nobody waits for its answer any more."""


def call_with_retries(call: Callable[[], T], *, retries: int, stop: threading.Event) -> T:
    """Return the result of `call`, which is called again, up to `retries` times, after an error whose attribute `later` is true.

    The wait is the error's attribute `wait`, in seconds. If that is None, the wait is random, below 1, 2, 4, ... 16
    seconds, so that calls which failed together are not retried together.

    Args:
        stop: an event after which nothing is called again.

    Raises:
        Exception: the error of the last call.
        RetryStopped: `stop` was set during a wait.
    """
    import tenacity  # takes 50 ms with asyncio, which a command that calls nobody need not spend

    by_chance = tenacity.wait_random_exponential(multiplier=1, max=LONGEST)

    def wait(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        seconds = getattr(error, "wait", None)
        return by_chance(state) if seconds is None else seconds

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise RetryStopped("The call is not retried: its caller has ended.")

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(lambda error: getattr(error, "later", False)),
        stop=tenacity.stop_any(tenacity.stop_after_attempt(retries + 1), tenacity.stop_when_event_set(stop)),
        wait=wait,
        sleep=sleep,
        reraise=True,
    )(call)
