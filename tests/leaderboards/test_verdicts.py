"""Verdicts, ranks and tuning in a table of a fabricated store, by what its experiment declared; values by hand."""

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from plo.leaderboards import LeaderboardError, read, to_csv, to_json, to_markdown
from plo.leaderboards.headline import design_lines, headline
from plo.leaderboards.terminal import to_terminal
from plo.leaderboards.tuning import tuning_facts
from plo.tracking import Tracker

SHARED = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation", "plo.git": "a" * 40}
PROMPTS = 20


def tuned(digest="d1", **record):
    own = {"digest": digest, "trials": 4, "metric": "reward", "space": {"beta": [0.025, 0.4]}, "point": {"beta": 0.2}}
    own |= {
        "edges": [],
        "score": 0.5,
        "default": 0.4,
        "first": [0.1, 0.3, None, 0.2],
        "seconds": 90.0,
        "within_kl": True,
    }
    return {"plo.tuning": json.dumps(own | record)}


def record(tracker, name, levels, seeds=3, tags={}, config={}, baseline_seeds=None):  # noqa: B006
    """Cells whose reward is the row's level, plus noise of prompt and seed that all rows share and .01 of their own."""
    parent = tracker.comparison(name, f"key-{name}", {"seeds": list(range(seeds)), **config})
    for loss, level in levels.items():
        for seed in range(baseline_seeds if baseline_seeds and loss == config["baseline"] else seeds):
            common = np.random.default_rng(seed).normal(0, 0.3, PROMPTS)
            own = np.random.default_rng([seed, len(loss), *loss.encode()]).normal(0, 0.01, PROMPTS)
            frame = pd.DataFrame({"prompt_id": range(PROMPTS), "sample": 0, "prompt": "p", "text": "t"})
            frame = frame.assign(reward=level + common + own, kl=1.0)
            about = SHARED | {"plo.loss": loss, "plo.variant": loss, "plo.seed": seed} | tags.get(loss, {})
            cell = tracker.start_cell(parent, f"{loss}/{seed}", f"{loss} seed {seed}", about)
            cell.table(frame, "samples.json")
            cell.finish({"reward": frame["reward"].mean(), "kl": 1.0})


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    return Tracker(tmp_path_factory.mktemp("store") / "plo.db", "verdicts")


LEVELS = {"reference": 0.0, "dpo": 0.5, "far": 0.9, "near": 0.501, "low": 0.1}
DECLARED = {"primary": "reward", "margin": 0.1, "baseline": "dpo"}


@pytest.fixture(scope="module")
def board(tracker):
    """Three rows and a baseline, with .01 of noise: .4 above is better, .4 below worse, .001 within a margin of .1."""
    tags = {
        "near": tuned(),
        "far": tuned(score_se=0.03),
        "dpo": tuned(first=[0.15, 0.05, 0.1, 0.1]),
        "low": tuned("d2"),
    }
    record(tracker, "declared", LEVELS, tags=tags, config=DECLARED)
    return read(tracker, "declared")


def words(board):
    return {row.variant: row.verdict for row in board.rows}


def test_verdicts_are_those_of_the_declared_metric_baseline_and_margin(board):
    assert words(board) == {
        "reference": None, "sft": None, "dpo": None, "far": "better", "near": "equivalent", "low": "worse",
    }  # fmt: skip
    assert headline(board).startswith("Better than dpo in reward: far (+0.4")
    assert "Worse: low (-0.4" in headline(board) and "Equivalent: near (" in headline(board)
    first, _, detects, ranked = design_lines(board)
    assert "Primary metric: reward, margin ±0.1. Baseline: dpo, 3 seeds. 3 variants, 3 seeds x 20 prompts" in first
    assert "Holm at alpha 0.05" in first and "with power .8 (it describes the design and decides nothing)" in detects
    assert ranked == "Ranked: 3 rows that are tuned(N=4, d1)."


def test_what_is_given_on_the_command_line_wins(tracker, board):
    assert words(read(tracker, "declared", margin=1e-6))["near"] == "undecided"
    assert words(read(tracker, "declared", "far"))["dpo"] == "worse"
    of_kl = read(tracker, "declared", primary="kl")
    assert of_kl.primary_metric == "kl" and not any(words(of_kl).values())  # it has no direction
    with pytest.raises(LeaderboardError, match="No run recorded the metric nope"):
        read(tracker, "declared", primary="nope")
    assert read(tracker, "declared", metrics=["kl"]).metrics == ["reward", "kl"]


def test_an_older_comparison_declares_nothing_and_its_baseline_is_the_reference(tracker):
    record(tracker, "older", LEVELS)
    found = read(tracker, "older")
    assert found.baseline.variant == "reference" and found.design.margin is None
    assert words(found) == {"reference": None, "sft": None} | dict.fromkeys(("dpo", "far", "near", "low"), "better")
    assert "**Untuned: no rank.**" in to_markdown(found) and "| rank |" not in to_markdown(found)


