"""An iterated comparison that is killed at random moments ends with the numbers of an undisturbed one, and samples nothing twice."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from plo.leaderboards import read, to_markdown
from plo.leaderboards.digests import VOLATILE
from plo.tracking import Tracker

ROOT = Path(__file__).parents[2]
KILLS = 4
EXPERIMENT = """
name: rounds
data: {source: pocket, options: {pairs: 64}, origin: iterated(2), sample: {prompts: 48, k: 4}}
losses: [dpo, tbpo_a]
seeds: [0]
train: {steps: 6, checkpoint_every: 2}
evaluation: {prompts: 8, samples: 2, pairs: 8, batch_size: 16, suite: []}
"""
# Notes each batch of answers once it is kept, the batches that were begun, and the optimiser steps.
PLUGIN = """
import os
from pathlib import Path
from plo import store
from plo.backbone.model import Backbone
from plo.backbone.trainer import PreferenceTrainer

def note(text):
    with open(os.environ["NOTES"], "a") as file:
        file.write(text + "\\n")

write, generate, loss = store.write_json, Backbone.generate, PreferenceTrainer.compute_loss

def write_json(path, value, **keywords):
    write(path, value, **keywords)
    if path.parent.name == "drawn":
        note(f"kept {path.parent.parent.name}/{path.name} {len(value)}")

def compute_loss(self, *arguments, **keywords):
    note("step")
    return loss(self, *arguments, **keywords)

store.write_json, PreferenceTrainer.compute_loss = write_json, compute_loss
"""


def start(folder):
    folder.mkdir(exist_ok=True)
    (folder / "rounds.yaml").write_text(EXPERIMENT)
    (folder / "notes.py").write_text(PLUGIN)
    own = {"PLO_HOME": str(folder / "home"), "NOTES": str(folder / "notes.txt"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "plo", "compare", "rounds.yaml", "--plugin", "notes.py"]
    environment = os.environ | own | {"PYTHONPATH": str(ROOT)}
    with (folder / "log.txt").open("a") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def notes(folder):
    file = folder / "notes.txt"
    return file.read_text().splitlines() if file.exists() else []


def kept(folder):
    """Number of answers of each kept batch, and how often it was kept."""
    batches = [line.split()[1:] for line in notes(folder) if line.startswith("kept")]
    return {name: int(count) for name, count in batches}, Counter(name for name, _ in batches)


def recorded(folder):
    tracker = Tracker(folder / "plo.db", create=False)
    [comparison] = tracker.comparisons()
    cells = {cell.name: cell for cell in comparison.cells()}
    assert {cell.status for cell in cells.values()} == {"FINISHED"}
    answers = [stage for stage in tracker.stages() if stage["name"] == "answers" and stage["status"] == "FINISHED"]
    return cells, sorted((stage["key"], stage["metrics"]["answers"]) for stage in answers), to_markdown(read(tracker))


@pytest.mark.slow
def test_killed_at_random_moments_it_samples_nothing_twice_and_ends_with_the_same_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    calm, broken = tmp_path / "calm", tmp_path / "broken"
    assert start(calm).wait() == 0, (calm / "log.txt").read_text()[-2000:]
    total, draw = len(notes(calm)), random.Random(os.environ.get("KILL_SEED", "1"))
    done = 0
    for number in range(KILLS):
        process, most = start(broken), done + (total - done) * (number + 1) // (KILLS + 1)
        until = draw.randint(done + 1, max(done + 1, most))
        while len(notes(broken)) < until and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        done = len(notes(broken))
    assert start(broken).wait() == 0, (broken / "log.txt").read_text()[-2000:]

    (sizes, times), (others, again) = kept(calm), kept(broken)
    assert sizes == others and set(times.values()) == set(again.values()) == {1}
    cells, answers, table = recorded(calm)
    same, drawn, shown = recorded(broken)
    assert (
        answers == drawn and sum(sizes.values()) == sum(count for _, count in answers) == (1 + 3) * 48 * 4
    )  # the start, and a model of sft, dpo and tbpo_a
    for name, cell in cells.items():
        assert timeless(cell.metrics) == timeless(same[name].metrics), name
        assert cell.key == same[name].key and cell.tags.get("plo.pairs") == same[name].tags.get("plo.pairs")
    assert "round 2: answers of round 1" in table and "round 2: answers of round 1" in shown
    print(json.dumps({"answers": sum(sizes.values()), "batches": len(sizes), "kills": KILLS, "notes": total}))


def timeless(metrics):
    """Return all but what a clock or the memory says."""
    return {name: value for name, value in metrics.items() if name not in VOLATILE}
