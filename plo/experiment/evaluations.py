"""Evaluations of level "model": run on trained cells, on any model or on a file of outputs, and recorded."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from plo.backbone import distributed
from plo.backbone.model import Backbone
from plo.config import ConfigError, EvaluationConfig, Experiment
from plo.environment import environment
from plo.evals import EvaluationError, Findings, OnModel
from plo.evals.judges import Card, Judging, judge_card, read_gold
from plo.experiment.loading import load_subject, weights_digest
from plo.experiment.stages import sha256
from plo.experiment.subjects import Policy
from plo.experiment.workbench import Workbench, prepare, suites, workbench
from plo.paths import plo_home
from plo.registry import source_of
from plo.tracking import Cell, CellRun, Comparison, Tracker, TrackingError


def judging_of(config: EvaluationConfig, console: Console) -> Judging | None:
    """The judge of a configuration, with its budget; None where none is named."""
    if config.judge is None:
        return None
    tell = lambda line: console.print(escape(line), highlight=False, soft_wrap=True)  # noqa: E731
    return Judging(config.judge, calls=config.judge_calls, money=config.judge_money, tell=tell)


def evaluate_cells(
    bench: Workbench, cells: Sequence[Cell], tracker: Tracker, parent: str, console: Console
) -> dict[str, str]:
    """Run the workbench's evaluations of a model on finished cells, each once, and record them beside the cell.

    Returns:
        {what failed: its error}; the others went on.
    """
    if not bench.on_model:
        return {}
    if distributed.processes() > 1:
        names = ", ".join(e.name for e in bench.on_model)
        console.print(f"{names}: run in one process, afterwards: plo eval {bench.experiment.name} --suite ...")
        return {}
    judging, failed = judging_of(bench.experiment.evaluation, console), {}
    for cell in cells:
        subject = cache(partial(_policy, bench, cell))  # not made where everything is recorded already
        for evaluation in bench.on_model:
            _once(evaluation, subject, judging, tracker, parent, (cell.key, cell.name), failed, console)
    return failed


def evaluate_recorded(
    comparison: Comparison, only: str | None, changes: Mapping[str, Any], tracker: Tracker, console: Console
) -> dict[str, str]:
    """Evaluate the finished cells of a recorded comparison (`only`: the one of this run id) without training anything."""
    recorded = comparison.config()
    recorded["evaluation"] = {**recorded.get("evaluation", {}), **changes}
    bench = workbench(Experiment.model_validate(recorded), console)
    if bench.model_identity != comparison.tags.get("plo.model"):
        raise ConfigError(
            f"The comparison {comparison.name} was run with other weights, dtype or device than "
            f"{bench.experiment.model.name} gives here: evaluate it where it was trained."
        )
    prepare(bench, console)
    cells = [c for c in comparison.cells() if c.status == "FINISHED" and only in (None, c.run_id)]
    return evaluate_cells(bench, cells, tracker, comparison.run_id, console)


def evaluate_anything(
    what: str,
    against: str | None,
    name: str,
    config: EvaluationConfig,
    seeds: Sequence[int],
    tracker: Tracker,
    console: Console,
) -> dict[str, str]:
    """Evaluate a local folder, a hub model, a file of outputs or a server; recorded as cells of the comparison `name`."""
    _, evaluations = suites(Experiment(losses=("dpo",), data={"source": "file"}, evaluation=config))
    judging, failed = judging_of(config, console), {}
    comparable = sha256({evaluation.entry.name: settings_digest(evaluation, judging) for evaluation in evaluations})
    key = sha256([name, comparable])
    for seed in seeds:
        subject = load_subject(what, seed, config)
        subject.reference = load_subject(against, seed, config) if against else None
        cell_key = sha256([subject.name, subject.identity, seed, against])
        label = f"{subject.name} seed {seed}"
        parent = tracker.comparison(
            name, key, {"evaluation": config.model_dump(mode="json")}, environment(), {cell_key: label}
        )
        tags = {"plo.loss": subject.name, "plo.variant": subject.name, "plo.seed": str(seed), "plo.data": comparable}
        tags |= {"plo.model": "any", "plo.evaluation": comparable, **environment()}
        if cell_key not in tracker.finished(parent):
            tracker.start_cell(parent, cell_key, label, tags).finish()
        for evaluation in evaluations:
            of = cell_key, label
            if not _once(evaluation, lambda: subject, judging, tracker, parent, of, failed, console):  # noqa: B023  (called at once)
                console.print(f"{evaluation.name} of {label} is recorded already.", highlight=False)
        tracker.end_comparison(parent, ok=not failed)
    return failed


def _policy(bench: Workbench, cell: Cell) -> Policy:
    """The cell's policy, put into the workbench's backbone, with the reference of the comparison beside it."""
    seed, data = int(cell.tags["plo.seed"]), bench.experiment.data
    is_reference = cell.tags["plo.variant"] == "reference"
    bench.backbone.reset(seed)
    identity = bench.model_identity
    if not is_reference:
        folder = Path(cell.tags.get("plo.folder", ""))
        if not (folder / "config.json").exists() and not (folder / "adapter_config.json").exists():
            raise EvaluationError(f"The trained policy of {cell.name} is not in {folder} any more: train it again.")
        bench.backbone.restore(folder)
        identity = sha256([bench.model_identity, weights_digest(folder)])
    common = {
        "seed": seed,
        "config": bench.experiment.evaluation,
        "trained_on": {pair.prompt for pair in bench.data.train},
        "paths": {data.source: data.path} if data.path else {},
        "chat": bench.data.train[0].row.conversational,
    }
    reference = Policy(
        bench.backbone, bench.tokenizer, name="reference", identity=bench.model_identity, as_reference=True, **common
    )
    if is_reference:
        reference.reference = reference
        return reference
    subject = Policy(bench.backbone, bench.tokenizer, name=cell.tags["plo.variant"], identity=identity, **common)
    subject.reference = reference
    return subject


def settings_digest(evaluation: OnModel, judging: Judging | None) -> str:
    """Of what two results of an evaluation must share to be compared: its code, options and judge."""
    judge = str(judging.spec) if judging is not None and evaluation.judged else None
    return sha256(
        [evaluation.entry.name, source_of(evaluation.entry.load()), str(sorted(evaluation.options.items())), judge]
    )


def _once(
    evaluation: OnModel,
    subject: Callable[[], Any],
    judging: Judging | None,
    tracker: Tracker,
    parent: str,
    of: tuple[str, str],
    failed: dict[str, str],
    console: Console,
) -> bool:
    """Evaluate and record beside the cell `of` (its key and name), or note in `failed` why not; False if it was recorded."""
    key, name = of
    digest = settings_digest(evaluation, judging)
    tags = {"plo.of": key, "plo.evaluation": evaluation.entry.name, "plo.settings": digest, **environment()}
    params = {option: str(value) for option, value in evaluation.options.items()}
    title = f"{evaluation.entry.name} of {name}"
    run = tracker.start_evaluation(parent, sha256([key, digest]), title, tags, params)
    if run is None:
        return False
    try:
        found = _evaluate(evaluation, subject(), judging)
        record(run, evaluation, found, judging)
    except Exception as error:
        run.fail(error)
        failed[f"{evaluation.name} of {name}"] = f"{type(error).__name__}: {error}"
        line = f"[red]failed[/red] {escape(evaluation.name)} of {escape(name)}: {escape(str(error))}"
        console.print(line, highlight=False, soft_wrap=True)
    except BaseException as error:
        run.fail(error)
        raise
    else:
        _tell(console, evaluation, name, found)
    return True


def _evaluate(evaluation: OnModel, subject: Any, judging: Judging | None) -> Findings:
    backbone: Backbone | None = getattr(subject, "backbone", None)
    packed = backbone is not None and backbone.packed
    if judging is not None:
        judging.templates.clear()
    try:
        return evaluation(subject, judging) if evaluation.judged else evaluation(subject)
    finally:
        if backbone is not None:
            backbone.use_packed(packed)  # `Policy.causal_lm` hands the model out without


def record(run: CellRun, evaluation: OnModel, found: Findings, judging: Judging | None) -> None:
    """Metrics as `<evaluation>.<metric>`, items as `<evaluation>.json`, notes, where lengths stand, the judge, further tables and files."""
    name = evaluation.entry.name
    run.table(found.items, f"{name}.json")
    for table, frame in found.tables.items():
        run.table(frame, table)
    for file, text in found.files.items():
        run.text(text, file)
    run.tag(f"plo.notes.{name}", json.dumps(found.notes))
    run.tag(f"plo.lengths.{name}", json.dumps(found.lengths))
    if evaluation.judged and judging is not None:
        run.tag("plo.judge", json.dumps(stored_card(judging)))
    run.finish({f"{name}.{metric}": value for metric, value in found.metrics.items()})


def check_judge(
    spec: str, pairs: Path, template: str, config: EvaluationConfig, limit: int | None, retest: int, console: Console
) -> Card:
    """The judge's card on pairs with gold labels; kept, so that later evaluations by that judge show it."""
    judging = judging_of(config.model_copy(update={"judge": spec}), console)
    card = judge_card(judging, read_gold(pairs)[:limit], template, retest=retest)
    file = _card_file(judging, template)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps({"card": card.lines(), "informative": card.informative}))
    partial.replace(file)
    return card