def test_declarations_that_cannot_be_met_are_noted_and_nothing_takes_their_place(tracker):
    record(tracker, "unmet", LEVELS, config=DECLARED | {"primary": "gold"})
    found = read(tracker, "unmet")
    assert found.design is None and any("declares the primary metric gold" in note for note in found.notes)
    record(tracker, "baseless", {"reference": 0, "far": 1}, config=DECLARED)
    found = read(tracker, "baseless")
    assert found.baseline is None and any("no finished run of the baseline 'dpo'" in note for note in found.notes)


def test_rows_tuned_alike_are_ranked(board):
    """dpo, far and near share a protocol; .4 apart is separated, .001 is not: far is first, the others share 2 to 3."""
    ranks = {row.variant: row.rank for row in board.rows if row.rank}
    assert ranks["far"] == (1, 1, 1)
    assert {ranks["near"][1:], ranks["dpo"][1:]} == {(2, 3)} and ranks.keys() == {"far", "near", "dpo"}
    assert any("different protocols (d1, d2); only those of d1 are ranked" in note for note in board.notes)
    assert [row.variant for row in board.rows][-3] == "far"  # ranked rows come last, best first
    assert "| 1 [1, 1] |" in to_markdown(board)


def test_untuned_rows_and_ceilings_have_no_rank_and_ceilings_no_verdict(tracker):
    tags = {"dpo": tuned(), "near": tuned(), "far": {"plo.ceiling": "true"} | tuned()}
    record(tracker, "ceiling", LEVELS, tags=tags, config=DECLARED)
    found = read(tracker, "ceiling")
    far = next(row for row in found.rows if row.variant == "far")
    assert far.verdict is None and far.rank is None and far.differences["reward"].mean == pytest.approx(0.4, abs=0.02)
    assert found.design.judgement.compared.keys() == {"near", "low"}
    text = to_markdown(found)
    assert "| ceiling | ceiling, no rank |" in text and "| worse | untuned, no rank |" in text


def test_looks_are_replayed_with_the_baselines_further_seeds(tracker):
    """Looks at 2 and 3 seeds have 2/5 and 3/5 of alpha. All is settled at the first, so the third seed decides nothing."""
    levels = {"reference": 0.0, "dpo": 0.5, "far": 0.9, "low": 0.1}
    config = DECLARED | {"looks": [2, 3], "baseline_seeds": 4}
    record(tracker, "looks", levels, config=config, baseline_seeds=4)
    found = read(tracker, "looks")
    assert found.design.judgement.look == 2 and found.design.judgement.alpha == pytest.approx(0.02)
    assert design_lines(found)[-1] == "Looks at 2, 3 seeds: the last one was at 2; every verdict is settled."
    assert found.design.judgement.compared["far"].seeds == 2
    assert not any("lacks seed" in note for note in found.notes)  # the baseline has more of them by design


def test_the_section_on_tuning(board, tracker):
    """first of far: .1, .3, diverged, .2, where the diverged one counts as .1. For n = 2 the weights are 1, 3, 5, 7 of 16,
    so E = (.1 + .3 + 1 + 2.1) / 16; for n = 4 they are 1, 15, 65, 175 of 256. dpo's best first trial has .15."""
    data = json.loads(to_json(board))
    far = next(row for row in data["rows"] if row["variant"] == "far")
    assert far["tuning"]["expected_best"] == pytest.approx({"1": 0.175, "2": 3.5 / 16, "4": 67.1 / 256})
    assert far["tuning"]["robustness"] == 0.5
    optimism = 0.5 - far["metrics"]["reward"]["mean"]
    assert far["tuning"]["optimism"] == pytest.approx(optimism)
    half = 1.959964 * math.hypot(0.03, far["intervals"]["reward"]["se"])
    assert far["tuning"]["optimism_interval"] == pytest.approx([optimism - half, optimism + half])
    near = next(row for row in data["rows"] if row["variant"] == "near")
    assert near["tuning"]["optimism_interval"] is None  # recorded before trials had standard errors
    section = to_markdown(board).split("## Tuning")[1].split("\n## ")[0]
    line = next(line for line in section.splitlines() if line.startswith("| far |"))
    assert "| beta=0.2 | 0.400 | 0.500 |" in line and "| 0.175, 0.219, 0.262 | 50% |" in line
    assert line.endswith("| - | 90 | beta 0.025 to 0.4 |")
    assert "tuned(N=4, d1)" in to_markdown(board)


def test_lower_is_better_turns_optimism_and_the_best_trial_round(tracker):
    tags = {"dpo": tuned(), "ipo": tuned(score=0.2, score_se=0.03)}
    record(tracker, "lower", {"dpo": 0.5, "ipo": 0.5}, tags=tags, config=DECLARED)
    found = read(tracker, "lower")
    found.descriptions["reward"] = replace(found.descriptions["reward"], better="↓")
    ipo = next(row for row in found.rows if row.variant == "ipo")
    facts = tuning_facts(found, ipo)
    # sorted by utility: .3, .3 (diverged, as the worst), .2, .1
    assert facts["expected_best"][2] == pytest.approx((0.3 + 0.9 + 1.0 + 0.7) / 16)
    optimism = ipo.metrics["reward"].mean - 0.2
    assert facts["optimism"] == pytest.approx(optimism)
    half = 1.959964 * math.hypot(0.03, ipo.estimates["reward"].se)
    assert facts["optimism_interval"] == pytest.approx([optimism - half, optimism + half])
    assert facts["robustness"] == 0.0  # none of them is lower than .1, the baseline's best


