"""Variance components of a table's primary metric."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from plo.leaderboards.sections import Section
from plo.statistics import JudgeNoise, variance_components

NOISE = "judge noise"
Tables = Mapping[str, pd.DataFrame]  # {row: [prompts, seeds]}


def primary_components(
    tables: Tables, others: Mapping[str, Tables], notes: list[str], noise: JudgeNoise | None = None
) -> pd.Series | None:
    """Return the variance components of the primary metric, over the prompts and seeds that all rows have.

    None with fewer than two rows, or where no prompt and seed is common to all, which is then noted.

    Args:
        others: the same metric as other judges gave it, by the titles of their sections. Where they judged every row and
            seed, the components include that of the judge.
        noise: noise of the judge between repeats, which makes a component of its own out of the residual.
    """
    if len(tables) < 2:
        return None
    seeds = [seed for seed in next(iter(tables.values())) if all(seed in table for table in tables.values())]
    long = _long(tables, seeds)
    if long.empty:
        notes.append("No prompt and seed is common to all variants: no variance components.")
        return None
    judged = {"": long}
    for title, other in others.items():
        if other.keys() == tables.keys() and all(set(seeds) <= set(table) for table in other.values()):
            judged[title] = _long(other, seeds)
        else:
            notes.append(f"{title} lacks cells that other judges judged, so it has no part in the variance components.")
    same = set.intersection(*(set(one["prompt"]) for one in judged.values()))
    if len(judged) == 1 or not same:
        return _with_noise(variance_components(long), noise)
    parts = [one[one["prompt"].isin(same)].assign(judge=title) for title, one in judged.items()]
    return variance_components(pd.concat(parts))


def _asked(section: Section) -> set[tuple[str, str]]:
    """Return name and version of a section's judges: those of another section may be the same, asked more often."""
    return {(judge["judge"], judge["version"]) for judge in section.judges}


def _with_noise(found: pd.Series, noise: JudgeNoise | None) -> pd.Series:
    """Return the components with the noise of the judge's mean over its repeats apart from the residual."""
    if noise is None:
        return found
    of_judge = noise.prompt / noise.repeats
    known = np.isfinite(found["residual"])
    result = pd.Series(
        {**found, NOISE: of_judge, "residual": max(found["residual"] - of_judge, 0.0) if known else np.nan}
    )
    result.attrs = found.attrs
    return result


def said_of_components(found: Collection[str]) -> str:
    """Return a sentence or two on what the residual of these variance components is."""
    if "judge" in found:
        return "Text is what all judges share about one text; the residual is their disagreement."
    noise = " Judge noise is that of a mean over the judge's repeats; it is taken out of the residual."
    return f"The residual includes the interaction of seed and prompt.{noise if NOISE in found else ''}"


def by_other_judges(
    primary: str | None, sections: Sequence[Section], by_item: Mapping[str, Tables]
) -> dict[str, Tables]:
    """Return {title: tables} of the primary metric for the sections that differ from its own in their judge alone."""
    own = next((section for section in sections if primary in section.metrics), None)
    found: dict[str, Tables] = {}
    if own is None or primary is None:
        return found
    for section in sections:
        name = f"{section.title}.{own.short_name(primary)}"
        same = section.digest_without_judge == own.digest_without_judge and _asked(section) != _asked(own)
        if same and name in by_item and not section.is_hidden(name):
            found[section.title] = by_item[name]
    return found


def _long(tables: Tables, seeds: Collection[Any]) -> pd.DataFrame:
    """Return one row per observation (loss, seed, prompt, value), for prompts with a value in every table and seed."""
    columns = [(name, seed) for name in tables for seed in seeds]
    if not columns:
        return pd.DataFrame({"prompt": [], "value": []})
    whole = pd.concat([tables[name][seed] for name, seed in columns], axis=1).dropna()
    names, of_seeds = zip(*columns, strict=True)
    long = {"prompt": np.tile(whole.index, len(columns)), "value": whole.to_numpy().ravel("F")}
    return pd.DataFrame(long).assign(loss=np.repeat(names, len(whole)), seed=np.repeat(of_seeds, len(whole)))
