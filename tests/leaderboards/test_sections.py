"""Evaluations of level "model" in a leaderboard: their tables, verdicts, judges; variance components."""

import csv
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from plo.leaderboards import LeaderboardError, read, to_csv, to_json, to_markdown
from plo.metric import Metric
from plo.statistics import estimate, length_adjusted
from plo.tracking import Tracker

SHARED = {"plo.data": "data-1", "plo.model": "model-1", "plo.evaluation": "evaluation-1", "plo.git": "a" * 40}
RATE = {"reference": 0.3, "sft": 0.32, "dpo": 0.95}


def items(rate, seed, name="win_rate_chosen", prompts=60):
    rng = np.random.default_rng([seed, int(100 * rate)])
    wins = (rng.random(prompts) < rate).astype(float)
    return pd.DataFrame({"prompt_id": np.arange(prompts), name: wins, "text": "some"})


JUDGE = {"judge": "hf:tiny | v1", "version": "weights 1", "prompt": "helpful", "given": "hf:tiny | v1(dtype=float16)"}
CARD = {"card": ["agreement .81 [.76, .86]", "P(A) .52"], "informative": True, "pairs": 100}


def described(names):
    """What an evaluation records of win rates and refusals; of others it declared nothing."""
    better = {"win_rate": ("↑", (0.0, 1.0)), "refusals": ("↓", (0.0, 1.0))}
    found = [(name, *better.get("win_rate" if name.startswith("win_rate") else name, ("", None))) for name in names]
    return [
        Metric(
            name, name.replace("_", " "), better=arrow, table="duel", bounds=bounds or (-math.inf, math.inf)
        ).to_dict()
        for name, arrow, bounds in found
    ]


def evaluated(tracker, parent, loss, seed, frame, metrics, evaluation="duel", settings="s1", params=None, **about):
    """Record a cell and what an evaluation found of it."""
    key, own = f"{loss}/{seed}", SHARED | {"plo.loss": loss, "plo.variant": loss, "plo.seed": seed}
    if key not in tracker.finished(parent):
        cell = tracker.start_cell(parent, key, f"{loss}, seed {seed}", own)
        cell.table(pd.DataFrame({"prompt_id": [0], "sample": 0, "prompt": "p", "text": "t"}), "samples.json")
        cell.finish()
    tags = {"plo.of": key, "plo.evaluation": evaluation, "plo.settings": settings}
    run = tracker.start_evaluation(parent, f"{key} {evaluation} {settings}", "x", tags, params)
    run.finding(
        evaluation, metrics, frame,
        {"notes": [], "lengths": {}, "but_judge": "same", "judges": [JUDGE], "described": described(metrics)} | about,
    )  # fmt: skip


def record(
    tracker, comparison, evaluation="duel", name="win_rate_chosen", notes=("60 prompts were asked.",), **settings
):
    parent = tracker.comparison(comparison, f"key-{comparison}", {})
    for loss, rate in RATE.items():
        for seed in range(3):
            frame = items(rate, seed, name)
            metrics = {name: frame[name].mean(), "refusals": 0.25}
            evaluated(tracker, parent, loss, seed, frame, metrics, evaluation, notes=notes, **settings)
    return read(tracker, comparison)


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    tracker = Tracker(tmp_path_factory.mktemp("store") / "plo.db", "sections")
    tracker.judge_check(JUDGE["judge"], "weights 0", CARD | {"informative": False, "pairs": 400})  # another judge's
    tracker.judge_check(JUDGE["judge"], JUDGE["version"], CARD)
    tracker.judge_check(JUDGE["judge"], JUDGE["version"], CARD | {"card": ["tiny"], "informative": False, "pairs": 2})
    return tracker


@pytest.fixture(scope="module")
def board(tracker):
    return record(tracker, "main")


def part(text, title):
    return text.split(f"## {title}\n")[1].split("\n## ")[0]


def test_a_section_per_evaluation(board):
    text = part(to_markdown(board), "duel")
    found = board.rows[2].estimates["duel.win_rate_chosen"]
    table = pd.DataFrame({str(seed): items(0.95, seed).set_index("prompt_id")["win_rate_chosen"] for seed in range(3)})
    assert found == estimate(table)
    assert f"[{found.low:.3f}, {found.high:.3f}]" in text
    assert "win rate chosen ↑" in text and "refusals ↓" in text
    assert (
        "60 prompts were asked." in text
        and "Judge hf:tiny &#124; v1, prompt helpful:" in text
        and "- agreement .81" in text
    )
    assert text.count("60 prompts were asked.") == 1
    # the primary metric is in the first table too, the others in their section alone
    assert "duel.win rate chosen ↑" in to_markdown(board).split("## ")[0]
    assert "refusals" not in to_markdown(board).split("## duel")[0]


