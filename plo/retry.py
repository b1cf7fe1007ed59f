"""Calls made again where they failed for now."""

import threading
from collections.abc import Callable
from typing import TypeVar

from plo.errors import PloError

T = TypeVar("T")
LONGEST = 16.0  # seconds between two calls, where the server asks for no other wait


class RetryStopped(PloError):
    """A call that is not made again, as nobody waits for its answer any more."""


def call_with_retries(
    call: Callable[[], T],
    *,
    when: Callable[[BaseException], bool],
    retries: int,
    stop: threading.Event | None = None,
) -> T:
    """What `call` returns; after an error for which `when` holds it is called again, up to `retries` times.

    The wait is the error's attribute `wait`, in seconds; where it has none or None, a random one below 1, 2, 4, ... 16
    seconds, so that calls which failed together are not made again together.

    Args:
        stop: once it is set nothing is called again.

    Raises:
        Exception: that of the last call. Stopped: `stop` was set during a wait.
    """
    import tenacity  # with asyncio some 50 ms, which a command that asks nobody need not spend

    stop = stop or threading.Event()
    by_chance = tenacity.wait_random_exponential(multiplier=1, max=LONGEST)

    def wait(state: tenacity.RetryCallState) -> float:
        asked = getattr(state.outcome.exception(), "wait", None)
        return by_chance(state) if asked is None else asked

    def sleep(seconds: float) -> None:
        if stop.wait(seconds):
            raise RetryStopped("The call is not made again: what asked for it has ended.")

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(when),
        stop=tenacity.stop_any(tenacity.stop_after_attempt(retries + 1), tenacity.stop_when_event_set(stop)),
        wait=wait,
        sleep=sleep,
        reraise=True,
    )(call)
