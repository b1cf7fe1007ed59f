"""Leaderboards of a fabricated store: what is said and refused; the numbers are the recorded ones."""

import csv
import io
import json
import math

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt

from plo.leaderboards import LeaderboardError, read, to_csv, to_json, to_markdown, write
from plo.leaderboards.board import Row
from plo.leaderboards.build import build
from plo.leaderboards.checks import COMPARABLE
from plo.leaderboards.formatting import escape, fold
from plo.leaderboards.items import values_by_prompt
from plo.tracking import Tracker

SHARED = {"plo.data": "data-1", "plo.model": "model-1", "plo.evaluation": "evaluation-1", "plo.git": "a" * 40}
LEVEL = {"reference": 0.1, "sft": 0.15, "dpo": 0.6, "tdpo2": 0.3}
PROMPTS = 12


def samples(level, seed, text="Fine."):
    rng = np.random.default_rng([seed, int(level * 100)])
    prompts = np.repeat(np.arange(PROMPTS), 2)
    reward = np.clip(rng.normal(level, 0.2, 2 * PROMPTS), -1, 1)
    return pd.DataFrame({
        "prompt_id": prompts, "sample": [0, 1] * PROMPTS, "prompt": [f"Opening {p}" for p in prompts],
        "text": [f"{text} ({p})" for p in prompts], "tokens": 20 + prompts, "finished": True,
        "kl": 100 * level, "entropy": 2.0, "ref_nll": 2.5 + level,
        "reward": reward, "valence": reward / 5, "repetition": 0.0,
    })  # fmt: skip


def comparison(tracker, name, losses=tuple(LEVEL), seeds=(0, 1, 2), planned=(), text="Fine.", params=None, **tags):
    parent = tracker.comparison(name, f"key-{name}", {"name": name}, {}, {p: p for p in planned})
    for loss in losses:
        for seed in seeds:
            own = {"plo.loss": loss, "plo.variant": loss, "plo.seed": seed} | SHARED
            settings = {"lr": "0.0002", "beta": "0.1", "peft": "lora", "folder": f"/tmp/{loss}-{seed}"}
            settings = {} if loss == "reference" else settings | (params or {})
            cell = tracker.start_cell(parent, f"{loss}/{seed}", f"{loss}, seed {seed}", own | tags, settings)
            frame = samples(LEVEL.get(loss, 0.2), seed, text)
            shown = ["reward", "valence", "kl", "ref_nll", "tokens", "repetition"]
            final = frame[shown].mean().to_dict()
            final |= {} if loss == "reference" else {"preference_accuracy": 0.6}
            if loss != "reference":
                cell.log({"reward": final["reward"] + 0.05, "kl": 1.0}, 30)
            cell.log(final, 0 if loss == "reference" else 60)
            cell.table(frame, "samples.json")
            cell.finish({"kl_se": 0.1})
    return parent


@pytest.fixture(scope="module")
def tracker(tmp_path_factory):
    return Tracker(tmp_path_factory.mktemp("store") / "plo.db", "boards")


@pytest.fixture(scope="module")
def board(tracker):
    comparison(tracker, "main")
    return read(tracker, "main")


def test_rows_are_the_recorded_numbers(board):
    assert [row.variant for row in board.rows] == ["reference", "sft", "dpo", "tdpo2"]
    dpo = board.rows[2]
    expected = [samples(0.6, seed)["reward"].mean() for seed in range(3)]
    assert dpo.metrics["reward"].mean == pytest.approx(np.mean(expected), abs=1e-15)
    assert dpo.metrics["reward"].sd == pytest.approx(np.std(expected, ddof=1), abs=1e-15)
    assert list(dpo.runs) == ["0", "1", "2"] and dpo.status == "untuned"
    assert "preference_accuracy" not in board.rows[0].metrics
    # "folder" differs by seed, so it is no setting and does not tear the seeds apart.
    assert set(dpo.settings) == {"lr", "beta", "peft"}
    assert board.notes == []


def test_a_comparison_that_was_only_tuned_says_what_to_run(tracker):
    tracker.comparison("tuned alone", "key-tuned", {})
    with pytest.raises(LeaderboardError, match=r"No cell .* was started: run `plo compare` .*After `plo tune`"):
        read(tracker, "tuned alone")


