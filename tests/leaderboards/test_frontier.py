"""Reward against KL, worked out by hand on fabricated cells."""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pytest

from plo.leaderboards import LeaderboardError
from plo.leaderboards.build import build
from plo.leaderboards.frontier import at_matched_kl, frontier, points, to_markdown
from plo.leaderboards.frontier_plot import plot
from plo.tracking import RecordedCell

SHARED = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation"}
# (variant, beta, seed): [(KL, reward) half-way, at the end]
RUNS = {
    ("dpo", "0.1", 0): [(1.0, 0.25), (4.0, 0.5)],  # seed means: (2, .375), (4, .625)
    ("dpo", "0.1", 1): [(3.0, 0.5), (4.0, 0.75)],
    ("dpo(beta=0.3)", "0.3", 0): [(1.0, 0.375), (5.0, 0.625)],  # the first dominates (2, .375), the last is dominated
    ("dpo(beta=0.3)", "0.3", 1): [(1.0, 0.375), (5.0, 0.625)],
    ("sft", "-", 0): [(2.0, 0.1), (0.5, 0.9)],
    ("bpo(beta=0.5, generator=sba)", "0.5", 0): [(2.0, 0.4), (3.0, 0.5)],
    ("bpo(generator=sba)", "0.1", 0): [(2.0, 0.4), (3.0, 0.4)],  # twice the same point: neither dominates the other
    ("bpo", "0.1", 0): [(2.0, 0.0), (3.0, 0.1)],
}


@dataclass(frozen=True)
class Recorded(RecordedCell):
    """A cell whose history and samples are given, so that no store need be made."""

    given: dict[str, dict[int, float]] = field(default_factory=dict)

    def history(self, metric):
        return self.given.get(metric, {})

    def has_table(self, name):
        return self.tags["plo.variant"] != "reference"

    def table(self, name):
        # Four prompts with two samples each; means .4, .5, .5, .6
        rewards = [0.3, 0.5, 0.5, 0.5, 0.4, 0.6, 0.6, 0.6]
        frame = pd.DataFrame({"prompt_id": np.repeat(range(4), 2), "reward": rewards})
        return frame.assign(sample=[0, 1] * 4, prompt="p", text="t")


def record(comparison, runs, **tags):
    def cell(variant, seed, beta, given):
        own = {"plo.loss": variant.split("(")[0], "plo.variant": variant, "plo.seed": str(seed)} | SHARED | tags
        params = {} if beta is None else {"beta": beta, "lr": "1"}
        name = f"{variant} seed {seed}"
        return Recorded(
            f"{name} {comparison} {beta}",
            name,
            comparison,
            f"key-{comparison}",
            "FINISHED",
            own,
            params,
            {metric: [*by_step.values()][-1] for metric, by_step in given.items()},
            None,
            given=given,
        )

    cells = [cell("reference", 0, None, {"reward": {0: 0.05}, "kl": {0: 0.0}, "kl_se": {0: 0.0}})]
    for (variant, beta, seed), found in runs.items():
        steps = dict(zip((30, 60), found, strict=True))
        given = {"kl": {step: kl for step, (kl, _) in steps.items()}, "kl_se": dict.fromkeys(steps, 0.1 * (1 + seed))}
        cells.append(
            cell(variant, seed, beta, given | {"reward": {step: reward for step, (_, reward) in steps.items()}})
        )
    return cells


@pytest.fixture(scope="module")
def cells():
    return record("main", RUNS)


@pytest.fixture(scope="module")
def frame(cells):
    return frontier(build(cells))


def of(frame, **wanted):
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    return frame


def test_points_are_what_was_recorded(cells):
    found = points(build(cells))
    assert len(found) == 2 * len(RUNS) + 1
    for (variant, beta, seed), recorded in RUNS.items():
        own = of(found, variant=variant, seed=str(seed))
        assert list(zip(own["kl"], own["reward"], strict=True)) == recorded and own["share"].tolist() == [0.5, 1.0]
        assert set(own["beta"]) == {float(beta)} if beta != "-" else own["beta"].isna().all()
    assert of(found, variant="reference")["share"].tolist() == [0.0]