def test_samples_that_were_cut_are_noted_by_row(tracker):
    """Two seeds, of which .9 and 1 of the samples ended: 5% were cut."""
    parent = tracker.comparison("cut", "key-cut", {})
    for loss, shares in (("dpo", (0.9, 1.0)), ("ipo", (1.0, 1.0))):
        for seed, share in enumerate(shares):
            about = SHARED | {"plo.loss": loss, "plo.variant": loss, "plo.seed": seed}
            tracker.start_cell(parent, f"{loss}/{seed}", "x", about).finish({"reward": 0.5, "finished": share})
    assert "Samples cut before they ended, scored as if complete: dpo 5.0%." in read(tracker, "cut").notes


def test_reward_at_matched_kl_is_interpolated_between_the_points(tracker):
    """(KL, reward) of dpo ends at (2, 1); ipo goes through (1, .8) to (4, .9), so at KL 2 it has .8 + .1 / 3. The lower
    quartile of what they reach, 2 and 4, is 2.5, but the baseline reaches 2."""
    parent = tracker.comparison("matched", "key-matched", {"baseline": "dpo", "primary": "reward"})
    curves = {"dpo": {0.5: (1.0, 0.5), 1.0: (2.0, 1.0)}, "ipo": {0.5: (1.0, 0.8), 1.0: (4.0, 0.9)}, "reference": {}}
    for loss, curve in curves.items():
        for seed in range(2):
            noise = np.random.default_rng([seed, len(loss)]).normal(0, 0.1, PROMPTS)
            noise -= noise.mean()
            frame = pd.DataFrame({"prompt_id": range(PROMPTS), "sample": 0, "prompt": "p", "text": "t", "kl": 0.0})
            frame["reward"] = noise + (curve[1.0][1] if curve else 0)
            about = SHARED | {"plo.loss": loss, "plo.variant": loss, "plo.seed": seed}
            cell = tracker.start_cell(parent, f"{loss}/{seed}", loss, about)
            cell.table(frame, "samples.json")
            if curve:
                points = [frame.assign(share=s, kl=kl, reward=noise + r) for s, (kl, r) in curve.items()]
                cell.table(pd.concat(points)[["share", "prompt_id", "kl", "reward"]], "points.json")
            cell.finish({"reward": frame["reward"].mean(), "kl": curve[1.0][0] if curve else 0.0})
    found = read(tracker, "matched")
    assert found.matched.budget == 2.0
    rewards = {name.split(" ")[0]: one.mean for name, one in found.matched.rewards.items()}
    assert rewards == pytest.approx({"dpo": 1.0, "ipo": 0.8 + 0.1 / 3})
    assert next(iter(found.matched.differences.values())).mean == pytest.approx(0.8 + 0.1 / 3 - 1.0)
    assert "| ipo | 0.833 [" in to_markdown(found).split("## Reward at matched KL")[1]


def test_the_fragility_of_the_first_place(tracker):
    """Of 20 verdicts each, a has 15 wins and b 12. Every flip of a loss of b's or a win of a's moves the gap of 3 by one, so
    four put b ahead. All of b's wins are a's too, so no prompts can be left out to put b ahead."""
    parent = tracker.comparison("fragile", "key-fragile", {"primary": "gold_win_rate", "baseline": "b"})
    for loss, wins in (("a", 15), ("b", 12)):
        frame = pd.DataFrame({"prompt_id": range(20), "sample": 0, "prompt": "p", "text": "t"})
        frame["gold_win_rate"] = (np.arange(20) < wins).astype(float)
        cell = tracker.start_cell(parent, loss, loss, SHARED | {"plo.loss": loss, "plo.variant": loss, "plo.seed": 0})
        cell.table(frame, "samples.json")
        cell.finish({"gold_win_rate": wins / 20})
    said = "First place: a. b would take it if 4 of their 40 values changed as far as they can."
    assert said in design_lines(read(tracker, "fragile"))


@pytest.mark.parametrize("width", [80, 120])
def test_exports_and_terminal_carry_the_same_verdicts(board, width):
    rows = {row["variant"]: row for row in csv.DictReader(io.StringIO(to_csv(board)))}
    assert (rows["far"]["verdict"], rows["far"]["rank"], rows["far"]["rank_high"]) == ("better", "1", "1")
    assert "reward_difference_p_holm" in rows["far"] and "kl_difference_p_holm" not in rows["far"]
    data = {row["variant"]: row for row in json.loads(to_json(board))["rows"]}
    assert data["near"]["verdict"] == "equivalent" and data["far"]["rank"] == {"rank": 1, "low": 1, "high": 1}
    assert "p" in data["far"]["differences"]["reward"] and "p" not in data["far"]["differences"]["kl"]
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(to_terminal(board, width))
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    far = next(line for line in lines if line.startswith("far"))
    assert "better" in far and (width == 80 or "1 [1, 1]" in far)
