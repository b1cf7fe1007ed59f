"""Check of losses with a target for their margin: whether training came near it."""

from collections.abc import Mapping, Sequence
from typing import Any

from plo.losses import Loss

NEAR = 0.1  # of the target: below it the slope is within a tenth of that at the start
LAST = 0.1  # share of the steps whose margins are averaged


def short_of_target(loss: Loss, log: Sequence[Mapping[str, Any]], steps: int) -> list[str]:
    """Return a sentence for each term whose mean margin at the end of training is under a tenth of its target.

    Args:
        log: the log of transformers' Trainer, entries such as {"step": ..., "loss/margin": ...}.
        steps: number of steps of the whole training.
    """
    notes = []
    for _, term in loss.terms:
        name = "loss/margin" if len(loss.terms) == 1 else f"{term.name}/margin"
        margins = [entry[name] for entry in log if name in entry and entry["step"] > (1 - LAST) * steps]
        if term.target_margin is None or not margins:
            continue
        mean = sum(margins) / len(margins)
        if mean < NEAR * term.target_margin:
            notes.append(
                f"{term.name} ends at a mean margin of {mean:.3g}, under a tenth of its target of {term.target_margin:.3g}: it pulled "
                f"every pair alike, as a linear loss does. A larger beta brings the target nearer; train.lr and more steps "
                f"bring the margin there."
            )
    return notes
