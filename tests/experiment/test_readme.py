"""The README's own loss, registered and compared by the README's own commands (on a tiny model)."""

import json
import re
import shlex
from pathlib import Path

import yaml
from typer.testing import CliRunner

from plo.cli import app
from plo.tracking import Tracker

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def block(language, containing):
    return next(b for b in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL) if containing in b)


def test_the_readmes_loss_runs_as_the_readme_says(tiny, tmp_path):
    experiment = tiny()
    (tmp_path / "my_loss.py").write_text(block("python", "register_loss"))
    commands = [shlex.split(line, comments=True)[1:] for line in block("sh", "--plugin").splitlines()]
    small = [
        f"model={experiment.model.name}",
        f"data={experiment.data.source}",
        "data.eval_fraction=0.3",
        "eval_at=1.0",
    ]
    small += ["seeds=[0]", "evaluation.prompts=2", "max_new_tokens=3", "train.batch_size=4"]
    outputs = []
    for command in commands:
        result = CliRunner().invoke(app, command + (small if command[0] == "compare" else []))
        assert result.exit_code == 0, result.output
        outputs.append(result.output)
    assert "hinge2" in outputs[0]
    cells = {cell.name for cell in Tracker(create=False).cells("mine")}
    names = ("reference", "sft", "hinge2(beta=0.2)", "dpo", "dpo + 0.2*sft")
    assert cells == {f"{name} seed 0" for name in names}
    assert "| hinge2(beta=0.2) |" in outputs[-1]


def test_the_readmes_stages_and_scorer_run_as_the_readme_says(tiny, tmp_path):
    experiment = tiny()
    settings = yaml.safe_load(block("yaml", "stages:"))
    # The tiny model's window is too short for a judge's prompt, and it serves as the smaller oracle too.
    losses = json.dumps(settings["losses"]).replace("attention_judge", "first_half")
    settings["losses"] = json.loads(losses.replace("org/small", experiment.model.name))
    settings |= {"name": "staged", "seeds": [0], "eval_at": 1.0, "model": experiment.model.name}
    settings |= {"data": experiment.data.model_dump(mode="json"), "train": {"batch_size": 4}}
    settings |= {"evaluation": {"prompts": 2, "max_new_tokens": 3}}
    (tmp_path / "staged.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "my_scorer.py").write_text(block("python", "register_scorer"))
    plugin = ["--plugin", "my_scorer.py"]
    shown = CliRunner().invoke(
        app, ["scores", "first_half", "staged.yaml", "share=1.0", "--html", "page.html", *plugin]
    )
    assert shown.exit_code == 0, shown.output
    assert "fine" in Path("page.html").read_text()
    result = CliRunner().invoke(app, ["compare", "staged.yaml", *plugin])
    assert result.exit_code == 0, result.output
    tracker = Tracker(create=False)
    stages = [stage["name"] for stage in tracker.stages()]
    assert stages.count("sft") == 1 and stages.count("oracle") == 2  # the policy's own, and the smaller one
    assert {"scores random_scores", "scores first_half", "scores shuffled(of=first_half)"} <= set(stages)
    board = CliRunner().invoke(app, ["leaderboard", "staged"])
    assert "oracle ran once, for sepo(gamma=2): " in board.output
