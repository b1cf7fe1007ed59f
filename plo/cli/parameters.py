"""Parameters that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

JUDGES = "pinned:NAME, openai:MODEL@URL (without @URL the default provider), hf:FOLDER, reward:FOLDER, gold:NAME, replay:FILE."

Address = Annotated[
    str | None, typer.Option(help="Address of a Ray cluster, such as auto; without it one is started on this machine.")
]
EngineName = Annotated[
    str, typer.Option("--engine", help="What runs the cells: local (this machine) or ray (a Ray cluster).")
]
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
Workers = Annotated[
    int | None,
    typer.Option(
        min=1, help="Number of cells at a time. Default: one a GPU, or as many as the Ray cluster has room for."
    ),
]
