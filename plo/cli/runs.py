"""Trying a loss, computing token weights, training: `verify`, `scores`, `compare`."""

from pathlib import Path
from typing import Annotated

import typer

from plo.cli.complete import complete_names
from plo.cli.overrides import check_losses_given, sort_settings, split, with_hyper_parameters
from plo.cli.shared import Json, Plugins, console, load_plugins, log, progress_console, silence_libraries


def verify(
    loss: Annotated[
        str | None,
        typer.Argument(
            help='A loss, "dpo", "bpo(lam=0.5)", or one of a file, "my_loss.py:my_loss(beta=0.2)".',
            autocompletion=complete_names("losses"),
        ),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(
            help='A Bregman generator, "kliep", "sba(lam=0.5)", "my_h.py:my_h"; for LOSS, or by itself.',
            autocompletion=complete_names("generators"),
        ),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every registered loss, as a matrix.")] = False,
    plugin: Plugins = [],  # noqa: B006
    as_json: Json = False,
):
    """Try a loss without a model: gradient, invariances, extremes, and the policy it recovers. Exit code 1: failed."""
    if [every, loss is not None or generator is not None].count(True) != 1:
        raise typer.BadParameter("give a LOSS, --generator NAME or both, or --all")
    load_plugins(plugin)
    from plo.losses import LOSSES, get_loss
    from plo.verify import verify, verify_generator
    from plo.verify.load import load_loss
    from plo.verify.report import as_json as to_json
    from plo.verify.report import print_matrix, print_report

    if every:
        reports = [verify(get_loss(entry.name), labels=False) for entry in LOSSES]
    elif loss is None:
        reports = [verify_generator(load_loss("bpo", generator))]
    else:
        reports = [verify(load_loss(loss, generator))]
    if as_json:
        print(to_json(reports))
    elif every:
        print_matrix(reports, console)
    else:
        print_report(reports[0], console)
    if not all(report.passed for report in reports):
        raise typer.Exit(1)


def scores(
    scorer: Annotated[
        str,
        typer.Argument(help='A token scorer, "position_decay(gamma=0.9)".', autocompletion=complete_names("scorers")),
    ],
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[EXPERIMENT.yaml] [KEY=VALUE]...",
            help="An experiment file, settings over it, and hyper-parameters of the scorer.",
        ),
    ] = [],  # noqa: B006
    count: Annotated[
        int, typer.Option("--pairs", min=1, help="How many pairs to show, the first of the training data.")
    ] = 3,
    page: Annotated[Path | None, typer.Option("--html", help="Write a page here instead of tables.")] = None,
    plugin: Plugins = [],  # noqa: B006
):
    """Compute the token weights of an experiment's training pairs, which `plo compare` then finds made, and show some."""
    from plo.config import load_experiment
    from plo.scorers import get_scorer

    path, settings = split(arguments)
    known, hyper = sort_settings(settings)
    needed = {} if path else {"losses": ["dpo"]}  # an experiment has losses; none is trained here for its own sake
    experiment = load_experiment(path, {**needed, **({"plugins": plugin} if plugin else {}), **known})
    load_plugins(experiment.plugins)
    configured = get_scorer(scorer, **hyper)
    silence_libraries()
    from plo.experiment.workbench import score_pairs
    from plo.scorers.picture import to_tables, write_html

    scored, tokenizer = score_pairs(experiment, configured, progress_console())
    pairs, weights = zip(*scored[:count], strict=True)
    if page is not None:
        write_html(page, pairs, tokenizer, weights, f"Token weights: {configured.name}")
        log.info(f"Written to {page}.")
        return
    for table in to_tables(pairs, tokenizer, weights):
        console.print(table, highlight=False)
        console.print()


def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[EXPERIMENT.yaml] [KEY=VALUE]...",
            help="An experiment file; settings over it (train.lr=1e-4, data.limit=200); and hyper-parameters of "
            "its losses (beta=0.2 for every loss that has it, dpo.beta=0.2 for one).",
        ),
    ] = [],  # noqa: B006
    loss: Annotated[
        list[str],
        typer.Option(
            help='A loss, "dpo", "bpo(lam=0.5)", "dpo + 0.2*sft"; repeatable.', autocompletion=complete_names("losses")
        ),
    ] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="A seed; repeatable.")] = [],  # noqa: B006
    data: Annotated[str | None, typer.Option(help="Data source, file, folder or hub data set.")] = None,
    model: Annotated[str | None, typer.Option(help="'embedded', a local folder, or a hub name.")] = None,
    plugin: Plugins = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Folder of checkpoints and trained models.")] = None,
    store: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
):
    """Run losses x seeds on one model and data set; started again, it goes on where it was."""
    from plo.config import load_experiment

    path, settings = split(arguments)
    flags = {"data": data, "model": model, "out": out, "store": store, "losses": loss, "seeds": seed, "plugins": plugin}
    flags = {name: value for name, value in flags.items() if value}
    known, hyper = sort_settings(settings)
    if path is None:
        check_losses_given({**flags, **known}, hyper)
    experiment = load_experiment(path, {**flags, **known})
    load_plugins(experiment.plugins)
    experiment = with_hyper_parameters(experiment, hyper)
    run(experiment)


def run(experiment) -> None:
    """Run the comparison; exit code 1 where a cell failed."""
    silence_libraries()
    from plo.distributed import is_main
    from plo.experiment.matrix import compare

    outcome = compare(experiment, progress_console())
    if outcome.failed and is_main():  # a launcher ends all processes when the first one leaves with an error
        log.error("%s cells failed: %s", len(outcome.failed), ", ".join(outcome.failed))
        raise typer.Exit(1)
