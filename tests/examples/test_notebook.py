"""The notebook of examples/ runs from its first cell to its last, as a reader runs it in a new folder."""

import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
SIZES = "PAIRS, STEPS, SEEDS = 1280, 40, [0, 1, 2]"


def source():
    """The notebook's code, its cells one after the other."""
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def run(code, folder):
    """Run code as a file in an empty folder, with a cache of its own, and return what it printed."""
    (folder / "notebook.py").write_text(code)
    environment = {
        "PYTHONPATH": str(ROOT),
        "PLO_HOME": str(folder / "home"),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "notebook.py"]
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("sizes", ["PAIRS, STEPS, SEEDS = 64, 2, [0]", pytest.param(SIZES, marks=pytest.mark.slow)])
def test_the_notebook_prints_a_verdict_and_the_table(sizes, tmp_path):
    assert source().count(SIZES) == 1
    said = run(source().replace(SIZES, sizes), tmp_path)
    number = r"[+-]\d+\.\d\d" if sizes == SIZES else r"[+-](?:\d+\.\d\d|nan)"  # two steps may change no text
    assert re.search(rf"hinge2 - dpo: {number} \[{number}, {number}\], (better|worse|equivalent|undecided)", said)
    assert re.search(r"\| hinge2 \|", said) and "# Leaderboard" in said


def test_every_cell_is_python_and_holds_no_output():
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            ast.parse("".join(cell["source"]))
            assert cell["outputs"] == [] and cell["execution_count"] is None


def test_next_to_a_clone_it_installs_plo_unless_it_is_installed(tmp_path, monkeypatch):
    """As in Colab, where the folder of the clone has the name of the package."""
    (tmp_path / "plo" / "plo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, check: ran.append(command))
    first = next(cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code")
    exec("".join(first["source"]), {})
    assert ran == []
    error = importlib.metadata.PackageNotFoundError
    monkeypatch.setattr(importlib.metadata, "version", lambda name: (_ for _ in ()).throw(error(name)))
    exec("".join(first["source"]), {})
    assert ran == [[sys.executable, "-m", "pip", "install", "-q", "./plo[train,report]"]]
