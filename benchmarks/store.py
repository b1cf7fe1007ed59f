"""A comparison of 1,000 recorded cells: how long recording, `plo compare` that finds all finished, and `plo leaderboard` take.

    python benchmarks/store.py --folder /tmp/thousand                                    # in a SQLite file
    python benchmarks/store.py --folder /tmp/thousand --store http://127.0.0.1:5000      # in a server

The cells are planned by a real `plo compare` on the pocket task, which is ended then. Their curves, samples and tags are made
up, in the sizes that the pocket task has. A folder with recorded cells is measured again without recording.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from plo.metric import Metric
from plo.tracking import Comparison, Held, Tracker, TrackingError

NAME, THREADS = "thousand", 4
PROMPTS, SAMPLES, STEPS = 86, 4, range(0, 200, 10)
BETAS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 2.0)
CURVE = ["loss", "grad_norm", "learning_rate", "margin", "accuracy", "tokens_per_second", "clipped", "epoch"]
CURVE += [f"{kind}/{side}" for kind in ("logps", "log_ratios", "rewards", "entropy") for side in ("chosen", "rejected")]
FINAL = ["reward", "kl", "kl_se", "ref_nll", "entropy", "tokens", "finished", "forbidden", "efficiency"]
FINAL += ["gold_win_rate", "preference_accuracy"]
WORDS = [
    "the",
    "room",
    "felt",
    "tidy",
    "owner",
    "promised",
    "chocolate",
    "lobby",
    "was",
    "came",
    "but",
    "garden",
    "looked",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--store")
    parser.add_argument("--seeds", type=int, default=25, help="of 40 cells each")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(args.folder)
    store = args.store or "plo.db"
    losses = [{loss: {"beta": beta}} for loss in ("dpo", "ipo", "hinge") for beta in BETAS][:38]
    train = {"steps": 4, "batch_size": 8}
    experiment = {
        "name": NAME,
        "model": "pocket",
        "data": {"source": "pocket", "options": {"pairs": 320}},
        "out": "runs",
    }
    experiment |= {"losses": losses, "seeds": list(range(args.seeds)), "train": train, "store": store}
    experiment |= {"evaluation": {"suite": ["efficiency"]}}  # no evaluation of trained models, of which there are none
    Path("experiment.yaml").write_text(yaml.safe_dump(experiment))
    comparison = planned(store)
    started = time.monotonic()
    made = fill(comparison, Tracker(store))
    if made:
        print(f"| record {made} cells, {THREADS} at once | {time.monotonic() - started:.0f} s | |")
    started = time.monotonic()
    count = sum(cell.status == "FINISHED" for cell in comparison.cells())
    print(f"| list {count} finished cells | {time.monotonic() - started:.1f} s | |")
    for command in (["compare", "experiment.yaml"], ["leaderboard", NAME, "--store", store]):
        seconds, peak = timed([sys.executable, "-m", "plo", *command])
        print(f"| plo {command[0]} | {seconds:.1f} s | {peak:.2f} GB |")


def planned(store: str) -> Comparison:
    """Return the comparison, whose cells a real `plo compare` plans if that has not been done."""
    process = None
    while True:
        try:
            comparison = Tracker(store, create=False).comparisons(NAME)[0]
            if comparison.planned():
                break
        except TrackingError:
            pass
        process = process or subprocess.Popen([sys.executable, "-m", "plo", "compare", "experiment.yaml"])
        time.sleep(1)
    if process is not None:
        process.send_signal(signal.SIGTERM)
        process.wait()
    return comparison


def fill(comparison: Comparison, tracker: Tracker) -> int:
    """Record every planned cell that is not finished. Return how many."""
    finished = tracker.finished(comparison.run_id)
    todo = [(key, name) for key, name in comparison.planned().items() if key not in finished]
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(lambda cell: record(comparison, tracker, *cell), todo):
            pass
    return len(todo)


def record(comparison: Comparison, tracker: Tracker, key: str, name: str) -> None:
    """Record a cell as plo does, with invented numbers that differ between variants and seeds."""
    variant, _, seed = name.rpartition(" seed ")
    rng = np.random.default_rng(int(key[:12], 16))
    own = {
        name: text for name, text in comparison.tags.items() if name not in ("plo.kind", "plo.key", "plo.comparison")
    }
    own = {name: text for name, text in own.items() if name.startswith("plo.v") or name in ("plo.data", "plo.model")}
    tags = own | {
        "plo.loss": variant.partition("(")[0],
        "plo.variant": variant,
        "plo.seed": seed,
        "plo.evaluation": "0",
    }
    params = {f"train.setting_{i}": i for i in range(18)} | {"loss.beta": "0.1", "lr": "0.0005", "peft": "full"}
    try:
        run = tracker.start_cell(comparison.run_id, key, name, tags, params if variant != "reference" else {})
    except Held:
        return
    for step in STEPS if variant != "reference" else ():
        run.log(dict(zip(CURVE, rng.normal(size=len(CURVE)), strict=True)), step)
    effect = (sum(map(ord, variant)) % 17) / 10
    frame = pd.DataFrame({"prompt_id": np.repeat(range(PROMPTS), SAMPLES), "sample": list(range(SAMPLES)) * PROMPTS})
    frame["prompt"] = [f"grateful carla on the hostel {i} :" for i in frame["prompt_id"]]
    frame["text"] = [" ".join(rng.choice(WORDS, 20)) for _ in frame.index]
    frame["tokens"], frame["finished"] = rng.integers(10, 40, len(frame)), True
    for column in ("kl", "entropy", "ref_nll", "forbidden"):
        frame[column] = rng.gamma(2.0, size=len(frame))
    frame["reward"] = effect + rng.normal() / 5 + np.sin(frame["prompt_id"]) + rng.normal(size=len(frame))
    final = dict(zip(FINAL, rng.uniform(size=len(FINAL)), strict=True)) | {"reward": float(frame["reward"].mean())}
    run.log(final, STEPS[-1])
    run.tag("plo.stages", "[]")
    run.table(frame, "samples.json")
    run.table(frame.groupby("prompt_id")[["kl", "reward"]].mean().reset_index().assign(share=1.0), "points.json")
    run.describe([Metric(metric, metric, better="↑") for metric in FINAL])
    run.tag("plo.seconds", "6.7")
    run.finish(final)


def timed(command: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak memory in GB of a command, and its output goes to a file."""
    started = time.monotonic()
    with Path(f"{command[3]}.txt").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, json.dumps(command)
    return time.monotonic() - started, usage.ru_maxrss / 2**20


if __name__ == "__main__":
    main()