def test_the_first_table_has_the_verdict_and_the_sections_have_no_test(board):
    """.95 of 60 prompts against .30 in every seed is better; .32 with as much noise is open."""
    lines = {line.split(" | ")[0].strip("| "): line for line in to_markdown(board).split("\n## ")[0].splitlines()}
    assert lines["variant"] == (
        "| variant | seeds | tuning | duel.win rate chosen ↑ | Δ duel.win rate chosen | verdict |"
    )
    assert lines["dpo"].endswith("| better |") and lines["sft"].endswith("| undecided |")
    assert "| baseline |" in lines["reference"]
    assert ", p " not in to_markdown(board) and "MDD" not in to_markdown(board)


def test_an_uninformative_judge_hides_its_rates_and_nothing_else(tracker):
    poor = {"judge": "hf:poor", "version": "1", "prompt": None, "given": "hf:poor(dtype=float16)"}
    parent = tracker.comparison("poor", "key-poor", {})
    for loss in RATE:
        rates = {"win_rate_chosen": 0.9, "discrete_win_rate": 0.8, "refusals": 0.25}
        evaluated(tracker, parent, loss, 0, items(0.9, 0), rates, judges=[poor])
    assert "0.900" in to_markdown(read(tracker, "poor"))  # it has no card yet, and the table says how to get one
    assert (
        "no card: measure its agreement with gold labels: plo judge-check 'hf:poor(dtype=float16)' PAIRS"
        in to_markdown(read(tracker, "poor"))
    )
    tracker.judge_check("hf:poor", "1", CARD | {"informative": False})
    board = read(tracker, "poor")
    text = part(to_markdown(board), "duel")
    lines = [line for line in text.splitlines() if line.startswith("| dpo")]
    assert lines == ["| dpo | uninformative judge | 0.250 |", "| dpo | uninformative judge |"]
    assert "Δ" not in text
    assert board.primary_metric is None and board.design is None
    row = list(csv.DictReader(io.StringIO(to_csv(board))))[2]
    assert row["duel.win_rate_chosen"] == row["duel.discrete_win_rate"] == "" and row["duel.refusals"] == "0.25"
    data = json.loads(to_json(board))
    assert data["evaluations"][0]["judges"][0]["informative"] is False
    assert data["rows"][2]["metrics"]["duel.win_rate_chosen"]["mean"] == 0.9


def test_two_judges_stand_in_two_sections_each_with_its_card(tracker):
    """One judge's verdicts are neither mixed with the other's nor put under its card, whichever cells it was asked of."""
    parent = tracker.comparison("judges", "key-judges", {})
    other = JUDGE | {"judge": "hf:other", "version": "1"}
    tracker.judge_check("hf:other", "1", CARD | {"card": ["chance"], "informative": False})
    for loss, rate in RATE.items():
        for seed in range(2):
            frame = items(rate, seed)
            evaluated(tracker, parent, loss, seed, frame, {"win_rate_chosen": rate}, params={"judge": "hf:tiny"})
    evaluated(
        tracker, parent, "dpo", 0, items(0.2, 0), {"win_rate_chosen": 0.2}, settings="s2", params={"judge": "hf:other"},
        judges=[other],
    )  # fmt: skip
    board = read(tracker, "judges")
    text = to_markdown(board)
    first, second = part(text, "duel \\[judge=hf:other\\]"), part(text, "duel \\[judge=hf:tiny\\]")
    assert "chance" in first and "uninformative judge" in first and "agreement" not in first
    assert "agreement .81" in second and "0.950" in second and "chance" not in second
    assert "| sft |" in second and "| sft |" not in first
    rows = {row.variant: row for row in board.rows}
    assert rows["dpo"].metrics["duel [judge=hf:tiny].win_rate_chosen"].n == 2
    assert rows["dpo"].differences.keys() == {"duel [judge=hf:tiny].win_rate_chosen"}
    assert board.primary_metric == "duel [judge=hf:tiny].win_rate_chosen"


def test_the_same_settings_but_for_code_are_told_apart(tracker):
    parent = tracker.comparison("code", "key-code", {})
    for settings, rate in (("aaaaaaaabb", 0.3), ("ccccccccdd", 0.6)):
        evaluated(tracker, parent, "dpo", 0, items(rate, 0), {"win_rate_chosen": rate}, settings=settings)
    evaluated(tracker, parent, "ipo", 0, items(0.3, 0), {"win_rate_chosen": 0.3}, settings="aaaaaaaabb")
    titles = [section.title for section in read(tracker, "code").sections]
    assert titles == ["duel [settings aaaaaaaa]", "duel [settings cccccccc]"]


