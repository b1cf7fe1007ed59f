"""Units of work of a comparison, which any process can do: cells, trials, stages and evaluations of trained models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from plo.faults import disk_fault
from plo.tracking import ServerAway

Kind = Literal["stages", "trial", "cell", "evaluations"]
State = Literal["done", "failed", "held"]


@dataclass(frozen=True)
class Unit:
    """A piece of a comparison that one process does.

    Attributes:
        kind: "cell" (a variant with a seed), "trial" (a cell that serves tuning), "stages" (trainings and token weights
            that cells need first) or "evaluations" (those of a trained cell's model).
        key: hash of everything that defines its numbers; of evaluations, that of their cell with a prefix.
        name: name in logs, such as "dpo seed 0".
        variant: name of the variant as the experiment has it; "" is the reference.
        point: settings that tuning changes, by their names.
        seed: seed of the cell.
        needs: keys of units that must be finished before.
        tuning: record of the variant's tuning, which is recorded with its cells.
    """

    kind: Kind
    key: str
    name: str
    variant: str
    seed: int
    point: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    tuning: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the unit as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Unit":
        """Return the unit that `to_dict` wrote."""
        return cls(**{**values, "needs": tuple(values["needs"])})


@dataclass(frozen=True)
class Outcome:
    """End of an attempt at a unit of a comparison: finished, failed, or held by another process.

    Attributes:
        state: "held" if another process is doing the unit.
        reason: error of a failed unit; holder of a held one.
        fatal: whether all other units would fail too, as on a full disk.
        failures: errors by name where a unit consists of several things, as evaluations do; empty is one error, `reason`.
    """

    state: State
    reason: str = ""
    fatal: bool = False
    failures: Mapping[str, str] = field(default_factory=dict)


def fatal_fault(error: BaseException) -> str | None:
    """Return a sentence if an error would make all other units fail too: a full disk, or a store that stays away."""
    return str(error) if isinstance(error, ServerAway) else disk_fault(error)


class Schedule:
    """Units in the order in which they may run: each after those it needs.

    Args:
        units: in the order in which they are wanted.
        finished: keys of units that are finished already.
    """

    def __init__(self, units: Sequence[Unit], finished: Sequence[str] = ()):
        self.left = {unit.key: unit for unit in units if unit.key not in set(finished)}
        self.failed: dict[str, str] = {}  # {name: error}
        self._running: set[str] = set()
        self._lost: dict[str, str] = {}  # {key of a failed unit: its name}
        self._held: dict[str, str] = {}

    @property
    def held(self) -> list[str]:
        """Units that other processes are doing, with these processes."""
        return [f"{self.left[key].name} ({by})" for key, by in self._held.items() if key in self.left]

    def ready(self) -> list[Unit]:
        """Return the units that can run now. Those that need a failed one are counted as failed."""
        for unit in [*self.left.values()]:
            if lost := next((self._lost[need] for need in unit.needs if need in self._lost), None):
                self.end(unit, Outcome("failed", f"it needs {lost}, which failed"))
        return [
            unit
            for key, unit in self.left.items()
            if key not in self._running and key not in self._held and not any(need in self.left for need in unit.needs)
        ]

    def begin(self, unit: Unit) -> None:
        """Count a unit as running."""
        self._running.add(unit.key)

    def end(self, unit: Unit, outcome: Outcome) -> None:
        """Count a unit as finished, failed, or held by another process: then it is tried again after `retry`."""
        self._running.discard(unit.key)
        if outcome.state == "held":
            self._held[unit.key] = outcome.reason
            return
        self.left.pop(unit.key, None)
        if outcome.state == "failed":
            self.failed |= outcome.failures or {unit.name: outcome.reason}
            self._lost[unit.key] = unit.name

    def again(self, unit: Unit) -> None:
        """Let a unit run once more whose process was lost."""
        self._running.discard(unit.key)

    def retry(self, is_free: Callable[[Unit], bool]) -> None:
        """Let those units be tried again that other processes had, and of which `is_free` is true now."""
        self._held = {key: by for key, by in self._held.items() if key in self.left and not is_free(self.left[key])}