@pytest.mark.parametrize(
    ("prompts", "values", "expected"),
    [
        ([0, 0, 1], [1.0, 2.0, 5.0], {0: 1.5, 1: 5.0}),
        ([1, 0, 1], [1.0, 2.0, 5.0], {0: 2.0, 1: 3.0}),  # as a file of outputs may have them
        ([0, 0, 1], [math.nan, 2.0, 5.0], {0: 2.0, 1: 5.0}),
        ([], [], {}),
    ],
)
def test_means_over_the_samples_of_a_prompt(prompts, values, expected):
    frame = pd.DataFrame({"prompt_id": prompts, "reward": values}, dtype=float).astype({"prompt_id": int})
    row = Row("a", "a", {}, runs={"0": "run"})
    found = values_by_prompt([row], ["reward"], {"run": frame}, [])["reward"]["a"]["0"]
    assert found.to_dict() == expected


def test_no_digit_depends_on_which_cell_ended_first(tracker):
    """Sums of floating-point numbers differ in their last bit with the order of the summands."""
    comparison(tracker, "in turn", seeds=range(6))
    comparison(tracker, "reversed", seeds=range(5, -1, -1))
    found = [repr([(r.metrics, r.differences) for r in read(tracker, n).rows]) for n in ("in turn", "reversed")]
    assert found[0] == found[1]


def test_differences_are_paired_by_prompt_and_seed(tracker, board):
    def table(level):
        frames = {seed: samples(level, seed).groupby("prompt_id")["reward"].mean() for seed in range(3)}
        return pd.DataFrame(frames).to_numpy()

    gap = board.rows[2].differences["reward"]
    d = table(0.6) - table(0.1)
    assert gap.mean == pytest.approx(d.mean(), abs=1e-12)
    assert (gap.prompts, gap.seeds) == (PROMPTS, 3)
    # the seeds' part alone already asks for more than sd over seeds / sqrt(3) allows at Student's t of many df
    assert gap.se >= d.mean(0).std(ddof=1) / math.sqrt(3)
    against = read(tracker, "main", baseline="dpo")
    d = table(0.3) - table(0.6)
    assert against.rows[3].differences["reward"].mean == pytest.approx(d.mean(), abs=1e-12)
    assert against.rows[2].differences == {}


def test_along_training(board):
    dpo = board.rows[2]
    assert list(dpo.along) == [0.5, 1.0]
    assert dpo.along[0.5]["reward"] == pytest.approx(dpo.metrics["reward"].mean + 0.05)
    assert "| dpo | **0." in to_markdown(board).split("## Reward and KL during training")[1]


def test_it_refuses_to_mix(tracker, board):
    for tag, what in COMPARABLE.items():
        name = f"other-{tag}"
        comparison(tracker, name, losses=("dpo",), seeds=(0,), **{tag: "another"})
        cells = tracker.cells("main") + tracker.cells(name)
        values = rf"{what} {SHARED[tag]}: main(.|\n)*{what} another: {name}"
        said = rf"differ in their {what} \(tag {tag}\)(.|\n)*{values}(.|\n)*Run one of them again with(.|\n)*plo leaderboard NAME"
        with pytest.raises(LeaderboardError, match=said):
            build(cells)
    with pytest.raises(LeaderboardError, match="main \\(key-main\\): reference, seed 0"):
        read(tracker)


def test_other_training_settings_are_other_rows(tracker):
    comparison(tracker, "short", losses=("dpo",), seeds=(0, 1), params={"train.epochs": "1"})
    comparison(tracker, "long", losses=("dpo",), seeds=(2, 3), params={"train.epochs": "10"})
    board = build(tracker.cells("short") + tracker.cells("long"))
    rows = [row for row in board.rows if row.variant == "dpo"]
    seeds = {row.settings["train.epochs"]: list(row.runs) for row in rows}
    assert list(seeds.items()) == [("1", ["0", "1"]), ("10", ["2", "3"])]
    with pytest.raises(LeaderboardError, match=r"'dpo' may be any of: dpo \[lr=0.0002.*epochs=10"):
        build(tracker.cells("short") + tracker.cells("long"), baseline="dpo")


def test_what_is_not_there_is_said(tracker):
    parent = comparison(tracker, "holes", losses=("reference", "dpo"), planned=["ipo/0", "dpo/0"])
    more = {"plo.loss": "ipo", "plo.variant": "ipo", "plo.seed": 1}
    tracker.start_cell(parent, "ipo/1", "ipo, seed 1", more).fail(RuntimeError("loss is nan at step 4"))
    own = {"plo.variant": "bpo", "plo.seed": 2, "plo.git": "b" * 40}
    cell = tracker.start_cell(parent, "bpo/2", "bpo, seed 2", SHARED | own)
    cell.finish({"reward": 0.2})
    board = read(tracker, "holes")
    text = to_markdown(board)
    for said in (
        "Not run, so an empty row: sft.", "Not finished, FAILED, RuntimeError: loss is nan at step 4: ipo, seed 1 (holes, run ",
        "Planned and never started: ipo/0 (holes).", "Without seed 0, 1: bpo.", "Without a table samples.json",
        "different commits",
    ):  # fmt: skip
        assert said in "\n".join(board.notes) and said in text, said
    assert "| sft | 0 | untuned | - | - | - | - |" in text
    with pytest.raises(LeaderboardError, match="baseline 'kto'"):
        read(tracker, "holes", baseline="kto")
    with pytest.raises(LeaderboardError, match="the metric nope"):
        read(tracker, "holes", metrics=["nope"])


