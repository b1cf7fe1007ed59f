"""Pseudo-values of a statistic that is no mean of items, so that the tests for means apply to it."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from plo.statistics.intervals import Array, StatisticsError

Positions = npt.NDArray[np.intp]


def pseudo_values(statistic: Callable[[Positions], Array], items: int, *, groups: int = 35, seed: int = 0) -> Array:
    """Return the jackknife pseudo-values of a statistic over groups of items.

        value_g = G theta - (G - 1) theta_(-g)

    theta is the statistic of all items, theta_(-g) that without group g. The mean of the values is the bias-corrected
    statistic and their standard error is the jackknife's. As a table [groups, cells] they go into the tests in place of
    prompts: AlpacaEval's length-controlled rate takes 35 fits, of 805 instructions less 23 each.

    Args:
        statistic: receives the positions of the items to use, increasing, and returns an array of any shape (one number for
            each cell, say).
        items: number of items; they are assigned to groups at random, in sizes that differ by at most 1.
        groups: G.

    Returns:
        [groups, ...].

    Raises:
        StatisticsError: there are fewer than 2 groups, or fewer items than groups.

    Source: Tukey (1958); Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 11.
    """
    if not 2 <= groups <= items:
        raise StatisticsError(f"A jackknife needs 2 to {items} groups of {items} items; {groups} were requested.")
    group = np.random.default_rng(seed).permutation(items) % groups
    everything = np.arange(items)
    whole = np.asarray(statistic(everything), dtype=float)
    without = [np.asarray(statistic(everything[group != g]), dtype=float) for g in range(groups)]
    return groups * whole - (groups - 1) * np.stack(without)
