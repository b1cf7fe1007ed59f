"""Read what comparisons declared before they were run, so that nothing about a verdict is chosen after its numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from plo.tracking import Comparison


@dataclass(frozen=True)
class Protocol:
    """Declarations of an experiment on which verdicts depend. None or empty: it declares nothing.

    Attributes:
        primary: metric that verdicts and ranks are about.
        margin: difference of the primary metric below which two variants count as equivalent.
        baseline: variant or loss that the others are compared with.
        baseline_seeds: number of seeds of the baseline.
        looks: numbers of seeds at which verdicts are reached.
        seeds: seeds in the order in which they are run.
    """

    primary: str | None = None
    margin: float | None = None
    baseline: str | None = None
    baseline_seeds: int | None = None
    looks: tuple[int, ...] = ()
    seeds: tuple[str, ...] = ()


def read_protocol(comparisons: Sequence[Comparison], notes: list[str]) -> Protocol:
    """Return what all comparisons of a table declare; where they differ nothing counts, which is noted."""
    configs = [one.config() for one in comparisons]
    found: dict[str, Any] = {}
    for name in ("primary", "margin", "baseline", "baseline_seeds", "looks"):
        values = list({str(config.get(name)): config.get(name) for config in configs}.values())
        if len(values) == 1:
            found[name] = values[0]
        else:
            said = ", ".join("none" if value is None else str(value) for value in values)
            given = f"give --{name}, or" if name in ("primary", "margin", "baseline") else "to use one,"
            notes.append(
                f"The comparisons declare different settings of {name} ({said}), so none of them counts: {given} choose one "
                f"comparison, plo leaderboard NAME."
            )
    seeds = dict.fromkeys(str(seed) for config in configs for seed in config.get("seeds") or ())
    return Protocol(**{**found, "looks": tuple(found.get("looks") or ()), "seeds": tuple(seeds)})
