"""The README's own loss, registered and compared by the README's own commands (on a tiny model)."""

import re
import shlex
from pathlib import Path

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
