"""`plo reproduce` on trained cells: identical on one machine, within seed noise with other threads, differing with another loss."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from plo.cli import app
from plo.losses import LOSSES

LOSS = """from plo import register_loss


@register_loss("mine", needs=("ref_logps",))
def mine(pairs, *, beta: float = 0.1):
    return (1 - beta * pairs.log_ratio_margin()).relu().square()
"""
POCKET = """name: small
data: {source: pocket, options: {pairs: 320}}
losses: [mine]
baseline: sft
primary: reward
seeds: [0, 1, 2]
train: {steps: 12}
evaluation: {prompts: 20, suite: [efficiency]}
plugins: [mine.py]
"""


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == code, result.output
    return result.output


def answer(*arguments, code=0):
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def test_on_the_same_machine_every_number_is_equal_and_a_changed_loss_is_found(tiny, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(LOSS)
    experiment = tiny(losses=["mine"], seeds=[0, 1], plugins=["mine.py"], store="first.db")
    (tmp_path / "e.yaml").write_text(json.dumps(experiment.model_dump(mode="json")))
    invoke("compare", "e.yaml")
    invoke("leaderboard", "tiny", "--manifest", "--html", "page.html", "--store", "first.db")

    refused = invoke("reproduce", "page.html", "--store", "again.db", code=2)
    assert "needs the plug-in mine.py" in refused and not (tmp_path / "again.db").exists()
    # Folders of the machine are not published, so files are named again. By their contents they are the same.
    assert str(tmp_path) not in (tmp_path / "leaderboard" / "manifest.json").read_text()
    refused = invoke("reproduce", "page.html", "model.name=tiny", "--plugin", "mine.py", "--store", "again.db", code=2)
    assert "does not hold: data.source=<local>/pairs.jsonl. Name" in " ".join(refused.split())
    assert not (tmp_path / "again.db").exists()
    (tmp_path / "pairs.jsonl").rename(tmp_path / "moved.jsonl")
    files = ("model.name=tiny", "data.source=moved.jsonl")
    said = invoke("reproduce", "page.html", *files, "--plugin", "mine.py", "--store", "again.db")
    assert "identical: every recorded number and every sample is equal." in said
    # Run again, it trains nothing: all cells are recorded.
    again = answer("reproduce", "leaderboard/manifest.json", *files, "--plugin", "mine.py", "--store", "again.db")
    assert again["grade"] == "identical" and again["stages"] == {}

    (tmp_path / "changed.py").write_text(LOSS.replace("(1 -", "(2 -"))
    LOSSES._entries.pop("mine")  # as in a process of its own
    said = answer("reproduce", "page.html", *files, "--plugin", "changed.py", "--store", "other.db", code=1)
    assert said["grade"] == "differs" and next(iter(said["stages"])) == "training"
    assert said["stages"]["training"].startswith(
        "The training of mine seed 0 differs from step 1 on; 2 of 6 cells differ"
    )
    assert any(fact.startswith("code of mine: ") for fact in said["facts"])
    assert any(fact.startswith("plug-ins: ") for fact in said["facts"])


@pytest.mark.slow
def test_on_the_pocket_task_threads_and_losses(tmp_path):
    """As users run it: each command in a process of its own, with a number of threads of its own."""
    (tmp_path / "mine.py").write_text(LOSS)
    (tmp_path / "e.yaml").write_text(POCKET)

    def plo(threads, *arguments):
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PLO_HOME": str(tmp_path / f"home-{threads}")}
        command = [sys.executable, "-m", "plo", *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert plo(1, "compare", "e.yaml").returncode == 0
    assert plo(1, "leaderboard", "small", "--manifest").returncode == 0
    reproduce = ("reproduce", "leaderboard/manifest.json", "--json", "--plugin", "mine.py")
    same = plo(1, *reproduce, "--store", "same.db")
    assert same.returncode == 0 and json.loads(same.stdout)["grade"] == "identical", same.stdout + same.stderr
    threads = plo(2, *reproduce, "--store", "threads.db")
    found = json.loads(threads.stdout)
    assert threads.returncode == 0 and found["grade"] in ("identical", "same within seed noise"), found
    assert "hardware threads: 1 -> 2" in found["facts"]
    (tmp_path / "mine.py").write_text(LOSS.replace("(1 -", "(2 -"))
    changed = plo(1, *reproduce, "--store", "changed.db")
    found = json.loads(changed.stdout)
    assert changed.returncode == 1 and next(iter(found["stages"])) == "training", found
