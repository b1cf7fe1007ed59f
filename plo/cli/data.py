"""The command `data`: sample training pairs from a policy, and exchange pairs with TRL."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from plo.cli.overrides import sort_settings, split
from plo.cli.parameters import Plugins, Store
from plo.cli.shared import load_plugins, log, silence_libraries, terminal_progress
from plo.cli.tables import print_rows

COLUMNS = "data.columns."  # beginning of the settings that `import` takes
READ = {"sample": ("--out", "--answers"), "export": ("--out", "--held-out", "--cell"), "import": ("--out",)}


def data(
    action: Annotated[
        Literal["sample", "export", "import"], typer.Argument(metavar="ACTION", help="sample, export or import.")
    ],
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|KEY=VALUE",
            help="Experiment file and settings over it (data.sample.k=8); to import, a file, folder or hub data set "
            "instead, and data.columns.prompt=question and the like.",
        ),
    ] = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="File for the training pairs: .jsonl or .parquet.")] = None,
    held_out: Annotated[Path | None, typer.Option(help="File for the held-out pairs of export.")] = None,
    answers: Annotated[Path | None, typer.Option(help="File for all answers of sample, with their scores.")] = None,
    cell: Annotated[
        str | None,
        typer.Option(help='Export the pairs that a cell is trained on, such as "dpo @ data=iterated(2) seed 0".'),
    ] = None,
    plugin: Plugins = [],  # noqa: B006
    store: Store = None,
):
    """Sample and score answers of a policy as training pairs, or exchange pairs with TRL.

    `sample` does what `data.origin: sampled` does first, for every seed. `export` writes an experiment's pairs in TRL's
    preference format (prompt, chosen, rejected; texts or messages), `import` checks pairs of others and writes them so.

    Examples:
        plo data sample experiment.yaml seeds=0 data.sample.k=8 --out pairs.jsonl
        plo data export experiment.yaml --out train.jsonl --held-out test.jsonl
        plo data import org/preferences --out pairs.jsonl
    """
    _check_options(action, {"--out": out, "--held-out": held_out, "--answers": answers, "--cell": cell})
    load_plugins(plugin)
    silence_libraries()
    if action == "import":
        return _import(arguments, out)
    experiment = _experiment(arguments, plugin, store)
    if action == "sample":
        return _sample(experiment, out, answers)
    _export(experiment, out, held_out, cell)


def _check_options(action: str, given: dict[str, Any]) -> None:
    """Refuse options that an action does not read, and files that cannot be written, before anything is sampled."""
    from plo.data.exchange import check_suffix

    for name, value in given.items():
        if value is not None and name not in READ[action]:
            raise typer.BadParameter(f"{name} has no effect with {action}, which reads {', '.join(READ[action])}")
        if isinstance(value, Path):
            check_suffix(value)


def _experiment(arguments: list[str], plugins: list[Path], store: str | None) -> Any:
    """Return the experiment; without a file it needs no losses, as none is trained."""
    from plo.config import load_experiment

    path, settings = split(arguments)
    known, hyper = sort_settings(settings)
    if hyper:
        raise typer.BadParameter(f"there is no setting {', '.join(hyper)}: plo settings lists them")
    given = {"plugins": plugins, "store": store}
    experiment = load_experiment(
        path,
        {**({} if path else {"losses": ["dpo"]}), **{name: value for name, value in given.items() if value}, **known},
    )
    load_plugins(experiment.plugins)
    return experiment


def _sample(experiment: Any, out: Path | None, answers: Path | None) -> None:
    from plo.data.exchange import to_trl, write_records
    from plo.experiment.sampling import answer_records, sample_pairs

    if (out or answers) and len(experiment.seeds) > 1:
        raise typer.BadParameter(
            f"a file holds the pairs of one seed, and there are {len(experiment.seeds)}: add seeds=0"
        )
    rows = []
    for seed, drawn, pairs in sample_pairs(experiment, terminal_progress()):
        frame = drawn.frame
        rows.append(
            {
                "seed": str(seed),
                "prompts": str(len(drawn.prompts)),
                "answers": str(len(frame)),
                "scored by": drawn.oracle,
            }
            | {"oracle queries": str(drawn.queries), "score": f"{frame['score'].mean():.3f}", "pairs": str(len(pairs))}
        )
        if out:
            log.info("Written to %s: %d pairs.", out, write_records(out, [to_trl(p.row) for p in pairs if p.row]))
        if answers:
            log.info("Written to %s: answers to %d prompts.", answers, write_records(answers, answer_records(drawn)))
    print_rows(rows)


def _export(experiment: Any, out: Path | None, held_out: Path | None, cell: str | None) -> None:
    from plo.data.exchange import to_trl, write_records
    from plo.experiment.sampling import pairs_of_cell, pairs_of_source

    if not (out or held_out):
        raise typer.BadParameter("name the file for the training pairs, --out, or for the held-out ones, --held-out")
    if cell and held_out:
        raise typer.BadParameter("--held-out has no effect with --cell: the held-out pairs are the data source's")
    progress = terminal_progress()
    train, test = (pairs_of_cell(experiment, cell, progress), []) if cell else pairs_of_source(experiment)
    for path, pairs in ((out, train), (held_out, test)):
        if path:
            count = write_records(path, [to_trl(pair.row) for pair in pairs if pair.row])
            log.info("Written to %s: %d pairs.", path, count)


def _import(arguments: list[str], out: Path | None) -> None:
    from plo.data import DropReport, read_rows
    from plo.data.exchange import to_trl, write_records

    path, settings = split(arguments)
    columns = {key.removeprefix(COLUMNS): value for key, value in settings.items() if key.startswith(COLUMNS)}
    if path is None or out is None or len(columns) < len(settings):
        raise typer.BadParameter(
            "give one file, folder or hub data set, and the file to write: --out pairs.jsonl; and names of columns that "
            f"differ, such as {COLUMNS}prompt=question"
        )
    report = DropReport(str(path))
    rows = read_rows(str(path), None, {}, report, columns)
    report.enforce(False)
    for note in report.notes:
        log.info("%s", note)
    if report.total:
        log.info("%s", report)
    log.info("Written to %s: %d pairs.", out, write_records(out, map(to_trl, rows)))
