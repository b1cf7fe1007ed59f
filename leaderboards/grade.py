"""The grade of a reproduction: how far a comparison that was run again agrees with its manifest, stage by stage."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from plo.leaderboards.circumstances import circumstances, code, settings
from plo.leaderboards.digests import split
from plo.leaderboards.manifest import ABSENT
from plo.statistics import Rerun, rerun

Word = Literal["identical", "same within seed noise", "differs"]
Manifest = Mapping[str, Any]
Cells = Mapping[tuple[str, str], Mapping[str, Any]]  # by variant and seed
SHOWN = 6  # cells or metrics that a sentence names


@dataclass(frozen=True)
class Grade:
    """How a comparison agrees with the manifest that it was run again from.

    Attributes:
        facts: sentences on packages, code, hardware and settings that differ; they explain, and decide nothing.
        stages: {stage: sentence on what differs in it}, in the order of the work: the first one is where to look.
        metric: metric that the equivalence is about.
        rows: {row: what it did in that metric}, where cells of all rows are there.
        redefined: whether code of losses or settings differ, so that it is another experiment unless all numbers are equal.
    """

    facts: list[str]
    stages: dict[str, str]
    metric: str | None = None
    rows: dict[str, Rerun] = field(default_factory=dict)
    redefined: bool = False

    @property
    def word(self) -> Word:
        """The grade in words."""
        if not self.stages:
            return "identical"
        alike = bool(self.rows) and all(row.within_noise for row in self.rows.values())
        other = self.redefined or not self.stages.keys().isdisjoint(DECISIVE)
        return "same within seed noise" if alike and not other else "differs"

    @property
    def sentence(self) -> str:
        """A sentence on what decided the grade: the first stage that differs, or that all numbers are equal."""
        if not self.stages:
            return f"every recorded number and every sample is equal{' although circumstances differ' if self.facts else ''}."
        first = next(iter(self.stages))
        where = f"The first stage that differs is {first}: {self.stages[first]}"
        if self.word == "differs":
            return where if first == "cells" or "cells" not in self.stages else f"{self.stages['cells']} {where}"
        return f"each row moved in {self.metric} by less than other seeds would have moved it. {where}"


def grade(recorded: Manifest, again: Manifest) -> Grade:
    """Return how far a comparison that was run again agrees with its manifest.

    It is "identical" if every recorded number and digest is equal. It is "same within seed noise" if data, tokens, settings and
    code are, and every row moved in the primary metric by less than other seeds would have moved it (`plo.statistics.rerun`).
    Otherwise it "differs".
    """
    before, after = _cells(recorded), _cells(again)
    stages = {
        name: " ".join(found)
        for name, look in STAGES.items()
        if (found := list(look((recorded, before), (again, after))))
    }
    metric = recorded["table"]["primary"] or next(iter(recorded["table"]["metrics"]), None)
    rows = {}
    if metric and before.keys() <= after.keys():
        rows = rerun(*(_values(cells, metric) for cells in (before, after)))
    redefined = any(True for look in (code, settings) for _ in look(recorded, again))
    return Grade(circumstances(recorded, again), stages, metric, rows, redefined)


def _cells(manifest: Manifest) -> Cells:
    return {(cell["variant"], cell["seed"]): cell for cell in manifest["cells"]}


def _values(cells: Cells, metric: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for (variant, seed), cell in cells.items():
        if cell["loss"] != "reference" and metric in cell["metrics"]:
            found.setdefault(variant, {})[seed] = float(cell["metrics"][metric])
    return found


Both = tuple[Manifest, Cells]


def _facts_of_data(manifest: Manifest, *names: str) -> set[str]:
    """Return the recorded digests of an aspect of the data; empty if they were not recorded."""
    of_runs = [made["data"] for made in manifest["made_with"].values() if isinstance(made["data"], Mapping)]
    return {" ".join(str(data.get(name)) for name in names) for data in of_runs}


def _data(old: Both, new: Both) -> Iterator[str]:
    before, after = (_facts_of_data(one[0], "rows") for one in (old, new))
    if before and after:
        if before != after:
            yield f"The rows have the digest {_short(after)} instead of {_short(before)}."
        return
    before, after = ({cell["data"] for cell in one[1].values()} for one in (old, new))
    if before != after:
        yield f"Rows or tokens have the digest {_short(after)} instead of {_short(before)}."


def _tokens(old: Both, new: Both) -> Iterator[str]:
    before, after = (_facts_of_data(one[0], "template", "tokens") for one in (old, new))
    if before and after and before != after:
        yield "The same rows give other token ids: the tokenizer, its chat template or data.max_length differ."


def _reference(old: Both, new: Both) -> Iterator[str]:
    before, after = ({cell["model"] for cell in one[1].values()} for one in (old, new))
    if before != after:
        yield f"The model has the digest {_short(after)} instead of {_short(before)}: its weights, dtype or device differ."
    yield from _unequal(old, new, "The reference's samples or numbers differ", _of_reference, reference=True)


def _of_reference(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    return all(a[name] == b[name] for name in ("metrics", "evaluations")) and _same_samples(a, b, "texts", "numbers")


def _stage_models(old: Both, new: Both) -> Iterator[str]:
    before, after = ([stage for stage in one[0]["stages"]] for one in (old, new))
    for a, b in zip(before, after, strict=False):
        if a["key"] != b["key"]:
            yield f"The stage {a['name']} has another key: its settings, code or start differ."
        elif a["curve"]["steps"] and b["curve"]["steps"] and (step := _first_step(a["curve"], b["curve"])) is not None:
            yield f"The training of the stage {a['name']} differs from step {step} on."
    if len(before) != len(after):
        yield f"There are {len(after)} stages instead of {len(before)}."


def _tuning(old: Both, new: Both) -> Iterator[str]:
    rows = {row["variant"]: row["tuning"] for row in new[0]["table"]["rows"]}
    for row in old[0]["table"]["rows"]:
        if row["tuning"] and row["variant"] not in rows:
            others = [name for name in rows if name.partition(" @ ")[0] == row["variant"].partition(" @ ")[0]]
            yield f"Tuning chose {', '.join(others) or 'other settings'} instead of {row['variant']}."
        elif row["tuning"] and row["tuning"] != rows[row["variant"]]:
            yield f"The trials of {row['variant']} scored otherwise."


def _missing(old: Both, new: Both) -> Iterator[str]:
    if lacking := [_name(key) for key in old[1] if key not in new[1]]:
        yield f"Not finished: {_listed(lacking)}."
    if more := [_name(key) for key in new[1] if key not in old[1]]:
        yield f"Not in the manifest: {_listed(more)}."


def _training(old: Both, new: Both) -> Iterator[str]:
    firsts = {}
    for key, (a, b) in _pairs(old, new):
        if (step := _first_step(a["curve"], b["curve"])) is not None:
            firsts[key] = step
    if firsts:
        least = min(firsts, key=lambda key: firsts[key])
        yield (
            f"The training of {_name(least)} differs from step {firsts[least]} on; {len(firsts)} of "
            f"{len(old[1])} cells differ: {_listed([_name(key) for key in firsts])}."
        )


def _samples(old: Both, new: Both) -> Iterator[str]:
    differing, count, total = [], 0, 0
    for key, (a, b) in _pairs(old, new):
        if not _same_samples(a, b, "texts"):
            differing.append(_name(key))
            if isinstance(a["samples"], Mapping) and isinstance(b["samples"], Mapping) and "each" in a["samples"]:
                ours, theirs = split(a["samples"]["each"]), split(b["samples"].get("each", ""))
                count += sum(one != other for one, other in zip(ours, theirs, strict=False))
                total += len(ours)
    if differing:
        of = f" ({count} of their {total} samples)" if total else ""
        yield f"The samples of {len(differing)} cells differ{of}: {_listed(differing)}."


def _evaluations(old: Both, new: Both) -> Iterator[str]:
    def same(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
        numbers = all(a[name] == b[name] for name in ("points", "metrics", "evaluations"))
        return numbers and _same_samples(a, b, "numbers")

    yield from _unequal(old, new, "Numbers of evaluations differ", same)


def _statistics(old: Both, new: Both) -> Iterator[str]:
    rows = {row["variant"]: row for row in new[0]["table"]["rows"]}
    pairs = [(row, rows[row["variant"]]) for row in old[0]["table"]["rows"] if row["variant"] in rows]
    turned = [f"{a['variant']} {a['verdict']} -> {b['verdict']}" for a, b in pairs if a["verdict"] != b["verdict"]]
    if turned:
        yield f"Verdicts changed: {_listed(turned)}."
    others = [a["variant"] for a, b in pairs if any(a[name] != b[name] for name in ("means", "difference", "rank"))]
    if others:
        yield f"Means, differences or ranks differ: {_listed(others)}."


Look = Callable[[Both, Both], Iterator[str]]
STAGES: dict[str, Look] = {  # in the order of the work
    "data": _data,
    "tokens": _tokens,
    "reference": _reference,
    "stage model": _stage_models,
    "tuning": _tuning,
    "cells": _missing,
    "training": _training,
    "samples": _samples,
    "evaluations": _evaluations,
    "statistics": _statistics,
}
DECISIVE = ("data", "tokens", "cells")  # stages that seeds do not change: a difference in them is none of seed noise


def _pairs(old: Both, new: Both, *, reference: bool = False) -> Iterator[tuple[tuple[str, str], tuple[Any, Any]]]:
    for key, cell in old[1].items():
        if key in new[1] and (cell["loss"] == "reference") == reference:
            yield key, (cell, new[1][key])


def _unequal(
    old: Both, new: Both, what: str, same: Callable[[Any, Any], bool], *, reference: bool = False
) -> Iterator[str]:
    if differing := [_name(key) for key, pair in _pairs(old, new, reference=reference) if not same(*pair)]:
        yield f"{what}: {_listed(differing)}."


def _same_samples(a: Mapping[str, Any], b: Mapping[str, Any], *names: str) -> bool:
    ours, theirs = a["samples"], b["samples"]
    if ABSENT in (ours, theirs):
        return bool(ours == theirs)
    return all(ours[name] == theirs[name] for name in names)


def _first_step(a: Mapping[str, Any], b: Mapping[str, Any]) -> int | None:
    """Return the first step at which two trainings differ; None if they are equal."""
    ours, theirs = (dict(zip(one["steps"], split(one["each"]), strict=True)) for one in (a, b))
    return next((step for step in sorted(ours | theirs) if ours.get(step) != theirs.get(step)), None)


def _name(key: tuple[str, str]) -> str:
    return f"{key[0]} seed {key[1]}"


def _short(digests: set[str]) -> str:
    return ", ".join(sorted(one[:12] for one in digests))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
