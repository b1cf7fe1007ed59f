"""The command line: lists of what is registered, `verify`, `compare`, `eval`, `judge-check`, `leaderboard`, ..."""

import inspect
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table

# Heavy imports stand inside the commands, so that `plo --help` answers at once.

app = typer.Typer(
    help="plo: compare preference losses on one backbone, record every run, publish the leaderboard.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
Plugins = Annotated[list[Path], typer.Option("--plugin", help="Python file that registers losses and the like.")]
Json = Annotated[bool, typer.Option("--json", help="The same as a list of JSON objects.")]


@app.command()
def losses(plugin: Plugins = [], as_json: Json = False):  # noqa: B006  (typer reads the default, nobody changes it)
    """List every registered loss: what it needs, its hyper-parameters, its paper, where it is defined.

    Recipes, which are a loss with a token scorer, stand apart.
    """
    from plo.losses import LOSSES
    from plo.scorers import SCORERS

    _load(plugin)
    rows = []
    for entry in LOSSES:
        loss, scorer = entry.facts.get("recipe", ("", ""))
        rows.append(
            {
                "name": entry.name,
                "aliases": LOSSES.aliases(entry.name),
                "recipe": f"{loss} + {scorer}" if loss else "",
                "needs": _needs(entry),
                "level": entry.facts["level"],
                "paper": entry.facts["paper"],
                "defaults": _defaults(entry),
                "origin": SCORERS[scorer].origin if scorer else entry.origin,
            }
        )
    if as_json:
        return _show(rows, as_json, "loss")
    _show([{k: v for k, v in row.items() if k != "recipe"} for row in rows if not row["recipe"]], False, "loss")
    if recipes := [{k: v for k, v in row.items() if k not in ("needs", "level")} for row in rows if row["recipe"]]:
        console.print("\nRecipes: a loss whose token weights a scorer makes.\n")
        _show(recipes, False, "loss")


@app.command()
def generators(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
    """List every registered Bregman generator, for the losses that take one."""
    from plo.losses import GENERATORS

    _load(plugin)
    rows = [
        {"name": e.name, "paper": e.facts.get("paper", ""), "defaults": _defaults(e), "origin": e.origin}
        for e in GENERATORS
    ]
    _show(rows, as_json, "generator")


@app.command()
def docs(out: Annotated[Path, typer.Option(help="Folder of the pages.")] = Path("docs/methods")):
    """Write a page for each built-in loss, recipe and token scorer, from their docstrings and what is registered."""
    with _friendly():
        from plo.pages import write

        written = write(out)
    console.print(f"{len(written)} pages written to {out}.", highlight=False, soft_wrap=True)


@app.command()
def verify(
    loss: Annotated[
        str | None,
        typer.Argument(help='A loss, "dpo", "bpo(lam=0.5)", or one of a file, "my_loss.py:my_loss(beta=0.2)".'),
    ] = None,
    generator: Annotated[
        str | None,
        typer.Option(help='A Bregman generator, "kliep", "sba(lam=0.5)", "my_h.py:my_h"; for LOSS, or by itself.'),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every registered loss, as a matrix.")] = False,
    plugin: Plugins = [],  # noqa: B006
    as_json: Json = False,
):
    """Try a loss without a model: gradient, invariances, extremes, and the policy it recovers. Exit code 1: failed."""
    if [every, loss is not None or generator is not None].count(True) != 1:
        raise typer.BadParameter("give a LOSS, --generator NAME or both, or --all")
    with _friendly():
        _load(plugin)
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


@app.command()
def scorers(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
    """List every registered token scorer: what is trained first for it, what else it reads, its hyper-parameters."""
    from plo.scorers import SCORERS

    _load(plugin)
    rows = [
        {
            "name": entry.name,
            "trains": _stages(entry),
            "reads": [*entry.facts["reads"], *(["seed"] if entry.facts["seeded"] else [])],
            "paper": entry.facts["paper"],
            "defaults": _defaults(entry),
            "origin": entry.origin,
        }
        for entry in SCORERS
    ]
    _show(rows, as_json, "scorer")


@app.command()
def scores(
    scorer: Annotated[str, typer.Argument(help='A token scorer, "position_decay(gamma=0.9)".')],
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

    path, settings = _split(arguments)
    with _friendly():
        known, hyper = _sort_settings(settings)
        needed = {} if path else {"losses": ["dpo"]}  # an experiment has losses; none is trained here for its own sake
        experiment = load_experiment(path, {**needed, **({"plugins": plugin} if plugin else {}), **known})
        _load(experiment.plugins)
        configured = get_scorer(scorer, **hyper)
        _quiet()
        from plo.experiment.workbench import score_pairs
        from plo.scorers.picture import to_tables, write_html

        scored, tokenizer = score_pairs(experiment, configured, console)
        pairs, weights = zip(*scored[:count], strict=True)
        if page is not None:
            write_html(page, pairs, tokenizer, weights, f"Token weights: {configured.name}")
            console.print(f"Written to {page}.", highlight=False, soft_wrap=True)
            return
        for table in to_tables(pairs, tokenizer, weights):
            console.print(table, highlight=False)
            console.print()


@app.command()
def compare(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="[EXPERIMENT.yaml] [KEY=VALUE]...",
            help="An experiment file; settings over it (train.lr=1e-4, data.limit=200); and hyper-parameters of "
            "its losses (beta=0.2 for every loss that has it, dpo.beta=0.2 for one).",
        ),
    ] = [],  # noqa: B006
    loss: Annotated[list[str], typer.Option(help='A loss, "dpo", "bpo(lam=0.5)", "dpo + 0.2*sft"; repeatable.')] = [],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="A seed; repeatable.")] = [],  # noqa: B006
    data: Annotated[str | None, typer.Option(help="Data source, file, folder or hub data set.")] = None,
    model: Annotated[str | None, typer.Option(help="'embedded', a local folder, or a hub name.")] = None,
    plugin: Plugins = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="Folder of checkpoints and trained models.")] = None,
    store: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
):
    """Run losses x seeds on one model and data set; started again, it goes on where it was."""
    from plo.config import load_experiment

    path, settings = _split(arguments)
    flags = {"data": data, "model": model, "out": out, "store": store, "losses": loss, "seeds": seed, "plugins": plugin}
    flags = {name: value for name, value in flags.items() if value}
    with _friendly():
        known, hyper = _sort_settings(settings)
        experiment = load_experiment(path, {**flags, **known})
        _load(experiment.plugins)
        experiment = _with_hyper_parameters(experiment, hyper)
        _quiet()
        from plo.backbone.distributed import is_main
        from plo.experiment.matrix import compare

        outcome = compare(experiment, console)
    if outcome.failed and is_main():  # a launcher ends all processes when the first one leaves with an error
        console.print(
            f"{len(outcome.failed)} cells failed: {', '.join(outcome.failed)}",
            style="red",
            highlight=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


@app.command("eval")
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
    suite: Annotated[str, typer.Option(help="Evaluations of a model, with commas: alpaca_eval,hh,tldr,lm_eval.")] = "",
    judge: Annotated[
        str | None, typer.Option(help="openai:MODEL[@URL], hf:FOLDER, reward:FOLDER, gold:NAME, replay:FILE.")
    ] = None,
    judge_calls: Annotated[int | None, typer.Option(help="The judge is asked so often at most.")] = None,
    judge_money: Annotated[float | None, typer.Option(help="Its calls cost so much at most.")] = None,
    against: Annotated[
        str | None, typer.Option(help="What it is compared with, where it is no trained cell: named as WHAT is.")
    ] = None,
    name: Annotated[str, typer.Option(help="Comparison under which what is no trained cell is recorded.")] = "eval",
    seed: Annotated[list[int], typer.Option(help="Of the sampling, where it is no trained cell; repeatable.")] = [],  # noqa: B006
    batch_size: Annotated[int, typer.Option(help="Sequences sampled at a time.")] = 64,
    plugin: Plugins = [],  # noqa: B006
    store: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
):
    """Evaluate trained cells, any model, or a file of outputs; recorded, and what is recorded already is not run again."""
    from plo.config import ConfigError, EvaluationConfig

    path, settings = _split(options)
    with _friendly():
        names = [part.strip() for part in suite.split(",") if part.strip()]
        if path is not None or not names:
            raise ConfigError(f"{path or 'no --suite'}: write plo eval {what} --suite hh,tldr [hh.prompts=100 ...].")
        chosen: dict[str, dict[str, Any]] = {part: {} for part in names}
        for key, value in settings.items():
            part, _, option = key.partition(".")
            if part not in chosen or not option:
                raise ConfigError(f"{key}={value}: write EVALUATION.OPTION=VALUE, for one of --suite {suite}.")
            chosen[part][option] = value
        changes = {"suite": tuple({part: given} for part, given in chosen.items()), "batch_size": batch_size}
        changes |= {"judge": judge, "judge_calls": judge_calls, "judge_money": judge_money}
        _load(plugin)
        _quiet()
        from plo.experiment.evaluations import evaluate_anything, evaluate_recorded, find
        from plo.tracking import Tracker

        if recorded := find(what, store):
            tracker, comparison, only = recorded
            failed = evaluate_recorded(comparison, only, changes, tracker, console)
        else:
            config = EvaluationConfig(**changes)
            failed = evaluate_anything(what, against, name, config, seed or [0], Tracker(store), console)
    if failed:
        console.print(
            f"{len(failed)} evaluations failed: {', '.join(failed)}", style="red", highlight=False, soft_wrap=True
        )
        raise typer.Exit(1)


