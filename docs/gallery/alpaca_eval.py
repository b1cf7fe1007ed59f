"""Make docs/gallery/alpaca_eval.html from AlpacaEval 2's published verdicts on 32 models.

PLO_DATA=FOLDER python docs/gallery/alpaca_eval.py

FOLDER/alpaca_eval has preferences.csv.gz (model, position, preference, lengths) and published_leaderboard.csv. Only numbers
enter the page: no instruction and no answer.
"""

import os
import sys
import tempfile
from pathlib import Path

import pandas as pd

from plo.cli import app
from plo.metric import Metric
from plo.tracking import Tracker

NAME, BASELINE = "alpaca_eval", "gpt4_1106_preview"
SHARED = {"plo.data": "alpaca_eval", "plo.model": "none", "plo.evaluation": "alpaca_eval"}
METRICS = [
    Metric(
        "win_rate",
        "win rate",
        f"share of the 805 instructions in which GPT-4 Turbo prefers the model to {BASELINE}, by the judge's published "
        "log-probs; gpt4_1106_preview against itself is .5",
        better="↑",
        table=NAME,
        bounds=(0.0, 1.0),
    ),
    Metric(
        "published_lc_win_rate",
        "LC win rate (published)",
        "length-controlled win rate as AlpacaEval publishes it",
        better="↑",
        table=NAME,
        bounds=(0.0, 1.0),
    ),
    Metric("length", "characters", "mean length of an answer", 0, table=NAME),
]


def read(folder: Path) -> dict[str, tuple[dict[str, float], pd.DataFrame]]:
    """Return {model: its metrics, and its values by instruction}."""
    published = pd.read_csv(folder / "published_leaderboard.csv", index_col=0)
    found = {}
    for model, own in pd.read_csv(folder / "preferences.csv.gz").groupby("model"):
        if model not in published.index:  # the published verdicts have one model more than the table
            continue
        items = pd.DataFrame(
            {
                "prompt_id": own["instruction_index"],
                "win_rate": own["preference"] - 1,
                "length": own["len_2"].astype(float),
                "base_length": own["len_1"].astype(float),
            }
        )
        line = published.loc[model]
        metrics = items[["win_rate", "length"]].mean().to_dict()
        metrics["published_lc_win_rate"] = line["length_controlled_winrate"] / 100
        if abs(100 * metrics["win_rate"] - line["win_rate"]) > 1e-6:
            sys.exit(f"{model}: {100 * metrics['win_rate']:.8f} is not the published {line['win_rate']:.8f}.")
        found[str(model)] = metrics, items
    return found


def record(models: dict[str, tuple[dict[str, float], pd.DataFrame]], store: Path) -> None:
    """Record every model as a cell with one evaluation, as `plo eval` would have."""
    tracker = Tracker(store)
    parent = tracker.comparison(NAME, NAME, {"primary": f"{NAME}.win_rate", "baseline": BASELINE})
    about = {"lengths": {"win_rate": ("length", "base_length")}, "but_judge": "", "judges": []}
    about |= {"notes": ["Verdicts and lengths are those that tatsu-lab/alpaca_eval publishes (CC BY-NC 4.0)."]}
    about["described"] = [metric.to_dict() for metric in METRICS]
    for model, (metrics, items) in models.items():
        own = SHARED | {"plo.loss": model, "plo.variant": model, "plo.seed": 0}
        tracker.start_cell(parent, model, model, own).finish({})
        tags = {"plo.of": model, "plo.evaluation": NAME, "plo.settings": "published"}
        run = tracker.start_evaluation(parent, f"{NAME} of {model}", f"{NAME} of {model}", tags)
        assert run is not None  # the store is new
        run.finding(NAME, metrics, items, about)


if __name__ == "__main__":
    data = Path(os.environ.get("PLO_DATA", "")) / "alpaca_eval"
    if not (data / "preferences.csv.gz").exists():
        sys.exit(f"There is no {data / 'preferences.csv.gz'}: set PLO_DATA to the folder that has alpaca_eval/.")
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "plo.db"
        record(read(data), store)
        page = Path(__file__).with_suffix(".html")
        app(["leaderboard", NAME, "--store", str(store), "--out", folder, "--html", str(page)])