def test_where_all_were_evaluated_again_with_other_code_the_later_results_count(tracker):
    parent = tracker.comparison("again", "key-again", {})
    for settings, rate in (("ffffffff", 0.3), ("bbbbbbbb", 0.6)):
        for loss in ("dpo", "ipo"):
            evaluated(tracker, parent, loss, 0, items(rate, 0), {"win_rate_chosen": rate}, settings=settings)
    board = read(tracker, "again")
    assert [section.title for section in board.sections] == ["duel"]
    assert [row.metrics["duel.win_rate_chosen"].mean for row in board.rows if row.runs] == [0.6, 0.6]
    assert any("(settings ffffffff) are in the records and in no table" in note for note in board.notes)


def test_the_component_of_the_judge(tracker):
    """Two judges who differ by .4 on everything: their variance is .4^2 / 2, and nothing else's."""
    parent = tracker.comparison("component", "key-component", {})
    for judge, shift in (("a", 0.0), ("b", 0.4)):
        for loss in RATE:
            for seed in range(2):
                frame = pd.DataFrame({"prompt_id": range(4), "win_rate": 0.3 + shift})
                evaluated(
                    tracker, parent, loss, seed, frame, {"win_rate": 0.3 + shift}, settings=judge, params={"judge": judge},
                    judges=[JUDGE | {"judge": judge, "version": "1"}],
                )  # fmt: skip
    board = read(tracker, "component")
    assert board.components["judge"] == pytest.approx(0.08)
    assert board.components.drop("judge").abs().max() < 1e-12
    assert "| judge | 0.08 |" in part(to_markdown(board), "Variance components")


def test_components_of_the_primary_metric(board):
    assert board.primary_metric == "duel.win_rate_chosen"
    text = to_markdown(board)
    shares = [line.split(" | ")[-1] for line in part(text, "Variance components").splitlines() if line.startswith("| ")]
    assert sum(int(share.strip(" |%")) for share in shares[2:]) == pytest.approx(100, abs=3)
    assert board.components["loss"] > board.components["seed"]
    data = json.loads(to_json(board))
    assert data["variance_components"]["residual"] > 0
    dpo = data["rows"][2]
    assert dpo["verdict"] == "better" and dpo["differences"]["duel.win_rate_chosen"]["p_holm"] < 0.05
    assert (data["design"]["tests"], data["design"]["seeds"], data["design"]["prompts"]) == (2, [3, 3], [60, 60])


def test_judges_of_other_settings_are_not_several_judges_of_the_same(tracker):
    parent = tracker.comparison("apart", "key-apart", {})
    for judge, shift in (("a", 0.0), ("b", 0.4)):
        for loss, rate in RATE.items():
            for seed in range(2):
                frame = items(rate, seed, "win_rate").assign(win_rate=lambda f, more=shift: f["win_rate"] * (1 - more))
                evaluated(
                    tracker, parent, loss, seed, frame, {"win_rate": rate}, settings=judge, params={"judge": judge},
                    judges=[JUDGE | {"judge": judge}], but_judge=f"prompts of {judge}",
                )  # fmt: skip
    assert "judge" not in read(tracker, "apart").components


def test_the_primary_metric_is_that_of_a_judge_with_a_card(tracker):
    parent = tracker.comparison("trusted", "key-trusted", {})
    for judge in ({"judge": "a", "version": "never measured"}, {}):
        name = (JUDGE | judge)["judge"]
        for loss, rate in RATE.items():
            frame = items(rate, 0, "win_rate")
            evaluated(
                tracker, parent, loss, 0, frame, {"win_rate": rate}, settings=name, params={"judge": name},
                judges=[JUDGE | judge],
            )  # fmt: skip
    board = read(tracker, "trusted")
    assert [section.trusted for section in board.sections] == [False, True]
    assert board.primary_metric == "duel [judge=hf:tiny | v1].win_rate"


def test_a_judge_of_some_cells_takes_nothing_from_the_others(tracker):
    parent = tracker.comparison("partly", "key-partly", {})
    for loss, rate in RATE.items():
        for seed in range(3):
            evaluated(
                tracker, parent, loss, seed, items(rate, seed, "win_rate"), {"win_rate": rate}, params={"judge": "a"}
            )
    alone = read(tracker, "partly")
    evaluated(
        tracker, parent, "dpo", 0, items(0.2, 0, "win_rate"), {"win_rate": 0.2}, settings="s2", params={"judge": "b"},
        judges=[JUDGE | {"judge": "b"}],
    )  # fmt: skip
    board = read(tracker, "partly")
    assert board.primary_metric == "duel [judge=a].win_rate"
    pd.testing.assert_series_equal(board.components, alone.components)
    assert [row.verdict for row in board.rows] == [row.verdict for row in alone.rows]


