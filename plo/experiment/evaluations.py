"""Evaluations of level "model": run on trained cells, on any model or on a file of outputs, and recorded."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from plo import caches, interrupt
from plo.backbone.model import Backbone
from plo.config import ConfigError, DataConfig, EvaluationConfig, Experiment
from plo.data import DropReport
from plo.environment import environment
from plo.errors import one_line
from plo.evals import Findings, ModelEvaluation, describe_metric
from plo.evals.judges import JudgeCard, JudgeSession, make_judge_card, read_gold
from plo.evals.judges.judge import spec_text
from plo.evals.judges.template import Template
from plo.evals.repeats import join_repeats
from plo.experiment.evaluation_key import EvaluationKey
from plo.experiment.keys import BEST_OF
from plo.experiment.plugins import DIGESTS, load_recorded
from plo.experiment.progress import Progress
from plo.experiment.trajectory import read_trajectory
from plo.experiment.workbench import Workbench, has_own_sft, prepare, suites, workbench
from plo.faults import disk_fault
from plo.identity import sha256
from plo.subjects import Subject
from plo.subjects.engines import TOGETHER, Adapter
from plo.subjects.loading import load_subject, weights_digest
from plo.subjects.policy import Mate, Policy
from plo.subjects.subject import Trajectory
from plo.tracking import ANY, ActiveRun, Comparison, ModelLost, NothingRecorded, RecordedCell, Tracker, closing

log = logging.getLogger(__name__)


def judging_of(config: EvaluationConfig) -> JudgeSession | None:
    """Return a session with the judge of a configuration, within its budget; None if it names no judge."""
    if config.judge is None:
        return None
    return JudgeSession(config.judge, calls=config.judge_calls, money=config.judge_money, tell=log.info)


def evaluate_cells(
    bench: Workbench,
    cells: Sequence[RecordedCell],
    tracker: Tracker,
    parent: str,
    judging: JudgeSession | None = None,
    ready: Callable[[], None] = lambda: None,
) -> dict[str, str]:
    """Run the workbench's evaluations of a model once on each finished cell, and record them; return the errors by name.

    Args:
        ready: called before a model is loaded; makes the workbench ready, which costs time.
    """
    failed: dict[str, str] = {}
    engine, drawn = bench.experiment.evaluation.sampler, partial(read_trajectory, bench, tracker, parent)
    for place, cell in enumerate(cells):
        subject = cache(partial(_policy_of, bench, cell, ready, drawn))  # not loaded if everything is recorded already
        start = partial(tracker.start_evaluation, parent)
        mates = partial(_mates, bench, cells[place:], tracker, parent)
        about = (cell.key, cell.name), start, engine, mates
        failed |= _evaluate_all(bench.model_evaluations, judging, None, subject, *about)
    return failed


def _mates(
    bench: Workbench, cells: Sequence[RecordedCell], tracker: Tracker, parent: str, digest: str
) -> tuple[Mate, ...]:
    """Return the policies after the first cell's that an evaluation will sample with the same prompts, a few at most."""
    if bench.experiment.model.peft != "lora" or len(cells) == 1:
        return ()
    done, mates = tracker.finished(parent, "evaluation"), list[Mate]()
    for cell in cells[1:]:
        if len(mates) == TOGETHER - 1:
            break
        if cell.tags["plo.variant"] == "reference" or sha256([cell.key, digest]) in done:
            continue
        with contextlib.suppress(ModelLost):  # an error when its turn comes
            adapter = _adapter(cell.model())
            mates.append(Mate(sha256([bench.model_identity, adapter.identity]), int(cell.tags["plo.seed"]), adapter))
    return tuple(mates)


def _adapter(folder: Path) -> Adapter:
    return Adapter(weights_digest(folder), folder)


def evaluate_recorded(
    comparison: Comparison,
    only: str | None,
    changes: Mapping[str, Any],
    tracker: Tracker,
    progress: Progress | None = None,
    plugins: Sequence[Path] = (),
    confirm: Callable[[str], bool] | None = None,
) -> dict[str, str]:
    """Evaluate the finished cells of a recorded comparison, without training anything.

    Args:
        only: run id of the only cell to evaluate; None evaluates all.
        changes: changes to the evaluation settings that the comparison was run with.
        plugins, confirm: files that the user named, and a function that asks about others; see `plugins.load_recorded`.
    """
    if comparison.tags.get("plo.model") == ANY:
        raise ConfigError(
            f"{comparison.name} holds models that plo did not train: name the model, plo eval MODEL --name {comparison.name}."
        )
    recorded = {**Experiment.first_defaults, **comparison.config()}
    digests = recorded.pop(DIGESTS, {})
    recorded["evaluation"] = {**recorded.get("evaluation", {}), **changes}
    experiment = Experiment.of(recorded, f"The recorded comparison {comparison.name}")
    load_recorded(experiment.plugins, digests, plugins, confirm)
    bench = workbench(experiment, progress)
    if bench.model_identity != comparison.tags.get("plo.model"):
        raise ConfigError(
            f"The comparison {comparison.name} was run with other weights, dtype or device than {bench.experiment.model.name} gives "
            f"here (plo.model {comparison.tags.get('plo.model', 'not recorded')[:12]}, here {bench.model_identity[:12]}): evaluate "
            f"it where it was trained."
        )
    bench.stages.record = lambda key, name, params: tracker.finished_stage(key)
    prepare(bench, progress)
    cells = [
        c
        for c in comparison.cells()
        if c.status == "FINISHED" and only in (None, c.run_id) and c.tags["plo.loss"] != BEST_OF
    ]
    judging = judging_of(bench.experiment.evaluation)
    return evaluate_cells(bench, cells, tracker, comparison.run_id, judging)


