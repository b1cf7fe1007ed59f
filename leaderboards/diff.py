"""The difference between two leaderboards: what differs in how they were made, and which rows may be compared."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from plo.leaderboards.checks import COMPARABLE, remedy
from plo.leaderboards.circumstances import circumstances
from plo.leaderboards.manifest import ABSENT

Manifest = Mapping[str, Any]


@dataclass(frozen=True)
class RowPair:
    """A row of either leaderboard, or of both.

    Attributes:
        variant: name of the row.
        place: "A", "B" or "both".
        numbers: what its mean in the primary metric of A is in either, as text.
        reasons: why it may not be compared with the rows of the other leaderboard; empty: it may.
    """

    variant: str
    place: str
    numbers: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """The difference between two leaderboards.

    Attributes:
        facts: sentences on packages, hardware, code, settings and judges.
        refusals: for each of data, model and evaluation settings that differ, its key, both values and the remedy.
        rows: the rows of both.
        evaluations: for each evaluation of models in either, whether its numbers may be compared, and why not.
    """

    facts: list[str]
    refusals: list[str]
    rows: list[RowPair]
    evaluations: dict[str, str]


def diff(a: Manifest, b: Manifest) -> Difference:
    """Return what differs between the leaderboards of two manifests.

    Rows may be compared in the metrics of samples if data, model and evaluation settings are equal, and in those of an
    evaluation if its settings are, its judge included. Ranks need one protocol of tuning besides.
    """
    refusals = list(_refusals(a, b))
    return Difference(circumstances(a, b), refusals, list(_rows(a, b, refusals)), _evaluations(a, b))


def to_lines(one: Difference, a: str, b: str) -> list[str]:
    """Return what differs as lines of plain text; `a` and `b` are the names of the two leaderboards."""
    listed = [f"- {fact}" for fact in one.facts] or ["- nothing that is recorded"]
    allowed = "Each row may be compared with each row of the other leaderboard, unless it has a reason after it."
    refused = "No row may be compared with one of the other leaderboard:"
    lines = [f"A is {a}, B is {b}.", "", "What differs in how they were made:", *listed, ""]
    lines += [refused, *(f"- {refusal}" for refusal in one.refusals), ""] if one.refusals else [allowed]
    for row in one.rows:
        lines.append(f"  {row.variant} (in {row.place}; {row.numbers}): {'; '.join(row.reasons) or 'comparable'}")
    if one.evaluations:
        lines += ["", "Evaluations of the trained models:"]
        lines += [f"- {name}: {said}" for name, said in one.evaluations.items()]
    return lines


def _refusals(a: Manifest, b: Manifest) -> Iterator[str]:
    for tag, what in COMPARABLE.items():
        name = tag.removeprefix("plo.")
        before, after = (sorted({cell[name] for cell in m["cells"]}) for m in (a, b))
        if before != after or ABSENT in before:
            yield f"{what} ({tag}): {_short(before)} in A, {_short(after)} in B. {remedy(tag)}"


def _rows(a: Manifest, b: Manifest, refusals: list[str]) -> Iterator[RowPair]:
    ours, theirs = ({row["variant"]: row for row in m["table"]["rows"]} for m in (a, b))
    code = [{cell["variant"]: cell["code"] for cell in m["cells"]} for m in (a, b)]
    metric = a["table"]["primary"]
    shared = tuple(refusal.partition(":")[0] for refusal in refusals)
    digests = [_protocols(m) for m in (a, b)]
    for variant in dict.fromkeys((*ours, *theirs)):
        place = "both" if variant in ours and variant in theirs else "A" if variant in ours else "B"
        means = [rows[variant]["means"].get(metric) for rows in (ours, theirs) if variant in rows]
        numbers = " and ".join("-" if mean is None else f"{float(mean):.4g}" for mean in means)
        reasons = [f"the {what} differ" for what in shared]
        if (
            place == "both"
            and code[0][variant] != code[1][variant]
            and ABSENT not in (code[0][variant], code[1][variant])
        ):
            reasons.append(
                f"two losses of one name: code {code[0][variant]} in A, {code[1][variant]} in B; rename one of them"
            )
        row = (ours if variant in ours else theirs)[variant]
        other = digests[1] if variant in ours else digests[0]
        own = (row["tuning"] or {}).get("digest")
        if own and own not in other:
            reasons.append(
                f"no common rank: tuned by {own}, and the other leaderboard by {', '.join(sorted(other)) or 'nothing'}"
            )
        yield RowPair(variant, place, numbers, tuple(reasons))


def _protocols(manifest: Manifest) -> set[str]:
    return {row["tuning"]["digest"] for row in manifest["table"]["rows"] if row["tuning"]}


def _evaluations(a: Manifest, b: Manifest) -> dict[str, str]:
    """Return, for each evaluation of models, "comparable" or what differs and what to do."""
    ours, theirs = (_settings_of_evaluations(m) for m in (a, b))
    found = {}
    for name in sorted(ours.keys() | theirs.keys()):
        before, after = ours.get(name, {}), theirs.get(name, {})
        if not before or not after:
            there, lacking = ("A", "B") if before else ("B", "A")
            command = "plo head-to-head NAME" if name == "head_to_head" else f"plo eval NAME --suite {name}"
            found[name] = f"only in {there}: run it for {lacking} too, {command}"
        elif before.keys() & after.keys():
            found[name] = "comparable"
        else:
            params = [next(iter(one.values())) for one in (before, after)]
            differing = [
                f"{key} {params[0].get(key, 'default')} in A, {params[1].get(key, 'default')} in B"
                for key in sorted(params[0].keys() | params[1].keys())
                if params[0].get(key) != params[1].get(key)
            ]
            said = "; ".join(differing) or "its code, its judge's version or the content of a file that it reads"
            found[name] = (
                f"not comparable: settings {_short(sorted(before))} in A, {_short(sorted(after))} in B ({said}). Evaluate one of "
                f"both again with the settings of the other: plo eval NAME"
            )
    return found


def _settings_of_evaluations(manifest: Manifest) -> dict[str, dict[str, Mapping[str, str]]]:
    """Return {evaluation: {digest of its settings: its options and judge}}."""
    found: dict[str, dict[str, Mapping[str, str]]] = {}
    for cell in manifest["cells"]:
        for one in cell["evaluations"]:
            found.setdefault(one["evaluation"], {})[one["settings"]] = one["params"]
    return found


def _short(values: list[str]) -> str:
    return ", ".join(value if value == ABSENT else value[:12] for value in values) or "none"