def test_judges_whose_readable_verdicts_share_no_prompt(tracker):
    parent = tracker.comparison("disjoint", "key-disjoint", {})
    for judge, unread in (("a", slice(0, 30)), ("b", slice(30, 60))):
        for loss, rate in RATE.items():
            for seed in range(2):
                frame = items(rate, seed, "win_rate")
                frame.loc[frame.index[unread], "win_rate"] = np.nan
                evaluated(
                    tracker, parent, loss, seed, frame, {"win_rate": rate}, settings=judge, params={"judge": judge},
                    judges=[JUDGE | {"judge": judge}],
                )  # fmt: skip
    board = read(tracker, "disjoint")
    assert "judge" not in board.components and board.design.judgement.compared["dpo"].prompts == 30


def test_what_an_earlier_version_recorded_is_named_and_left_out(tracker):
    parent = tracker.comparison("old", "key-old", {})
    evaluated(tracker, parent, "dpo", 0, items(0.5, 0), {"win_rate_chosen": 0.5})
    tags = {"plo.of": "dpo/0", "plo.evaluation": "older", "plo.settings": "s0", "plo.notes.older": "[]"}
    run = tracker.start_evaluation(parent, "older", "x", tags)
    run.table(items(0.5, 0), "older.json")
    run.finish({"older.win_rate_chosen": 0.5})
    board = read(tracker, "old")
    assert [section.title for section in board.sections] == ["duel"]
    assert any("older" in note and "run plo eval again" in note for note in board.notes)


def test_a_name_with_a_dot_and_an_evaluation_nobody_registered(tracker):
    board = record(tracker, "dots", evaluation="duel.v0.7", name="points", described=[])
    assert [section.title for section in board.sections] == ["duel.v0.7"] and board.primary_metric is None
    assert "| points [95%] | Δ points [95%] |" in to_markdown(board)
    one = read(tracker, "dots", metrics=["duel.v0.7.refusals"])
    assert one.metrics == ["duel.v0.7.refusals"] and "points" not in to_markdown(one)
    with pytest.raises(LeaderboardError, match="duel.v0.7.nope"):
        read(tracker, "dots", metrics=["duel.v0.7.nope"])


def test_prompts_and_seeds_that_two_variants_do_not_share(tracker):
    parent = tracker.comparison("uneven", "key-uneven", {})
    for loss, seeds, prompts in (("reference", (0, 1), 60), ("dpo", (1, 2), 50), ("sft", (3,), 60)):
        for seed in seeds:
            evaluated(tracker, parent, loss, seed, items(RATE[loss], seed, prompts=prompts), {"win_rate_chosen": 0.5})
    board = read(tracker, "uneven")
    said = "\n".join(board.notes)
    assert "Only the 50 prompts count that every seed shares with reference in duel: dpo." in said
    assert "One seed in common with reference in duel, so the difference is for new prompts alone: dpo." in said
    assert "No seed in common with reference in duel, so no difference: sft." in said
    assert "no variance components" in said and board.components is None
    gap = board.rows[2].differences["duel.win_rate_chosen"]
    ours, theirs = (items(rate, 1, prompts=n)["win_rate_chosen"][:50] for rate, n in ((0.95, 50), (0.3, 60)))
    assert gap.mean == pytest.approx(ours.mean() - theirs.mean()) and (gap.seeds, gap.dropped) == (1, 10)