def evaluate_anything(
    what: str,
    against: str | None,
    name: str,
    config: EvaluationConfig,
    seeds: Sequence[int],
    tracker: Tracker,
) -> dict[str, str]:
    """Evaluate a folder, a hub model, a file of outputs or a server, recorded as cells of the comparison `name`."""
    of_samples, evaluations = suites(Experiment(losses=("dpo",), data=DataConfig(source="file"), evaluation=config))
    if of_samples:
        raise ConfigError(
            f"{', '.join(of_samples)} reads samples that are drawn during training: plo eval runs evaluations of level "
            f'"model" (plo list evaluations).'
        )
    if against and not any(evaluation.compares for evaluation in evaluations):
        raise ConfigError(
            f"--against {against}: none of {', '.join(e.name for e in evaluations)} compares with another model."
        )
    caches.note_form()
    judging = judging_of(config)
    subject = load_subject(what, seeds[0], config)
    reference = subject.reference = load_subject(against, seeds[0], config) if against else None
    if subject.fixed and len(seeds) > 1:
        raise ConfigError(
            f"{what} holds one set of outputs: {len(seeds)} seeds would be {len(seeds)} copies of it. Give one --seed."
        )
    parent = tracker.comparison(name, sha256([name]), {}, {"plo.model": ANY, **environment()})
    with closing(tracker, parent) as failed:
        for seed in seeds:
            subject.seed = seed
            if reference is not None:
                reference.seed = seed
            key, label = sha256([subject.name, subject.identity, seed]), f"{subject.name} seed {seed}"
            tags = {"plo.loss": subject.name, "plo.variant": subject.name, "plo.seed": str(seed), "plo.model": ANY}
            if key not in tracker.finished(parent):
                tracker.start_cell(parent, key, label, tags | environment()).finish()
            start = partial(tracker.start_evaluation, parent)
            about = (key, label), start, config.sampler
            failed |= _evaluate_all(evaluations, judging, reference, lambda: subject, *about)
    return failed


def _policy_of(
    bench: Workbench, cell: RecordedCell, ready: Callable[[], None], drawn: Callable[[RecordedCell], Trajectory]
) -> Policy:
    ready()
    return _policy(bench, cell, drawn)


def _policy(bench: Workbench, cell: RecordedCell, drawn: Callable[[RecordedCell], Trajectory]) -> Policy:
    """Load a cell's policy into the workbench's backbone, and return it with the comparison's reference."""
    seed, data = int(cell.tags["plo.seed"]), bench.experiment.data
    if has_own_sft(bench.experiment):
        bench = bench.of_seed(seed)
    is_reference = cell.tags["plo.variant"] == "reference"
    bench.backbone.reset(seed)
    identity, adapter = bench.model_identity, None
    if not is_reference:
        saved = _adapter(folder := cell.model())
        bench.backbone.restore(folder)
        identity = sha256([bench.model_identity, saved.identity])
        adapter = saved if bench.experiment.model.peft == "lora" else None
    row = bench.data.train[0].row
    policy = partial(
        Policy,
        bench.backbone,
        bench.tokenizer,
        seed=seed,
        config=bench.experiment.evaluation,
        trained_on={pair.prompt for pair in bench.data.train},
        paths={data.source: data.path} if data.path else {},
        chat=row is not None and row.conversational,
        trajectory=partial(drawn, cell),
    )
    reference = policy(name="reference", identity=bench.model_identity, as_reference=True)
    subject = reference if is_reference else policy(name=cell.tags["plo.variant"], identity=identity, adapter=adapter)
    subject.reference = reference
    return subject


def _evaluate_all(
    evaluations: Sequence[ModelEvaluation],
    judging: JudgeSession | None,
    against: Subject | None,
    subject: Callable[[], Subject],
    of: tuple[str, str],
    start: Callable[..., ActiveRun | None],
    engine: str,
    mates: Callable[[str], tuple[Mate, ...]] = lambda digest: (),
) -> dict[str, str]:
    """Evaluate a cell and record the findings, unless they are recorded already; return errors by name of what failed.

    Args:
        of: key and name of the cell.
        start: `Tracker.start_evaluation` of the comparison.
        mates: returns the policies that the evaluation with a digest will sample next.
    """
    (key, name), failed = of, {}
    for evaluation in evaluations:
        run, title = None, f"{evaluation.name} of {name}"
        try:
            own, plugged = EvaluationKey.of(evaluation, judging, against, engine), evaluation.entry.name
            tags = {"plo.of": key, "plo.evaluation": plugged, "plo.settings": own.digest, **environment()}
            run = start(sha256([key, own.digest]), f"{plugged} of {name}", tags, own.params)
            if run is None:
                log.info("%s is recorded already.", title)
                continue
            if isinstance(policy := subject(), Policy):
                policy.mates = cache(partial(mates, own.digest)) if policy.adapter is not None else tuple
            found = _evaluate(evaluation, own.judging, subject())
            _record(run, evaluation, own, found)
        except BaseException as error:
            if run is not None:
                run.fail(error)
            if not isinstance(error, Exception):
                raise
            interrupt.check()  # a library may have replaced the exception
            if disk_fault(error):  # else verdicts would be paid for that cannot be kept
                raise
            failed[title] = one_line(error)
            log.error("failed %s: %s", title, failed[title])
        else:
            _log(title, found)
    return failed


