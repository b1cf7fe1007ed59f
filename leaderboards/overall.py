"""Of a table's primary metric: where its variance comes from, and ratings of the variants."""

from collections.abc import Mapping, Sequence

import pandas as pd

from plo.leaderboards.sections import Section
from plo.statistics import Ratings, head_to_head, ratings, variance_components

Tables = Mapping[str, pd.DataFrame]  # {row: [prompts, seeds]}


def overall(
    tables: Tables, by_judge: Mapping[str, Tables], notes: list[str]
) -> tuple[pd.Series | None, Ratings | None]:
    """Variance components and ratings, over the prompts and seeds that all rows have.

    None of both with fewer than two rows, or no prompt or seed that all have: then a note says so.

    Args:
        by_judge: the same metric as several judges gave it, where they did: their component is told then too.
    """
    if len(tables) < 2:
        return None, None
    frames = [frame for one in ([tables] if len(by_judge) < 2 else by_judge.values()) for frame in one.values()]
    seeds = [seed for seed in frames[0] if all(seed in frame for frame in frames)]
    prompts = [prompt for prompt in frames[0].index if all(prompt in frame.index for frame in frames)]
    long = _long(tables, prompts, seeds)
    complete = (
        long.dropna().groupby("prompt").size() == len(tables) * len(seeds) if len(long) else pd.Series(dtype=bool)
    )
    if not complete.any():
        notes.append("No prompt and seed is common to all variants: no variance components and no ratings.")
        return None, None
    games = (pd.DataFrame({name: table.loc[prompts, seed] for name, table in tables.items()}) for seed in seeds)
    if len(by_judge) > 1 and all(one.keys() == tables.keys() for one in by_judge.values()):
        long = pd.concat(_long(one, prompts, seeds).assign(judge=judge) for judge, one in by_judge.items())
    return variance_components(long), ratings(head_to_head(games))


def by_judge(primary: str, sections: Sequence[Section], by_item: Mapping[str, Tables]) -> dict[str, Tables]:
    """{judge: tables of the primary metric}, of the sections that differ from the primary metric's in their judge alone."""
    own = next((section for section in sections if primary in section.metrics), None)
    if own is None:
        return {}
    found = {}
    for section in sections:
        name = f"{section.title}.{own.short(primary)}"
        rest, ours = ({k: v for k, v in one.params.items() if k != "judge"} for one in (section, own))
        if section.evaluation == own.evaluation and rest == ours and name in by_item and not section.hidden(name):
            found[section.params.get("judge", "-")] = by_item[name]
    return found


def _long(tables: Tables, prompts: Sequence, seeds: Sequence[str]) -> pd.DataFrame:
    """A row an observation: loss, seed, prompt, value."""
    parts = [
        table.loc[prompts, [seed]].set_axis(["value"], axis=1).assign(loss=name, seed=seed).rename_axis("prompt")
        for name, table in tables.items()
        for seed in seeds
    ]
    return pd.concat(parts).reset_index() if parts else pd.DataFrame({"value": []})