@app.command("judge-check")
def judge_check(
    judge: Annotated[str, typer.Argument(help="openai:MODEL[@URL], hf:FOLDER, reward:FOLDER, gold:NAME, replay:FILE.")],
    pairs: Annotated[
        Path | None,
        typer.Argument(
            help="Pairs with gold labels: LLMBar's JSON, or JSON lines or CSV with prompt, a, b, gold (1: b is better) or prompt, "
            "chosen, rejected. Of replay:FILE without it: the file's own."
        ),
    ] = None,
    template: Annotated[str, typer.Option(help="The judge's prompt, by name or file.")] = "instruction",
    limit: Annotated[int | None, typer.Option(help="Pairs at most, the first ones.")] = None,
    retest: Annotated[int, typer.Option(help="How many pairs are asked again.")] = 0,
    judge_calls: Annotated[int | None, typer.Option(help="The judge is asked so often at most.")] = None,
    judge_money: Annotated[float | None, typer.Option(help="Its calls cost so much at most.")] = None,
    plugin: Plugins = [],  # noqa: B006
    as_json: Json = False,
):
    """How far a judge can be trusted: agreement with gold labels, position and length bias, consistency, with intervals."""
    from plo.config import ConfigError, EvaluationConfig

    with _friendly():
        if pairs is None and not judge.startswith("replay:"):
            raise ConfigError(
                f"plo judge-check {judge} PAIRS: give a file of pairs with gold labels, such as LLMBar's JSON."
            )
        _load(plugin)
        _quiet()
        from plo.experiment.evaluations import check_judge

        file = pairs or Path(judge.removeprefix("replay:"))
        config = EvaluationConfig(judge_calls=judge_calls, judge_money=judge_money)
        card = check_judge(judge, file, template, config, limit, retest, Console(stderr=as_json))
    if as_json:
        print(json.dumps(card.to_dict(), indent=2))
    else:
        console.print("\n".join(card.lines()), highlight=False, markup=False, soft_wrap=True)