def stored_card(judging: Judging) -> dict[str, Any]:
    """The judge with the card of a prompt that it was asked with; the uninformative one, if there is such."""
    files = [_card_file(judging, template) for template in judging.templates]
    cards = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    cards.sort(key=lambda card: card["informative"])
    return {"judge": str(judging.spec), **(cards[0] if cards else {"card": None, "informative": None})}


def _card_file(judging: Judging, template: str) -> Path:
    judge = judging.judge(template)
    return plo_home() / "cards" / f"{sha256([judge.name, judge.version])[:32]}.json"


def _tell(console: Console, evaluation: OnModel, name: str, found: Findings) -> None:
    shown = ", ".join(f"{metric} {value:.3f}" for metric, value in list(found.metrics.items())[:6])
    console.print(
        f"[green]done[/green]   {escape(evaluation.name)} of {escape(name)}: {shown}", highlight=False, soft_wrap=True
    )
    for note in found.notes:
        console.print(f"         {escape(note)}", highlight=False, soft_wrap=True)


def find(what: str, store: str | None) -> tuple[Tracker, Comparison, str | None] | None:
    """A recorded comparison by name or key, or the one of a cell's run id (then with that id); None if there is no such."""
    try:
        tracker = Tracker(store, "plo", create=False)
        comparisons = tracker.comparisons()
    except TrackingError:
        return None
    for comparison in reversed(comparisons):
        if what == comparison.name or (len(what) >= 8 and comparison.key.startswith(what)):
            return tracker, comparison, None
        if any(cell.run_id == what for cell in comparison.cells()):
            return tracker, comparison, what
    return None
