"""Makespan of units of work that depend on each other, done by several workers."""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A unit of work: it can start when all units that it needs are done.

    Attributes:
        needs: names of other units. Those that are not in the list are done.
    """

    name: str
    seconds: float
    needs: tuple[str, ...] = ()


def makespan(units: Iterable[Unit], workers: int = 1, start: float = 0.0) -> float:
    """Return the seconds until all units are done, if each idle worker takes the first unit in the list that can start.

    Args:
        start: seconds before a worker can take its first unit.

    Raises:
        ValueError: units wait for each other in a circle.

    Example:
        >>> makespan([Unit("a", 2), Unit("b", 2), Unit("c", 1, ("a", "b"))], workers=2, start=1)
        4.0
    """
    waiting = list(units)
    names = {unit.name for unit in waiting}
    left = {unit.name: {need for need in unit.needs if need in names} for unit in waiting}
    running: list[tuple[float, str]] = []
    now = float(start) if waiting else 0.0
    while waiting or running:
        idle = workers - len(running)
        ready = [unit for unit in waiting if not left[unit.name]][:idle]
        for unit in ready:
            heapq.heappush(running, (now + unit.seconds, unit.name))
        taken = {unit.name for unit in ready}
        waiting = [unit for unit in waiting if unit.name not in taken]
        assert running, f"units wait for each other: {', '.join(unit.name for unit in waiting)}"
        now, done = heapq.heappop(running)
        for needs in left.values():
            needs.discard(done)
    return now
