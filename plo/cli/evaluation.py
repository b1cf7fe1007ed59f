"""Evaluating what is trained, and judging the judge: `eval`, `judge-check`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from plo.cli.complete import complete_names
from plo.cli.overrides import split
from plo.cli.shared import Json, Plugins, can_ask, console, load_plugins, log, progress_console, silence_libraries
from plo.terminal import say


def evaluate(
    what: Annotated[
        str,
        typer.Argument(
            help="A comparison's name or a cell's run id; 'embedded', a folder (model or adapter) or a hub name; a file of "
            "outputs; server:MODEL@URL.",
        ),
    ],
    options: Annotated[
        list[str],
        typer.Argument(metavar="[EVALUATION.OPTION=VALUE]...", help="hh.prompts=100, alpaca_eval.data=FOLDER, ..."),
    ] = [],  # noqa: B006
    suite: Annotated[
        str,
        typer.Option(
            help="Evaluations of a model, with commas: alpaca_eval,hh,tldr,lm_eval.",
            autocompletion=complete_names("evaluations"),
        ),
    ] = "",
    judge: Annotated[
        str | None,
        typer.Option(
            help="Judge of the answers: openai:MODEL@URL (without @URL the default provider; options as openai:MODEL(price_in=2)), hf:FOLDER, reward:FOLDER, gold:NAME, replay:FILE.",
            autocompletion=complete_names("judges"),
        ),
    ] = None,
    judge_calls: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of judge calls in this launch.")
    ] = None,
    judge_money: Annotated[
        float | None,
        typer.Option(help="Maximum cost of the judge's calls in this launch, in the currency of its prices."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="Model to compare WHAT with, named in the same way; for models that plo did not train."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Comparison to record in, for models that plo did not train. Default: eval.")
    ] = None,
    seed: Annotated[
        list[int], typer.Option(help="Seed of the sampling, for models that plo did not train; repeatable.")
    ] = [],  # noqa: B006
    batch_size: Annotated[int | None, typer.Option(min=1, help="Number of sequences to sample at a time.")] = None,
    plugin: Plugins = [],  # noqa: B006
    store: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
):
    """Evaluate trained cells, any model, or a file of outputs; recorded, and what is recorded already is not run again."""
    from plo.config import ConfigError, EvaluationConfig

    path, settings = split(options)
    names = [part.strip() for part in suite.split(",") if part.strip()]
    if path is not None or not names:
        raise ConfigError(f"{path or 'no --suite'}: write plo eval {what} --suite hh,tldr [hh.prompts=100 ...].")
    chosen: dict[str, dict[str, Any]] = {part: {} for part in names}
    for key, value in settings.items():
        part, _, option = key.partition(".")
        if part not in chosen or not option:
            raise ConfigError(f"{key}={value}: write EVALUATION.OPTION=VALUE, for one of --suite {suite}.")
        chosen[part][option] = value
    changes = {"judge": judge, "judge_calls": judge_calls, "judge_money": judge_money, "batch_size": batch_size}
    changes = {setting: value for setting, value in changes.items() if value is not None}
    changes["suite"] = tuple({part: given} for part, given in chosen.items())
    load_plugins(plugin)
    silence_libraries()
    from plo.experiment.evaluations import evaluate_anything, evaluate_recorded, find
    from plo.tracking import Tracker

    if recorded := find(what, store):
        tracker, comparison, only = recorded
        if against or name or seed:
            raise ConfigError(
                f"{what} is recorded in the comparison {comparison.name}: --against, --name and --seed are for models "
                f"that plo did not train. Its cells have their own reference, name and seeds."
            )
        failed = evaluate_recorded(
            comparison, only, changes, tracker, progress_console(), plugin, typer.confirm if can_ask() else None
        )
    else:
        config = EvaluationConfig.of(changes, f"The settings of plo eval {what}")
        failed = evaluate_anything(
            what, against, name or "eval", config, seed or [0], Tracker(store), progress_console()
        )
    if failed:
        log.error("%s evaluations failed: %s", len(failed), ", ".join(failed))
        raise typer.Exit(1)


def judge_check(
    judge: Annotated[
        str,
        typer.Argument(
            help="The judge to check: openai:MODEL@URL (without @URL the default provider), hf:FOLDER, reward:FOLDER, gold:NAME, replay:FILE.",
            autocompletion=complete_names("judges"),
        ),
    ],
    pairs: Annotated[
        Path | None,
        typer.Argument(
            help="Pairs with gold labels: LLMBar's JSON, or JSON lines or CSV with prompt, a, b, gold (1: b is better) or any "
            "preferences that plo trains on (HH, TL;DR, messages). Of replay:FILE without it: the file's own."
        ),
    ] = None,
    template: Annotated[str, typer.Option(help="The judge's prompt, by name or file.")] = "instruction",
    limit: Annotated[int | None, typer.Option(min=1, help="Pairs at most, the first ones.")] = None,
    retest: Annotated[int, typer.Option(min=0, help="How many pairs are asked again.")] = 0,
    judge_calls: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of judge calls in this launch.")
    ] = None,
    judge_money: Annotated[
        float | None,
        typer.Option(help="Maximum cost of the judge's calls in this launch, in the currency of its prices."),
    ] = None,
    plugin: Plugins = [],  # noqa: B006
    store: Annotated[str | None, typer.Option(help="MLflow tracking URI, in which the card is recorded.")] = None,
    as_json: Json = False,
):
    """How far a judge can be trusted: agreement with gold labels, position and length bias, consistency, with intervals.

    Exit code 1: no answer could be read.
    """
    from plo.config import ConfigError, EvaluationConfig

    if pairs is None and not judge.startswith("replay:"):
        raise ConfigError(
            f"plo judge-check {judge} PAIRS: give a file of pairs with gold labels, such as LLMBar's JSON."
        )
    load_plugins(plugin)
    silence_libraries()
    from plo.evals.judges.judge import read_spec
    from plo.experiment.evaluations import measure_judge
    from plo.tracking import Tracker

    file = pairs or Path(read_spec(judge)[0].removeprefix("replay:"))
    settings = {"judge": judge, "judge_calls": judge_calls, "judge_money": judge_money}
    config = EvaluationConfig.of(settings, f"The settings of plo judge-check {judge}")
    card = measure_judge(config, file, template, limit, retest, Tracker(store), progress_console())
    if as_json:
        print(json.dumps(card.to_dict(), indent=2))
    else:
        say(console, "\n".join(card.lines()))
    if card.unreadable_share.value == 1:  # no verdict at all
        raise typer.Exit(1)