def test_length_adjusted_rates_of_all_cells_at_once(tracker):
    """Two variants as good as each other, of which one wins by writing more: side by side, raw and adjusted."""
    rng, prompts = np.random.default_rng(0), 400
    effect, base = rng.normal(0, 0.5, prompts), rng.integers(500, 1500, prompts)
    parent = tracker.comparison("long", "key-long", {})
    wins, frames = {}, []
    for loss, longer in (("reference", 0), ("dpo", 600), ("ipo", -600)):
        for seed in range(4):
            gap = rng.normal(longer, 500, prompts)
            chance = 1 / (1 + np.exp(-(effect + 1.5 * np.tanh(gap / gap.std(ddof=1)))))
            wins[loss, seed] = (rng.random(prompts) < chance).astype(float)
            columns = {"win_rate_chosen": wins[loss, seed], "length": base + gap, "length_chosen": base}
            frame = pd.DataFrame({"prompt_id": range(prompts), **columns})
            names = {"win_rate_chosen": "win", "length_chosen": "base_length"}
            frames.append(frame.rename(columns=names).assign(model=f"{loss} {seed}", variant=loss))
            lengths = {"win_rate_chosen": ["length", "length_chosen"]}
            rate = {"win_rate_chosen": wins[loss, seed].mean()}
            evaluated(tracker, parent, loss, seed, frame, rate, lengths=lengths)
    board = read(tracker, "long")
    raw, adjusted = "duel.win_rate_chosen", "duel.length_adjusted_win_rate_chosen"
    assert board.metrics == [raw, adjusted] and board.primary_metric == raw
    truth = (1 / (1 + np.exp(-effect))).mean()
    rows = {row.variant: row for row in board.rows}
    for loss, away in (("reference", 0), ("dpo", 0.15), ("ipo", -0.15)):
        row = rows[loss]
        assert row.metrics[raw].mean == pytest.approx(np.mean([wins[loss, seed].mean() for seed in range(4)]))
        assert row.metrics[raw].mean - truth == pytest.approx(away, abs=0.08)
        assert row.metrics[adjusted].mean == pytest.approx(truth, abs=0.05)
        found = row.estimates[adjusted]
        assert found.mean == pytest.approx(row.metrics[adjusted].mean) and found.low < truth < found.high
        assert (found.prompts, found.seeds) == (prompts, 4)
    gaps = [rows[loss].differences for loss in ("dpo", "ipo")]
    assert [rows[loss].verdict for loss in ("dpo", "ipo")] == ["better", "worse"]
    assert all(gap[adjusted].low < 0 < gap[adjusted].high for gap in gaps)
    text = part(to_markdown(board), "duel")
    assert "| length-adjusted win rate chosen ↑ [95%] | Δ length-adjusted win rate chosen [95%] |" in text
    assert "one fit over 12 cells of 3 variants" in text
    # by hand: one fit with each standard deviation of the slopes, seeds of a variant with one slope
    assert len(frames) == 12
    whole = pd.concat(frames)
    fits = {sd: length_adjusted(whole, slope_sd=sd, prompt_sd=length_adjusted(whole).prompt_sd) for sd in (0.1, 0.8)}
    for loss in ("reference", "dpo", "ipo"):
        own = [f"{loss} {seed}" for seed in range(4)]
        assert rows[loss].metrics[adjusted].mean == pytest.approx(length_adjusted(whole).rates["rate"][own].mean())
        rates = sorted(fit.rates["rate"][own].mean() for fit in fits.values())
        assert f"{loss} {rates[0]:.3f} to {rates[1]:.3f}" in text
    assert read(tracker, "long", metrics=[adjusted]).metrics == [adjusted]


def test_a_metric_with_values_for_some_prompts_has_interval_and_difference(tracker):
    """As the jackknife's 35 pseudo-values of AlpacaEval's length-controlled rate, in the rows of the first 35 prompts."""
    parent, rng, values = tracker.comparison("few", "key-few", {}), np.random.default_rng(0), {}
    for loss in ("reference", "dpo"):
        values[loss] = rng.normal(0.4, 0.1, 35)
        frame = pd.DataFrame({"prompt_id": range(60), "win_rate": np.r_[values[loss], np.full(25, np.nan)]})
        evaluated(tracker, parent, loss, 0, frame, {"win_rate": values[loss].mean()})
    board = read(tracker, "few")
    row = next(row for row in board.rows if row.variant == "dpo")
    gap = values["dpo"] - values["reference"]
    low, high = stats.t.interval(0.95, 34, gap.mean(), stats.sem(gap))
    found, own = row.differences["duel.win_rate"], row.estimates["duel.win_rate"]
    assert (found.low, found.high) == pytest.approx((low, high)) and (found.prompts, found.dropped) == (35, 0)
    assert own.mean == pytest.approx(row.metrics["duel.win_rate"].mean) and (own.prompts, own.dropped) == (35, 0)
    assert "prompts that it shares" not in "\n".join(board.notes)


def test_one_cell_alone_is_not_adjusted(tracker):
    parent = tracker.comparison("alone", "key-alone", {})
    frame = pd.DataFrame({"prompt_id": range(9), "win_rate": [0, 1, 1] * 3, "length": range(9), "base_length": 4})
    lengths = {"win_rate": ["length", "base_length"]}
    evaluated(tracker, parent, "x", 0, frame, {"win_rate": 2 / 3}, lengths=lengths)
    assert read(tracker, "alone").metrics == ["duel.win_rate"]