def test_the_frontier_by_hand(frame):
    dpo = of(frame, loss="dpo")
    assert set(dpo["seeds"]) == {2}
    found = {(row.kl, row.reward): row.on_frontier for row in dpo.itertuples()}
    assert found == {(1.0, 0.375): True, (2.0, 0.375): False, (4.0, 0.625): True, (5.0, 0.625): False}
    assert of(frame, loss="sft")["on_frontier"].tolist() == [False, True]  # losses do not dominate each other
    assert set(frame["loss"]) == {"dpo", "sft", "bpo(generator=sba)", "bpo", "reference"}
    twice = of(frame, loss="bpo(generator=sba)")
    assert sorted(zip(twice["kl"], twice["reward"], twice["on_frontier"], strict=True)) == [
        (2.0, 0.4, True), (2.0, 0.4, True), (3.0, 0.4, False), (3.0, 0.5, True),
    ]  # fmt: skip


def test_spreads_and_intervals_by_hand(frame):
    half, end = of(frame, variant="dpo").itertuples()
    assert [half.kl_sd, half.reward_sd] == pytest.approx([math.sqrt(2), math.sqrt(2) / 8])
    assert half.kl_se == pytest.approx(0.15)  # of .1 and .2
    assert math.isnan(half.reward_low)  # its samples are not recorded
    # Prompt means .4 .5 .5 .6: sd sqrt(.02/3), 4 prompts; Student's t, 3 degrees of freedom, 97.5%: 3.182
    margin = 3.1824 * math.sqrt(0.02 / 3) / 2
    assert [end.reward_low, end.reward_high] == pytest.approx([0.625 - margin, 0.625 + margin], abs=1e-5)
    assert math.isnan(of(frame, variant="sft")["kl_sd"].iloc[0])


def test_reward_at_matched_kl(frame):
    found = at_matched_kl(frame, [0.5, 1, 2, 3, 4, 4.5])
    assert found.loc["dpo"].tolist() == pytest.approx([math.nan, 3 / 8, 11 / 24, 13 / 24, 5 / 8, math.nan], nan_ok=True)
    assert found.loc["sft"].tolist() == pytest.approx([0.9] + 5 * [math.nan], nan_ok=True)
    assert "reference" not in found.index


def test_markdown(frame):
    text = to_markdown(frame, [2.0])
    assert "| dpo | 50% | 2 | 2.000 ± 1.414 | 0.375 ± 0.177 | - |  |" in text
    assert "| dpo(beta=0.3) | 50% | 2 | 1.000 ± 0.000 | 0.375 ± 0.000 | - | yes |" in text
    assert "| loss | 2 nats |" in text and "| dpo | 0.458 |" in text and "| sft | - |" in text
    assert "| loss | 1.75 nats | 2 nats | 3 nats |" in to_markdown(frame)  # quartiles of .5 1 2 2 2 3 3 4
    assert "reference" not in text.split("## Reward at matched KL")[1]


def test_the_picture(frame, tmp_path):
    assert plot(frame, tmp_path / "new" / "f.png").read_bytes().startswith(b"\x89PNG")
    text = plot(frame, tmp_path / "f.svg").read_text()
    for label in ("dpo", "bpo(generator=sba)", "reference", "beta 0.3", "no beta", "dominated", "reward"):
        assert f"<!-- {label} -->" in text, label


def test_of_a_cell_recorded_again_the_later_one_counts(cells, frame):
    worse = replace(cells[1], run_id="earlier", given={"kl": {60: 9.0}, "reward": {60: 0.0}})
    pd.testing.assert_frame_equal(frontier(build([worse, *cells])), frame)


def test_other_settings_have_frontiers_of_their_own(cells):
    """dpo, at two betas and two learning rates, as two comparisons recorded it: two frontiers over beta, not one nor four."""
    again = [
        replace(cell, run_id=f"again {cell.run_id}", comparison="again", params=cell.params | {"lr": "2"})
        for cell in cells
        if cell.name.startswith("dpo")
    ]
    both = [*cells, *again]
    found = frontier(build(both))
    assert {"dpo [lr=1]", "dpo [lr=2]", "sft"} <= set(found["loss"]) and "dpo" not in set(found["loss"])
    for lr in ("1", "2"):
        own = of(found, loss=f"dpo [lr={lr}]")
        assert set(own["variant"]) == {f"dpo [lr={lr}]", f"dpo(beta=0.3) [lr={lr}]"}
        assert set(own["seeds"]) == {2} and own["on_frontier"].sum() == 2
    assert "| dpo(beta=0.3) \\[lr=2\\] | 50% |" in to_markdown(found)


def test_what_cannot_be_drawn_is_said(cells):
    for one in (replace(cells[1], given={"kl": {60: 1.0}}), replace(cells[1], given={"reward": {60: 1.0}})):
        with pytest.raises(LeaderboardError, match="None of the 1 cells.*gold reward"):
            frontier(build([one]))
