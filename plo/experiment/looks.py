"""Seeds that are added to a comparison until its verdicts are settled."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from plo.config import Experiment
from plo.scorers import Variant
from plo.statistics.sequential import sequential
from plo.tracking import RecordedCell, allowed_name

SAMPLES = "samples.json"


def seeds_of(experiment: Experiment, variant: Variant | None, rows: int, look: int) -> tuple[int, ...]:
    """Return the seeds that a variant (None: the reference) has at a look of `look` seeds.

    The baseline is in every difference, so it gets about S sqrt(rows - 1) seeds where the others get S; the reference has
    the seeds of all, as win rates need its samples.
    """
    shared = experiment.seeds[:look]
    count = baseline_seeds(experiment, rows, look)
    is_baseline = variant is None or experiment.baseline in (variant.name, variant.registered_name)
    first = max(experiment.seeds) + 1
    return (*shared, *range(first, first + count - len(shared))) if is_baseline else shared


def baseline_seeds(experiment: Experiment, rows: int, look: int) -> int:
    """Return the number of seeds of the baseline at a look, at least `look`."""
    if experiment.baseline is None:
        return look
    return max(look, experiment.baseline_seeds or round(look * math.sqrt(max(rows - 1, 1))))
