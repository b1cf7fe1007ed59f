"""The commands and Python of README and docs, run in order as a reader runs them, on a tiny model."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from plo.cli import app
from plo.config import load_experiment
from plo.experiment.plan import plan_comparison
from plo.tracking import Tracker

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'^```(\w+)(?: title="(.+?)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
PAGES = [
    "README.md",
    "docs/tutorial.md",
    *(p.relative_to(ROOT).as_posix() for p in sorted(ROOT.glob("docs/guides/*.md"))),
]
# tests/trl/test_script.py runs the Python of this page.
ELSEWHERE = ["docs/guides/trl.md"]

# Commands that are not run here. Those of plo are parsed: command, options and arguments exist.
NOT_RUN = {
    r"make ": "a target of the Makefile, which exists",
    r"pip install|apt-get install|\. \.venv": "installs",
    r"mlflow (ui|server)|^tensorboard|postgresql|^su postgres|http://server": "a server: tests/conftest.py starts them",
    r"pytest .*-m slow": "minutes",
    r"accelerate launch": "several processes: tests/backbone/test_launch.py",
    r"openai:|org/|outputs\.json|http://server": "a server or the hub",
    r"pocket\.yaml|leaderboard (which|rounds)": "minutes: tests/experiment/test_plan.py, test_tuning.py, test_power.py and test_rounds.py",
    r"--workers|--engine|one process a GPU|plo run-cell|^ray |scontrol|code=|^exit |benchmarks/kills": "several processes, a cluster or a "
    "scheduler: tests/experiment/test_engines.py and test_slurm.py",
    r"--within": "measures: tests/experiment/test_within.py",
    r"best_of=": "needs data with a known reward, tests/experiment/test_best_of.py",
    r"^vllm serve": "a GPU",
    r"plo eval hh-first|plo correct hh-first|plo head-to-head|plo leaderboard models|leaderboard first --(html|metric)": "a comparison that the page has from another one",
}
# Comparisons that are planned here (--dry-run), not trained: long ones, and one that a page has trained once already.
PLANNED = r"docs/token_level\.yaml|data\.limit=400|scorer=first_half"
TRAINED = 2  # losses of an experiment file that are trained here, the first ones


@pytest.fixture
def small(tiny, tmp_path):
    """Settings that make a comparison take seconds; those of an experiment file, by section."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    experiment = tiny()
    return {
        "model": experiment.model.name,
        "data": {"source": experiment.data.source, "eval_fraction": 0.3},
        "train": {"batch_size": 4, "steps": 1},
        "evaluation": {"prompts": 2, "samples": 2, "max_new_tokens": 3, "pairs": 4},
        "eval_at": [1.0],
        "seeds": [0],
    }


def test_tutorial(small):
    run("docs/tutorial.md", small)
    cells = {cell.name for cell in Tracker(create=False).cells("first")}
    assert cells >= {"reference seed 0", "sft seed 0", "hinge2 seed 0", "dpo seed 0", "hinge2(beta=0.5) seed 0"}


@pytest.mark.parametrize("page", [page for page in PAGES if page not in (*ELSEWHERE, "docs/tutorial.md")])
def test_page(page, small):
    run(page, small)


def run(page, small):
    """Write the files of a page, run its commands and its Python, in the order of the page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    namespace = {"__name__": "page"}
    for language, title, block in BLOCK.findall(text):
        if title:
            save(title, block, small)
        elif language == "python":
            exec(compile(block, page, "exec"), namespace)
        elif language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                run_command(line, small, page)


def save(title, text, small):
    """Write a file that a page shows. An experiment is planned with all its losses; then it is written smaller, with two."""
    Path(title).write_text(text, encoding="utf-8")
    if title.endswith(".yaml"):
        load_experiment(Path(title))
        settings = json.loads(json.dumps(yaml.safe_load(text) | small).replace("org/small", small["model"]))
        plan_comparison(load_experiment(None, settings))
        if isinstance(settings["losses"], list):
            settings["losses"] = settings["losses"][:TRAINED]
        Path(title).write_text(json.dumps(settings), encoding="utf-8")


def run_command(line, small, page):
    words = shlex.split(line, comments=True)
    reason = next((why for pattern, why in NOT_RUN.items() if re.search(pattern, line)), None)
    if not words:
        return
    if "plo" in words:
        arguments = words[words.index("plo") + 1 :]
        if reason:
            parse(arguments, line)
            return
        planned = ["--dry-run"] if re.search(PLANNED, line) else ["--no-measure"] if arguments[0] == "plan" else []
        result = CliRunner().invoke(app, arguments + smaller(arguments, small) + planned)
        assert result.exit_code == 0, f"{page}: {line}\n{result.output}"
    elif words[0] == "pytest" and not reason:
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.getcwd()}"}
        subprocess.run([sys.executable, "-m", *words], check=True, env=environment)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), (
            f"{page}: no target {words[1]}"
        )
    else:
        assert reason, f"{page}: {line} is neither run nor listed in NOT_RUN"


def smaller(arguments, small):
    """Settings over a command of a page, for those that train or load a model."""
    if (
        arguments[0] == "reproduce"
    ):  # a page has no paths of the files that stand here for the embedded model and its pairs
        return [f"model.name={small['model']}", f"data.source={small['data']['source']}"]
    if arguments[0] not in ("compare", "plan", "scores") or any(word.endswith(".yaml") for word in arguments):
        return []
    given = {word.partition("=")[0] for word in arguments}
    settings = [f"{name}={json.dumps(small[name])}" for name in ("eval_at", "seeds") if name not in given]
    settings += [f"{part}.{name}={value}" for part in ("train", "evaluation") for name, value in small[part].items()]
    settings += [f"model={small['model']}", f"data.eval_fraction={small['data']['eval_fraction']}"]
    return settings + ([] if "--data" in arguments else [f"data.source={small['data']['source']}"])


def parse(arguments, line):
    """Refuse a command with options or arguments that it does not have."""
    group = get_command(app)
    name, command, rest = group.resolve_command(group.make_context("plo", [], resilient_parsing=True), arguments)
    command.make_context(name, rest)
