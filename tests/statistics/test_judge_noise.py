"""The noise of a judge: its components by hand, and intervals that contain it."""

import math

import numpy as np
import pandas as pd
import pytest

from plo.statistics import RunNoise, compare, estimate, judge_noise


def test_the_components_by_hand():
    # Two prompts, two repeats. Means 1 and 2 of the repeats, 1 and 2 of the prompts; the rest is +-0.5 in each place.
    # MS_pk = 4 x .25 / 1 = 1, MS_k = 2 x .5 = 1: prompt 1, run (1 - 1) / 2 = 0.
    found = judge_noise([np.array([[1.0, 1.0], [1.0, 3.0]])])
    assert (found.repeats, found.cells, found.prompt, found.run) == (2, 1, pytest.approx(1.0), pytest.approx(0.0))
    # A shift of every prompt alike is a run alone: means 1 and 3, so MS_k / P = 2.
    shifted = judge_noise([np.array([[0.0, 2.0], [2.0, 4.0]])])
    assert (shifted.prompt, shifted.run) == (pytest.approx(0.0), pytest.approx(2.0))
    assert shifted.of_mean == RunNoise(1.0, 1) and shifted.sd_of_mean(2, 4) == pytest.approx(math.sqrt(2 / 4))
    both = judge_noise([np.array([[1.0, 1.0], [1.0, 3.0], [9.0, np.nan]]), np.array([[0.0, 2.0], [2.0, 4.0]])])
    assert (both.cells, both.prompt, both.run) == (2, pytest.approx(0.5), pytest.approx(1.0))
    assert judge_noise([np.ones((5, 1)), np.ones((1, 5))]) is None


def test_one_seed_gets_the_noise_of_a_run_by_hand():
    table = pd.DataFrame({0: [0.0, 1.0, 2.0, 3.0]})
    plain, noise = estimate(table), RunNoise(0.25, 6)
    one = estimate(table, noise=noise)
    assert one.se == pytest.approx(math.sqrt(plain.se**2 + 0.25)) and one.share == pytest.approx(0.25 / one.se**2)
    assert one.high - one.low > plain.high - plain.low and one.seeds == 1
    better = pd.DataFrame({0: [1.0, 1.0, 4.0, 4.0]})
    gap = compare({"a": better, "b": table}, "b", noise=noise)["a"]
    alone = compare({"a": better, "b": table}, "b")["a"]
    assert gap.se == pytest.approx(math.sqrt(alone.se**2 + 2 * 0.25)) and gap.degrees == 6 and math.isnan(alone.degrees)
    two = pd.DataFrame({0: [0.0, 1.0, 2.0], 1: [1.0, 1.0, 3.0]})
    assert estimate(two, noise=noise) == estimate(two)  # the spread of the seeds has it already


@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_contain_the_noise_of_the_judge(seeds):
    """Tables of 3 losses whose judge shifts whole cells: without its noise the interval of one seed covers far less."""
    rng, prompts, repeats, covered, without = np.random.default_rng(0), 60, 3, [], []
    for _ in range(300):
        shape = (3, prompts, seeds, repeats)
        texts = rng.normal(0, 0.3, (3, prompts, seeds, 1))
        y = texts + rng.normal(0, 0.06, (3, 1, seeds, repeats)) + rng.normal(0, 0.3, shape)
        noise = judge_noise([cell for loss in y for cell in loss.transpose(1, 0, 2)]).of_mean
        for loss in y.mean(-1):
            table = pd.DataFrame(loss)
            for found, kind in ((estimate(table, noise=noise), covered), (estimate(table), without)):
                kind.append(found.low <= 0 <= found.high)
    assert np.mean(covered) > 0.93
    assert (np.mean(without) < 0.9) == (seeds == 1)