@app.command()
def evaluations(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
    """List every registered evaluation: of samples at every point of training, or of a model (`plo eval`), with its options."""
    from plo.evals import EVALUATIONS

    _load(plugin)
    rows = [
        {"name": e.name, "level": e.facts["level"], "defaults": _defaults(e), "origin": e.origin} for e in EVALUATIONS
    ]
    _show(rows, as_json, "evaluation")


@app.command()
def judges(plugin: Plugins = [], as_json: Json = False):  # noqa: B006
    """List every kind of judge with its options."""
    from plo.evals.judges import JUDGES

    _load(plugin)
    rows = [{"name": e.name, "defaults": _defaults(e), "origin": e.origin} for e in JUDGES]
    _show(rows, as_json, "judge")


@app.command()
def leaderboard(
    comparison: Annotated[
        str | None, typer.Argument(help="Name of a comparison, or the beginning of its key; without it: all.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Variant that the others are compared with; without it: the reference.")
    ] = None,
    metric: Annotated[list[str], typer.Option(help="A column; repeatable; without it: all that were recorded.")] = [],  # noqa: B006
    store: Annotated[str | None, typer.Option(help="MLflow tracking URI.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for leaderboard.md, .csv and .json.")] = Path("leaderboard"),
):
    """Print the leaderboard of recorded runs, and write it as Markdown, CSV and JSON."""
    from plo.leaderboards import read, to_markdown, write
    from plo.tracking import Tracker

    with _friendly():
        tracker = Tracker(store, create=False)
        board, cells = read(tracker, comparison, baseline, metric or None), tracker.cells(comparison)
        write(board, out)
        drawn = _frontier(cells, out)
    print(to_markdown(board))
    also = " Reward against KL: frontier.md and .png." if drawn else ""
    console.print(f"Written to {out}/leaderboard.md, .csv and .json.{also}", highlight=False, soft_wrap=True)


def _frontier(cells, out: Path) -> bool:
    """Write reward against KL, where a gold reward was recorded."""
    from plo.leaderboards import frontier

    scored = [cell for cell in cells if cell.status == "FINISHED" and {"reward", "kl"} <= cell.metrics.keys()]
    if not scored:
        return False
    from plo.leaderboards.frontier_plot import plot

    frame = frontier.frontier(scored)
    (out / "frontier.md").write_text(frontier.to_markdown(frame), encoding="utf-8")
    plot(frame, out / "frontier.png")
    return True


def _split(arguments: list[str]) -> tuple[Path | None, dict[str, Any]]:
    paths = [a for a in arguments if "=" not in a]
    if len(paths) > 1:
        raise typer.BadParameter(f"one experiment file, not {len(paths)}: {', '.join(paths)}")
    pairs = (a.split("=", 1) for a in arguments if "=" in a)
    return (Path(paths[0]) if paths else None), {key: _scalar(value) for key, value in pairs}


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    try:  # YAML reads 1e-4 as text
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _sort_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the experiment, and the rest: hyper-parameters of its losses."""
    from plo.config import ConfigError, field_names

    names = field_names()
    short = {name.rsplit(".", 1)[-1]: name for name in names}  # lr for train.lr, where that is unambiguous
    leaves = [name.rsplit(".", 1)[-1] for name in names]
    known, hyper = {}, {}
    for key, value in settings.items():
        if key in names or key in ("data", "model") or key.split(".")[0] in ("data", "model", "train", "evaluation"):
            known[key] = value
        elif leaves.count(key) == 1:
            known[short[key]] = value
        elif key in leaves:
            several = " or ".join(name for name in names if name.endswith(f".{key}"))
            raise ConfigError(f"{key}={value} is ambiguous: {several}?")
        else:
            hyper[key] = value
    return known, hyper


def _with_hyper_parameters(experiment, hyper: dict[str, Any]):
    """beta=0.2 goes to every loss that has it, dpo.beta=0.2 to `dpo` alone."""
    from plo.config import ConfigError
    from plo.losses import LOSSES, get_loss
    from plo.registry import hyper_parameters

    specs = list(experiment.losses)
    for key, value in hyper.items():
        name, _, parameter = key.rpartition(".")
        name = LOSSES[name].name if name in LOSSES else name  # an alias
        taken = False
        for i, loss in enumerate(map(get_loss, specs)):
            if loss.entry and parameter in hyper_parameters(loss.target) and name in ("", loss.entry.name, loss.name):
                changed = {k: v for k, v in loss.params.items() if v != hyper_parameters(loss.target)[k].default}
                specs[i] = {"name": loss.entry.name, **changed, parameter: value}
                taken = True
            elif not loss.entry and any(
                parameter in term.params and name in ("", term.entry.name) for _, term in loss.terms
            ):
                raise ConfigError(
                    f"{key}={value}: in the sum {loss.name!r} write it in its terms, 'dpo({parameter}={value})'."
                )
        if not taken:
            has = {loss.name: list(loss.params) for loss in map(get_loss, specs)}
            raise ConfigError(
                f"{key}={value}: neither a setting of the experiment nor a hyper-parameter of its losses; they have: "
                + "; ".join(f"{loss}: {', '.join(params) or 'none'}" for loss, params in has.items())
            )
    return experiment.model_copy(update={"losses": tuple(specs)})


def _load(plugins) -> None:
    from plo.registry import load_plugin

    with _friendly():
        for plugin in plugins:
            load_plugin(plugin)


def _needs(entry) -> list[str]:
    needs = entry.facts["needs"]
    if not callable(needs):
        return list(needs)
    from plo.losses import get_loss

    return list(get_loss(entry.name).needs)


def _stages(entry) -> list[str]:
    """What is trained before the scorer can score, with its default hyper-parameters."""
    from plo.losses import get_loss
    from plo.scorers import get_scorer

    stages = get_scorer(entry.name).stages if entry.facts["stages"] else {}
    return [
        f"{name}: {get_loss(stage.loss).name}{' on reversed pairs' * stage.reversed}" for name, stage in stages.items()
    ]


def _defaults(entry) -> dict[str, Any]:
    from plo.registry import hyper_parameters

    parameters = hyper_parameters(entry.load())
    return {n: None if p.default is inspect.Parameter.empty else p.default for n, p in parameters.items()}


def _show(rows: list[dict[str, Any]], as_json: bool, what: str) -> None:
    if as_json:
        print(json.dumps(rows, indent=2, default=str))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(what, no_wrap=True)
    for key in [key for key in rows[0] if key not in ("name", "aliases")]:
        table.add_column(key, overflow="fold", no_wrap=key == "defaults")
    for row in rows:
        cells = {**row, "defaults": "\n".join(f"{k}={v}" for k, v in row["defaults"].items())}
        cells["name"] = "\n= ".join([row["name"], *cells.pop("aliases", [])])
        for key in ("needs", "trains", "reads"):
            if key in cells:
                cells[key] = "\n".join(row[key]) or "-"
        cells["origin"] = os.path.relpath(row["origin"]) if row["origin"].startswith("/") else row["origin"]
        table.add_row(*(str(value) for value in cells.values()))
    console.print(table)


def _quiet() -> None:
    """transformers and MLflow tell at length what nobody asked; plo's own lines say what matters."""
    import logging
    import warnings

    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("alembic").setLevel(logging.ERROR)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)


class _friendly:
    """Errors that plo words itself are shown as they are, without a traceback; exit code 2."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, ValueError | RuntimeError | LookupError) and type(error).__module__.startswith("plo."):
            name = typer.style(f"{type(error).__name__}: ", fg="red")
            typer.echo(f"{name}{error}", err=True)  # in one piece: several processes may say it at once
            raise typer.Exit(2) from None
        return False
