"""The commands that compute: `verify` tries a loss, `scores` makes token weights, `compare` trains."""

import gc
from pathlib import Path
from typing import Annotated

import typer

from plo.cli.complete import name_argument, name_option
from plo.cli.overrides import read_experiment, sort_settings, split, split_files
from plo.cli.parameters import Address, EngineName, Json, Plugins, Settings, Store, Workers
from plo.cli.shared import console, load_plugins, log, silence_libraries, terminal_progress

HELD = 3  # exit code of `run-cell` where another process is doing the cell


def verify(
    loss: Annotated[
        str | None,
        name_argument(
            "losses", "LOSS", 'Loss to try: dpo, "bpo(lam=0.5)", or one in a file, "my_loss.py:my_loss(beta=0.2)".'
        ),
    ] = None,
    generator: Annotated[
        str | None,
        name_option("generators", 'Bregman generator to try, alone or in LOSS: kliep, "sba(lam=0.5)", my_h.py:my_h.'),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Try every registered loss, and show the results as a matrix.")
    ] = False,
    plugin: Plugins = [],  # noqa: B006
    as_json: Json = False,
):
    """Try a loss without a model: gradient, invariances, extremes, and the policy it recovers.

    The exit code is 1 if a check fails.

    Examples:
        plo verify my_loss.py:my_loss
        plo verify "bpo(lam=0.5)" --generator kliep
    """
    if [every, loss is not None or generator is not None].count(True) != 1:
        raise typer.BadParameter("give LOSS, --generator or both, or --all")
    load_plugins(plugin)
    from plo.cli.verify_report import print_json, print_matrix, print_report
    from plo.losses import LOSSES
    from plo.scorers import RECIPES, get_loss
    from plo.verify import verify, verify_generator
    from plo.verify.load import load_loss

    if every:
        reports = [verify(get_loss(name), labels=False) for name in sorted([*LOSSES.names(), *RECIPES.names()])]
    elif loss is None:
        reports = [verify_generator(load_loss("bpo", generator))]
    else:
        reports = [verify(load_loss(loss, generator, get_loss))]
    if as_json:
        print_json(reports)
    elif every:
        print_matrix(reports)
    else:
        print_report(reports[0])
    if not all(report.passed for report in reports):
        raise typer.Exit(1)


def scores(
    scorer: Annotated[
        str, name_argument("scorers", "SCORER", 'Token scorer, such as "subsample" or "position_decay(gamma=0.9)".')
    ],
    arguments: Settings = [],  # noqa: B006
    count: Annotated[int, typer.Option("--pairs", min=1, help="Number of training pairs to show, the first ones.")] = 3,
    page: Annotated[
        Path | None, typer.Option("--html", help="Write an HTML page to this file rather than print tables.")
    ] = None,
    plugin: Plugins = [],  # noqa: B006
):
    """Compute the token weights of an experiment's training pairs, and show some.

    The weights are kept, and `plo compare` uses them.

    Examples:
        plo scores position_decay gamma=0.9 data.limit=100
        plo scores attention_judge experiment.yaml --html page.html
    """
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

    scored, tokenizer = score_pairs(experiment, configured, terminal_progress())
    pairs, weights = zip(*scored[:count], strict=True)
    if page is not None:
        write_html(page, pairs, tokenizer, weights, f"Token weights: {configured.name}")
        log.info(f"Written to {page}.")
        return
    for table in to_tables(pairs, tokenizer, weights):
        console.print(table, highlight=False)
        console.print()


def compare(
    arguments: Settings = [],  # noqa: B006
    loss: Annotated[
        list[str],
        name_option(
            "losses",
            'Loss to compare: dpo, "dpo + 0.2*sft", one that a file registers, "my_loss.py:my_loss(beta=0.2)"; repeatable.',
        ),
    ] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Seed of every loss; repeatable.")] = [],  # noqa: B006
    data: Annotated[str | None, typer.Option(help="Data source, file, folder or hub data set.")] = None,
    model: Annotated[str | None, typer.Option(help="'embedded', 'pocket', local folder or hub name.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what would run and what is finished, as plo plan --no-measure does."),
    ] = False,
    plugin: Plugins = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Folder to write checkpoints and trained models to.")] = None,
    store: Store = None,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
):
    """Train every loss with every seed on one model and data set; run again, it continues where it stopped.

    Several of these commands at once, on one machine or many, share the cells of one store.

    Examples:
        plo compare experiment.yaml dpo.beta=0.2 tuning.trials=8
        plo compare experiment.yaml --engine ray --address auto
        plo compare --data pocket --loss my_loss.py:my_loss
    """
    loss, files = split_files(loss)
    plugin = list(dict.fromkeys([*plugin, *files]))
    flags = {"data": data, "model": model, "out": out, "store": store, "losses": loss, "seeds": seed, "plugins": plugin}
    experiment = read_experiment(arguments, flags)
    if not dry_run:
        return run(experiment, engine, workers, address)
    from plo.cli.plan import show

    show(experiment)


def run(experiment, engine: str = "local", workers: int | None = None, address: str | None = None) -> None:
    """Run a comparison, and exit with code 1 if a cell failed."""
    silence_libraries()
    from plo.distributed import is_main
    from plo.experiment.engines import get_engine
    from plo.experiment.matrix import compare

    gc.freeze()  # what imports made is no garbage, and every cell would look through it
    outcome = compare(experiment, terminal_progress(), engine=get_engine(engine, workers, address))
    if outcome.failed and is_main():  # a launcher ends all processes when the first one leaves with an error
        log.error("%s cells failed: %s", len(outcome.failed), ", ".join(outcome.failed))
        raise typer.Exit(1)


def run_cell(
    experiment: Annotated[Path, typer.Argument(metavar="FILE", help="Experiment file.")],
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of the unit, the beginning of it, or its name.")],
    arguments: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE", help="Settings that override the file's.")
    ] = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
    store: Store = None,
):
    """Do one unit of a comparison: a cell, a trial, what cells need first, or the evaluations of a trained cell.

    Exit code: 0 if the unit is finished, 1 if it failed, 3 if another process is doing it, 75 if a signal interrupted it: then
    the same command goes on from the last checkpoint.

    Examples:
        plo run-cell experiment.yaml "dpo seed 0"
        plo run-cell experiment.yaml 3f9c2a71
    """
    config = read_experiment([str(experiment), *arguments], {"plugins": plugin, "store": store})
    silence_libraries()
    from plo.experiment.session import run_unit
    from plo.interrupt import START_AGAIN, Interrupted

    try:
        outcome = run_unit(config, key, terminal_progress())
    except Interrupted:
        raise typer.Exit(START_AGAIN) from None
    if outcome.state != "done":
        log.warning(outcome.reason)
        raise typer.Exit(HELD if outcome.state == "held" else 1)
