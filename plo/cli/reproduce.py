"""The command `reproduce`: run a published comparison again, and say how far the numbers agree."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from plo.cli.overrides import sort_settings, split, with_hyper_parameters
from plo.cli.parameters import Address, EngineName, Json, Plugins, Store, Workers
from plo.cli.shared import console, load_plugins, log, silence_libraries, terminal_progress
from plo.terminal import say


def reproduce(
    file: Annotated[
        Path, typer.Argument(metavar="PAGE|MANIFEST", help="Page or manifest.json that plo leaderboard wrote.")
    ],
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE", help="Settings that differ here, such as data.path=/data/hh or model.name=DIR."
        ),
    ] = [],  # noqa: B006
    name: Annotated[str | None, typer.Option(help="Name of the new comparison. Default: NAME-again.")] = None,
    out: Annotated[Path, typer.Option(help="Folder to write checkpoints and trained models to.")] = Path("runs"),
    store: Store = None,
    plugin: Plugins = [],  # noqa: B006
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
    as_json: Json = False,
):
    """Run a published comparison again, and grade the result: identical, same within seed noise, or differs.

    Exit code: 0 if it is identical or the same within seed noise, 1 if it differs; the first stage that differs is named.
    Code is never taken from the page: name plug-ins with --plugin.

    Examples:
        plo reproduce page.html
        plo reproduce leaderboard/manifest.json --plugin my_loss.py --store again.db
    """
    from plo.leaderboards.digests import exact
    from plo.leaderboards.grade import grade
    from plo.leaderboards.manifest import manifest
    from plo.leaderboards.manifest_file import read_manifest, runnable

    recorded = read_manifest(file)
    settings, plugins = runnable(recorded, file, plugin)
    experiment = _experiment(settings, arguments, plugins, file, {"name": name, "store": store, "out": str(out)})
    silence_libraries()
    from plo.distributed import is_main
    from plo.experiment.engines import get_engine
    from plo.experiment.matrix import compare
    from plo.leaderboards import read
    from plo.tracking import Tracker

    outcome = compare(experiment, terminal_progress(), engine=get_engine(engine, workers, address))
    if not is_main():
        return
    tracker, table = Tracker(experiment.store, create=False), recorded["table"]
    key = next(one.key for one in tracker.comparisons() if one.run_id == outcome.parent)
    again = read(tracker, key, table["baseline"], primary=table["primary"], margin=table["margin"])
    found = grade(recorded, manifest(again))
    if as_json:
        said = {"grade": found.word, "metric": found.metric, "facts": found.facts, "stages": found.stages}
        rows = {name: asdict(row) | {"within_noise": row.within_noise} for name, row in found.rows.items()}
        print(json.dumps(exact({**said, "rows": rows}), indent=2))
    else:
        _print(found, experiment.name)
    if found.word == "differs":
        raise typer.Exit(1)


def _experiment(settings: dict[str, Any], arguments: list[str], plugins: list[Path], file: Path, own: dict[str, Any]):
    """Return the experiment of a manifest with the settings that differ here, its plug-ins loaded."""
    from plo.config import Experiment, TrainConfig, load_experiment
    from plo.leaderboards.manifest_file import check_local

    path, given = split(arguments)
    if path is not None:
        raise typer.BadParameter(f"{path} is no setting: write KEY=VALUE")
    known, hyper = sort_settings(given)
    check_local(settings, known, file)
    settings = {**Experiment.first_defaults, **settings, "plugins": [str(one) for one in plugins]}
    settings["train"] = {**TrainConfig.first_defaults, **settings.get("train", {})}
    own = {key: value for key, value in own.items() if value}
    experiment = load_experiment(None, {**settings, "name": f"{settings['name']}-again", **known, **own})
    load_plugins(experiment.plugins)
    return with_hyper_parameters(experiment, hyper)


def _print(found: Any, name: str) -> None:
    """Print a grade: the word, what differs in the circumstances, the stages, and the rows' equivalence."""
    from plo.leaderboards.grade import STAGES

    first = next(iter(found.stages), None)
    say(
        console, (found.word, {"identical": "green", "differs": "red"}.get(found.word, "yellow")), f": {found.sentence}"
    )
    if found.facts:
        say(console, "")
        say(console, "What differs in how it was made:")
        for fact in found.facts:
            say(console, f"- {fact}")
    if first is not None:
        say(console, "")
        for stage in STAGES:
            say(console, f"{stage:12} {found.stages.get(stage, 'equal')}")
    if first is not None and found.rows:
        say(console, "")
        say(
            console,
            f"{found.metric}: again minus recorded, mean over seeds with [90% interval for new seeds]; margin of seed noise",
        )
        for row, one in found.rows.items():
            within = "within" if one.within_noise else "not within"
            say(
                console,
                f"{row}: {one.difference:+.4g} [{one.low:+.4g}, {one.high:+.4g}], n = {one.seeds} seeds, margin {one.margin:.3g}: {within}",
            )
    log.info(f"The new runs are the comparison {name}.")
