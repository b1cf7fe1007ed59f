"""A user's own evaluation in a leaderboard that is built from recorded runs alone."""

import math
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest

from plo.evals import EVALUATIONS, describe_metric, describe_metrics, evaluate, register_evaluation
from plo.leaderboards import read, to_csv, to_markdown
from plo.leaderboards.metrics import recorded_metrics
from plo.metric import Metric
from plo.tracking import Tracker

SHARED = {"plo.data": "data", "plo.model": "model", "plo.evaluation": "evaluation"}
TEXTS = {"reference": ["a!", "b!!"], "dpo": ["a!!!!", "b!!!!!!"]}  # 1.5 and 5 exclamation marks


@pytest.fixture
def shouting():
    @register_evaluation("shouting", higher_is_better=False, bounds=(0, math.inf), digits=1, meaning="marks a sample")
    def shouting(samples):
        return samples["text"].str.count("!").to_frame("shouting")

    yield
    EVALUATIONS._entries.pop("shouting")


def record(path, described=True):
    """Two cells whose samples were evaluated by `shouting`, as `plo compare` records them."""
    tracker = Tracker(path)
    parent = tracker.comparison("own", "key-own", {})
    for loss, texts in TEXTS.items():
        numbers = {"tokens": 2, "finished": True, "kl": 1.0, "entropy": 1.0, "ref_nll": 2.0}
        rows = [{"prompt_id": i, "sample": 0, "prompt": "p", "text": text} | numbers for i, text in enumerate(texts)]
        found = evaluate(pd.DataFrame(rows), ["shouting", "repetition"])
        own = SHARED | {"plo.loss": loss, "plo.variant": loss, "plo.seed": 0}
        cell = tracker.start_cell(parent, f"{loss}/0", f"{loss} seed 0", own)
        cell.table(found.samples, "samples.json")
        if described:
            cell.describe(describe_metrics(["shouting", "repetition"], found.metrics))
        cell.finish(found.metrics | {"loss": 0.5})
    return path


def test_the_order_of_columns_is_not_that_of_the_store():
    """A SQLite file gives descriptions back in the order in which they were recorded, a server on PostgreSQL by name."""
    names = ["zeta", "reward", "alpha", "kl", "beta"]
    metrics = {name: Metric(name, name) for name in names}
    orders = [recorded_metrics([SimpleNamespace(name="one", described=one)], []) for one in (
        metrics, dict(sorted(metrics.items())), dict(reversed(metrics.items()))
    )]  # fmt: skip
    assert list(orders[0]) == list(orders[1]) == list(orders[2])
    shown = [name for name in orders[0] if name in names]
    assert shown == ["reward", "kl", "alpha", "beta", "zeta"]


def test_a_users_own_evaluation_is_a_column_with_its_direction_digits_and_meaning(shouting, tmp_path):
    store = record(tmp_path / "plo.db")
    EVALUATIONS._entries["shouting"], kept = EVALUATIONS._entries["repetition"], EVALUATIONS._entries["shouting"]
    board = read(Tracker(store, create=False))  # no evaluation of that name is known here
    EVALUATIONS._entries["shouting"] = kept
    assert board.descriptions["shouting"] == Metric(
        "shouting", "shouting", "marks a sample", 1, "↓", "reward", (0, math.inf)
    )
    assert "shouting" in board.metrics and "loss" not in board.metrics
    text = to_markdown(board)
    secondary = text.split("## Secondary, not corrected")[1].split("\n## ")[0]
    assert "| shouting ↓ |" in secondary and "| 5.0 |" in secondary and "- shouting: marks a sample." in text
    assert "shouting_difference_mean" in to_csv(board)
    (dpo,) = (row for row in board.rows if row.variant == "dpo")
    assert dpo.differences["shouting"].mean == 3.5 and dpo.estimates["shouting"].low == 0  # cut at its bound
    assert board.primary_metric == "repetition"  # no reward, no win rate: the first whose direction is known
    assert board.metrics.index("repetition") < board.metrics.index("shouting")


def test_fewer_is_better_where_the_evaluation_said_so(shouting, tmp_path):
    board = read(Tracker(record(tmp_path / "plo.db"), create=False), metrics=["shouting"])
    assert board.primary_metric == "shouting"
    (dpo,) = (row for row in board.rows if row.variant == "dpo")
    assert dpo.differences["shouting"].mean == 3.5 and dpo.verdict == "undecided"  # of two prompts: t = 7 with 1 degree


