"""KL and reward of every evaluation point, recorded for tables that compare rewards at matched KL."""

import pandas as pd

from plo.experiment.cell import Evaluator
from plo.experiment.keys import Cell
from plo.scorers import get_variant


def test_the_points_of_a_cell_are_means_over_a_prompts_samples(tmp_path):
    samples = pd.DataFrame({"prompt_id": [4, 4, 5, 5], "sample": [0, 1] * 2, "kl": [1.0, 3.0, 0.0, 2.0]})
    for step, rewards in ((1, [0.0, 1.0, 0.5, 0.5]), (2, [1.0, 1.0, 0.0, 0.5])):
        samples.assign(reward=rewards).to_parquet(tmp_path / f"samples-{step}.parquet")

    def points(variant):
        return Evaluator(None, Cell(variant, 0, "key"), None, tmp_path, None, None, points={1: 0.5, 2: 1.0}).by_point()

    expected = [(0.5, 4, 2.0, 0.5), (0.5, 5, 1.0, 0.5), (1.0, 4, 2.0, 1.0), (1.0, 5, 1.0, 0.25)]
    assert list(points(get_variant("dpo")).itertuples(index=False, name=None)) == expected
    assert points(None) is None  # the reference is not trained
    samples.to_parquet(tmp_path / "samples-2.parquet")  # without a reward
    assert points(get_variant("dpo")) is None
