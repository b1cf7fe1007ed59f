"""Parameters that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

JUDGES = "openai:MODEL@URL (without @URL the default provider), hf:FOLDER, reward:FOLDER, gold:NAME, replay:FILE."

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
JudgeCalls = Annotated[int | None, typer.Option(min=1, help="Maximum number of judge calls in this launch.")]
JudgeMoney = Annotated[
    float | None, typer.Option(help="Maximum cost of the judge calls, in the currency of its prices.")
]
Plugins = Annotated[list[Path], typer.Option("--plugin", help="Python file that registers losses etc.; repeatable.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show only results, warnings and errors.")]
Settings = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE|KEY=VALUE",
        help="Experiment file; settings that override it (train.lr=1e-4; plo settings lists them); and hyper-parameters "
        "(beta=0.2 for every loss that has it, dpo.beta=0.2 for one).",
    ),
]
Store = Annotated[str | None, typer.Option(help="MLflow tracking URI, or SQLite file. Default: plo.db.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Show debugging messages, tracebacks and those of libraries.")]