@pytest.fixture
def percent():
    """Evaluations whose metric has a name that MLflow refuses."""

    @register_evaluation("percent", higher_is_better={"marks (%)": False}, digits=1)
    def percent(samples):
        return samples["text"].str.count("!").to_frame("marks (%)")

    @register_evaluation("asked", level="model", higher_is_better={"marks (%)": False}, digits=1)
    def asked(subject): ...

    yield
    EVALUATIONS._entries.pop("percent"), EVALUATIONS._entries.pop("asked")


def test_a_metric_whose_name_mlflow_refuses_is_shown_as_declared(percent, tmp_path):
    tracker = Tracker(tmp_path / "plo.db")
    parent = tracker.comparison("own", "key-own", {})
    for loss, texts in TEXTS.items():
        numbers = {"tokens": 2, "finished": True, "kl": 1.0, "entropy": 1.0, "ref_nll": 2.0}
        rows = [{"prompt_id": i, "sample": 0, "prompt": "p", "text": text} | numbers for i, text in enumerate(texts)]
        found = evaluate(pd.DataFrame(rows), ["percent"])
        own = SHARED | {"plo.loss": loss, "plo.variant": loss, "plo.seed": 0}
        cell = tracker.start_cell(parent, f"{loss}/0", f"{loss} seed 0", own)
        cell.table(found.samples, "samples.json")
        cell.describe(describe_metrics(["percent"], found.metrics))
        cell.finish(found.metrics)
        tags = {"plo.of": f"{loss}/0", "plo.evaluation": "asked", "plo.settings": "same"}
        run = tracker.start_evaluation(parent, f"asked {loss}", f"asked of {loss}", tags)
        items = pd.DataFrame({"prompt_id": [0, 1], "marks (%)": [text.count("!") for text in texts]})
        about = {"notes": [], "lengths": {}, "but_judge": "", "judges": []}
        about["described"] = [describe_metric(EVALUATIONS["asked"], "marks (%)").to_dict()]
        run.finding("asked", {"marks (%)": items["marks (%)"].mean()}, items, about)
    board = read(Tracker(tmp_path / "plo.db", create=False))
    assert to_markdown(board).count("| marks (%) ↓ ") == 2  # in the first table and in the evaluation's own
    (dpo,) = (row for row in board.rows if row.variant == "dpo")
    assert [gap.mean for name, gap in dpo.differences.items() if "marks" in name] == [3.5, 3.5]


def test_runs_of_an_earlier_version_are_read_as_before(shouting, tmp_path):
    board = read(Tracker(record(tmp_path / "plo.db", described=False), create=False))
    assert board.metrics == ["kl", "ref_nll", "repetition", "tokens", "kl_se", "entropy", "finished"]
    assert board.descriptions["repetition"].better == "↓" and board.descriptions["repetition"].bounds == (0.0, 1.0)
    own = read(Tracker(tmp_path / "plo.db", create=False), metrics=["shouting"])
    assert own.descriptions["shouting"].better == "" and own.rows[-1].metrics["shouting"].mean == 5


def test_what_plos_own_evaluations_record():
    reward = describe_metric(EVALUATIONS["sentiment"], "reward")
    assert reward.better == "↑" and "VADER" in reward.meaning
    rate = describe_metric(EVALUATIONS["hh"], "win_rate_chosen_t0.5")
    assert (rate.better, rate.bounds, rate.table) == ("↑", (0.0, 1.0), "hh")
    assert describe_metric(EVALUATIONS["diversity"], "self_bleu_multi").better == "↓"
    assert Metric.from_dict(rate.to_dict() | {"added later": 1}) == rate
    assert Metric.from_dict(reward.to_dict()) == reward


BLOCKED = ("torch", "transformers", "mlflow", "safetensors", "plo.evals", "plo.losses")
BLOCKER = f"""
import sys

def refuse(event, arguments):
    if event == "import" and arguments[0].startswith({BLOCKED!r}):
        raise SystemExit(f"{{arguments[0]}} is imported")  # no ImportError, which somebody might catch

sys.addaudithook(refuse)
import plo.statistics, plo.leaderboards, plo.leaderboards.terminal
from plo.cli import app
app(sys.argv[1:])
"""


def test_a_leaderboard_imports_neither_torch_nor_mlflow_nor_an_evaluation(shouting, tmp_path):
    """Its numbers are in the store; what it imports is most of the time it takes."""
    command = ["leaderboard", "--store", record(tmp_path / "plo.db"), "--out", tmp_path / "out"]
    ended = subprocess.run(
        [sys.executable, "-c", BLOCKER, *map(str, command)], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0 and "| shouting ↓ |" in ended.stdout, ended.stdout[-500:] + ended.stderr