def _evaluate(evaluation: ModelEvaluation, judging: JudgeSession | None, subject: Any) -> Findings:
    backbone: Backbone | None = getattr(subject, "backbone", None)
    packed = backbone is not None and backbone.packed
    if judging is not None:
        judging.begin()
    try:
        if judging is None or not evaluation.asks_judge:
            return evaluation(subject)
        each = [evaluation(subject, judging) for _ in judging.each_repeat()]
        found = join_repeats(evaluation.entry.name, each)
        judging.enforce_read()
        return replace(found, notes=(*found.notes, *judging.remarks))
    finally:
        if backbone is not None:
            backbone.use_packed(packed)  # `Policy.causal_lm` turns packing off


def _record(run: ActiveRun, evaluation: ModelEvaluation, settings: EvaluationKey, found: Findings) -> None:
    for step, metrics in sorted(found.curves.items()):
        run.log({f"{evaluation.entry.name}.{name}": value for name, value in metrics.items()}, step)
    for table, frame in found.tables.items():
        run.table(frame, table)
    for file, text in found.files.items():
        run.text(text, file)
    about = {"notes": found.notes, "lengths": found.lengths, "but_judge": settings.but_judge, "judges": []}
    if found.curves:
        about["curves"] = found.curves
    about["described"] = [describe_metric(evaluation.entry, name).to_dict() for name in found.metrics]
    if (judging := settings.judging) is not None:
        about["judges"] = [judge_record(judging, template) for template in judging.templates]
        about |= {"usage": judging.usage} | ({"repeats": judging.repeats} if judging.repeats > 1 else {})
        used = [judging.judge(template).template for template in judging.templates]
        about["templates"] = {one.name: one.identity for one in used if one is not None}
    run.finding(evaluation.entry.name, found.metrics, found.items, about)


def judge_record(judging: JudgeSession, template: str | Template) -> dict[str, Any]:
    """Return the record of a judge. `prompt` is the value for `judge-check --template`, or None if it takes no template."""
    judge = judging.judge(template)
    prompt = str(template) if judge.template is not None and not isinstance(template, Template) else None
    return {"judge": judge.name, "version": sha256([judge.version]), "prompt": prompt, "given": spec_text(judging.spec)}


def measure_judge(
    config: EvaluationConfig,
    pairs: Path,
    template: str,
    limit: int | None,
    retest: int,
    tracker: Tracker,
) -> tuple[JudgeCard, dict[str, Any]]:
    """Measure the configuration's judge on pairs with gold labels, and record the card, which tables show with its verdicts.

    Returns:
        The card, and what was asked for it; see `JudgeSession.usage`.
    """
    judging, report = judging_of(config), DropReport(str(pairs))
    if judging is None:
        raise ConfigError("There is no judge to measure: name one, such as hf:embedded.")
    card = make_judge_card(judging, read_gold(pairs, report)[:limit], template, retest=retest, source=pairs.name)
    if report.total:
        log.info(str(report))
    for note in judging.remarks:
        log.info(note)
    own = judge_record(judging, template)
    shown = {
        "card": [*card.lines(), *judging.remarks],
        "pairs": card.pairs,
        "informative": card.informative,
        "figures": card.to_dict(),
    }
    tracker.judge_check(own["judge"], own["version"], shown | {"usage": judging.usage})
    return card, judging.usage


def _log(title: str, found: Findings) -> None:
    verdicts_first = sorted(found.metrics.items(), key=lambda metric: "win_rate" not in metric[0])
    shown = ", ".join(f"{metric} {value:.3f}" for metric, value in verdicts_first[:6])
    log.info("done   %s: %s", title, shown)
    for note in found.notes:
        log.info("         %s", note)


def find(what: str, store: str | None) -> tuple[Tracker, Comparison, str | None] | None:
    """Find a recorded comparison by its name or key, or by the run id of a cell, which is then returned too; else None."""
    try:
        tracker = Tracker(store, "plo", create=False)
    except NothingRecorded:
        return None
    for comparison in reversed(tracker.comparisons()):
        if what == comparison.name or (len(what) >= 8 and comparison.key.startswith(what)):
            return tracker, comparison, None
        if any(cell.run_id == what for cell in comparison.cells()):
            return tracker, comparison, what
    return None
