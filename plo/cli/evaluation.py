"""The commands that evaluate models and check judges: `eval` and `judge-check`."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from plo.cli.complete import name_argument, name_option
from plo.cli.overrides import split
from plo.cli.parameters import JUDGES, Json, JudgeCalls, JudgeMoney, Plugins, Store
from plo.cli.shared import console, load_plugins, log, silence_libraries, terminal_progress
from plo.prices import price_line
from plo.terminal import say


def evaluate(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="Name of a comparison, run id of a cell, 'embedded', folder of a model or adapter, hub name, file of "
            "outputs, or server:MODEL@URL.",
        ),
    ],
    options: Annotated[
        list[str],
        typer.Argument(metavar="EVALUATION.OPTION=VALUE", help="Options of the evaluations, such as hh.prompts=100."),
    ] = [],  # noqa: B006
    suite: Annotated[
        str, name_option("evaluations", "Evaluations to run, separated by commas: alpaca_eval,hh,tldr,lm_eval.")
    ] = "",
    judge: Annotated[
        str | None,
        name_option("judges", f"Judge of the answers, with options as in openai:MODEL(price_in=2): {JUDGES}"),
    ] = None,
    judge_calls: JudgeCalls = None,
    judge_money: JudgeMoney = None,
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
    sampler: Annotated[
        str | None,
        typer.Option(help="What samples: transformers (the default), vllm, 'vllm(OPTION=VALUE)' or server:MODEL@URL."),
    ] = None,
    plugin: Plugins = [],  # noqa: B006
    store: Store = None,
):
    """Evaluate trained cells, any model or a file of outputs, and record the results; skip what is recorded already.

    Examples:
        plo eval hh-first --suite hh,tldr --judge hf:org/judge hh.prompts=100
        plo eval org/model --against org/base --suite hh --judge openai:MODEL
        plo eval hh-first --suite diversity --sampler vllm
    """
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
    changes["sampler"] = sampler
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
        confirm = typer.confirm if sys.stdin.isatty() and sys.stdout.isatty() else None
        failed = evaluate_recorded(comparison, only, changes, tracker, terminal_progress(), plugin, confirm)
    else:
        config = EvaluationConfig.of(changes, f"The settings of plo eval {what}")
        failed = evaluate_anything(what, against, name or "eval", config, seed or [0], Tracker(store))
    if failed:
        log.error("%s evaluations failed: %s", len(failed), ", ".join(failed))
        raise typer.Exit(1)


def judge_check(
    judge: Annotated[str, name_argument("judges", "JUDGE", f"Judge to check: {JUDGES}")],
    pairs: Annotated[
        Path | None,
        typer.Argument(
            metavar="PAIRS",
            help="Pairs with gold labels: LLMBar's JSON, JSON lines or CSV with prompt, a, b, gold (1: b is better), or any "
            "preferences that plo trains on. Default of replay:FILE: the pairs of that file.",
        ),
    ] = None,
    template: Annotated[str, typer.Option(help="Prompt of the judge, a name or a file.")] = "instruction",
    limit: Annotated[int | None, typer.Option(min=1, help="Number of pairs to use, the first ones.")] = None,
    retest: Annotated[int, typer.Option(min=0, help="Number of pairs to ask the judge about twice.")] = 0,
    judge_calls: JudgeCalls = None,
    judge_money: JudgeMoney = None,
    plugin: Plugins = [],  # noqa: B006
    store: Store = None,
    as_json: Json = False,
):
    """Measure how far a judge can be trusted: agreement with gold labels, position and length bias, and consistency.

    Every figure has an interval. The exit code is 1 if no answer could be read.

    Examples:
        plo judge-check openai:MODEL LLMBar_Natural.json --template helpful
        plo judge-check hf:org/judge pairs.jsonl --limit 200 --retest 50
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
    card, usage = measure_judge(config, file, template, limit, retest, Tracker(store))
    if as_json:
        print(json.dumps(card.to_dict() | {"usage": usage}, indent=2))
    else:
        say(
            console,
            "\n".join([*card.lines(), price_line([usage]) or "Every verdict was kept from before: nothing was asked."]),
        )
    if card.unreadable_share.value == 1:  # no verdict at all
        raise typer.Exit(1)
