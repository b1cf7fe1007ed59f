"""Engine that runs units one after the other in the process that started the comparison."""

from collections.abc import Callable

from plo.experiment.runner import Advance
from plo.experiment.session import Session
from plo.experiment.units import Outcome, Unit


class InProcess:
    """Engine that runs each unit in this process, or in all processes of a launch of several."""

    name = "local"
    several = False

    def __init__(self) -> None:
        self._next: tuple[Unit, Callable[[], Outcome]] | None = None

    def room(self) -> bool:
        """Return whether no unit is in line."""
        return self._next is None

    def submit(self, session: Session, unit: Unit, advance: Advance) -> None:
        """Put a unit in line; it runs when it is collected."""
        self._next = unit, lambda: session.attempt(unit, advance)

    def collect(self, seconds: float) -> list[tuple[Unit, Outcome | None]]:
        """Run the unit that is in line."""
        if self._next is None:
            return []
        (unit, attempt), self._next = self._next, None
        return [(unit, attempt())]

    def close(self, interrupted: bool = False) -> None:
        """Do nothing, as no process was started."""