def test_rows_of_which_the_same_is_said_share_a_note():
    said = [("dpo", "No seed"), ("ipo", "Lost"), ("x" * 200, "No seed"), ("dpo", "No seed")]
    assert fold(said) == [f"No seed: dpo, {'x' * 160}….", "Lost: ipo."]


def test_nothing_finished(tracker):
    parent = tracker.comparison("empty", "key-empty", {})
    tracker.start_cell(parent, "a", "dpo, seed 0").fail(ValueError("no"))
    with pytest.raises(LeaderboardError, match=r"None of the 1 cells is finished(.|\n)*ValueError: no"):
        read(tracker, "empty")


def test_numbers_that_are_not_finite(tracker):
    comparison(tracker, "nan", losses=("reference",), seeds=(0,))
    parent = tracker.comparisons("nan")[0].run_id
    cell = tracker.start_cell(parent, "x0", "x", SHARED | {"plo.variant": "x", "plo.seed": 0})
    cell.finish({"reward": math.nan, "kl": math.inf})
    board = read(tracker, "nan")
    assert "| x | 1 | untuned | - | - |" in to_markdown(board)
    row = next(row for row in json.loads(to_json(board))["rows"] if row["variant"] == "x")
    assert row["metrics"]["reward"]["mean"] is None
    assert to_csv(board)


def test_json_traces_every_number_and_csv_is_exact(tracker, board, tmp_path):
    data = json.loads(to_json(board))
    recorded = {cell.run_id: cell.metrics for cell in tracker.cells("main")}
    for row in data["rows"]:
        assert row["runs"]
        for name, metric in row["metrics"].items():
            assert {run: recorded[run][name] for run in metric["values"]} == metric["values"]
            assert np.mean(list(metric["values"].values())) == metric["mean"]
    lines = list(csv.DictReader(io.StringIO(to_csv(board))))
    assert float(lines[2]["reward"]) == board.rows[2].metrics["reward"].mean
    assert float(lines[2]["reward_difference_low"]) == board.rows[2].differences["reward"].low
    assert [path.name for path in write(board, tmp_path / "a" / "b")] == [
        "leaderboard.md", "leaderboard.csv", "leaderboard.json",
    ]  # fmt: skip


HOSTILE = (
    "a|b `code` ```\n\n# Title\r\n<script>alert(1)</script> \\| [x](http://evil) **bold** &lt;b&gt; "
    "\u202e\x00 | end " + "z" * 100_000
)


def test_hostile_text_stays_in_its_cell(tracker):
    comparison(tracker, "hostile", seeds=(0,), text=HOSTILE)
    text = to_markdown(read(tracker, "hostile"))
    assert len(text) < 20_000
    section = text[text.index("## Samples") : text.index("## Legend")]
    tokens = MarkdownIt("commonmark").enable("table").parse(section)
    inline = [child for token in tokens for child in token.children or [] if token.type == "inline"]
    assert {child.type for child in inline} == {"text"}  # no code, links, emphasis, HTML
    kinds = [token.type for token in tokens]
    assert [kinds.count(f"{kind}_open") for kind in ("table", "tr", "td")] == [2, 2 * 5, 2 * 8]
    assert "fence" not in kinds and "html_block" not in kinds and kinds.count("heading_open") == 1
    shown = next(token.content for token in tokens if token.type == "inline" and "script" in token.content)
    assert "more characters" in shown
    read_back = next(child.content for child in inline if "script" in child.content)
    assert read_back.startswith("a|b `code` ``` ⏎  ⏎ # Title ⏎ <script>alert(1)</script> \\| [x](http://evil)")


def test_escape():
    assert escape("tbpo_a + 0.2*sft") == "tbpo_a + 0.2\\*sft"
    assert escape("_x_ a|b\\|") == "\\_x\\_ a&#124;b&#92;&#124;"
    assert escape("one\ntwo") == "one ⏎ two"
    assert escape("abcdef", 3) == "abc … (3 more characters)"
