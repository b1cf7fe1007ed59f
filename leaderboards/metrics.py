"""How each metric of a table is shown: as it was recorded, and of earlier runs as plo knew it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from plo.metric import ADJUSTED, ARROWS, BUILT_IN, EARLIER, Metric, matching, usual_bounds
from plo.tracking import RecordedCell


def described(cells: Iterable[RecordedCell], notes: list[str]) -> dict[str, Metric]:
    """{name: what was recorded of the metric}, plo's own first; of runs that disagree the last one counts, and a note says so."""
    found, differing = dict(BUILT_IN), {}
    for cell in cells:
        for name, metric in cell.described.items():
            known = found.get(name)
            if (
                known is not None
                and (known.better, known.bounds) != (metric.better, metric.bounds)
                and (name in differing or name not in BUILT_IN)
            ):
                differing[name] = (
                    f"{name} was recorded with different directions or bounds; those of {cell.name} count."
                )
            found[name] = metric
    notes += differing.values()
    return found


def plain(name: str) -> Metric:
    """A metric of which nothing was recorded."""
    return Metric(name, name.replace("_", " "), table="text")


def of_section(evaluation: str, name: str, recorded: Mapping[str, Metric]) -> Metric:
    """An evaluation's metric: as recorded, or of an earlier run by its name. An adjusted rate is read as the raw one is."""
    raw, label = name.removeprefix(ADJUSTED), name.replace("length_adjusted", "length-adjusted").replace("_", " ")
    if raw in recorded:
        how = recorded[raw]
        return how if raw == name else replace(how, name=name, label=label)
    return Metric(name, label, better=ARROWS[matching(EARLIER, raw)], table=evaluation, bounds=usual_bounds(name))
