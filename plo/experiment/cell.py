"""One cell of a comparison: training one variant with one seed, with evaluations along the way, all recorded."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from transformers import TrainerState

from plo import distributed, interrupt, store
from plo.backbone.checkpoints import last_checkpoint
from plo.backbone.memory import peak_memory_gb
from plo.backbone.out_of_memory import OutOfMemory, train_within_memory
from plo.backbone.targets import short_of_target
from plo.backbone.trainer import PreferenceTrainer
from plo.config import Experiment, TrainConfig
from plo.evals import EvaluationError, describe_metrics, evaluate
from plo.experiment.best_of import gold_reward
from plo.experiment.keys import EVALUATION_UNITS, Cell
from plo.experiment.reports import Reports
from plo.experiment.scores import scores_key, token_weights
from plo.experiment.stages import CurveRecorder, is_recorded
from plo.experiment.workbench import Workbench
from plo.faults import is_out_of_memory
from plo.machine import undisturbed
from plo.margins import wins
from plo.scorers import Variant
from plo.subjects.policy import log_ratio_margins
from plo.subjects.sampling import best_of, held_out_prompts, sample
from plo.tracking import MODEL, ActiveRun

PROBE_PAIRS = 8
TEXTS = "texts_by_point.json"  # table of a cell's run
log = logging.getLogger(__name__)


def run_cell(
    cell: Cell,
    bench: Workbench,
    run: ActiveRun,
    root: Path,
    reference_samples: pd.DataFrame | None,
    progress: Callable[..., None] = lambda units, steps=0: None,
) -> dict[str, float]:
    """Train from the last complete checkpoint, evaluate at every point, and record. Return the final metrics.

    Args:
        root: folder of the comparison. Checkpoints and the trained adapter go into the cell's folder in it.
        reference_samples: samples of the reference with the same seed, for win rates; None for the reference itself.
        progress: receives the units of work done since the last call, and the number of steps among them.
    """
    started, clock, folder = time.monotonic(), undisturbed(), cell.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    evaluator = Evaluator(run, cell, bench, folder, reference_samples, progress)
    if cell.variant is None:
        with bench.backbone.holding(bench.backbone.reference):
            evaluator.at_step(0, 0)
    else:
        with _reports(cell, cell.variant, bench.experiment, root) as evaluator.reports:
            notes = _train(cell, cell.variant, bench, run, folder, evaluator)
        if notes:
            run.tag("plo.notes", json.dumps(notes))
        for text in notes:
            log.info("note   %s: %s", cell.name, text)
    metrics, samples = evaluator.result()
    if bench.drawn is not None:
        metrics |= bench.drawn.metrics(bench.backbone)
        run.tag("plo.pairs", json.dumps(bench.drawn.about))
    run.table(samples, "samples.json")
    if len(evaluator.points) > 1:
        run.table(evaluator.texts_by_point(), TEXTS)
    if (points := evaluator.by_point()) is not None:
        run.table(points, "points.json")
    run.describe(describe_metrics(bench.suite, metrics))
    run.tag("plo.seconds", f"{time.monotonic() - started:.1f}")  # of this attempt
    run.tag("plo.costs", json.dumps(evaluator.costs(undisturbed() - clock)))
    run.finish(metrics)
    for checkpoint in folder.glob("checkpoint-*") if distributed.is_main() else ():
        shutil.rmtree(checkpoint, ignore_errors=True)  # the trained model stays, without states of the optimiser
    return metrics


def _reports(cell: Cell, variant: Variant, experiment: Experiment, root: Path) -> Reports:
    """Return the reports of a cell's training to trackers other than MLflow."""
    folder = root / "tensorboard" / cell.folder(root).name
    settings = {
        "loss": variant.registered_name,
        "seed": str(cell.seed),
        **{n: str(v) for n, v in variant.params.items()},
    }
    about = {"name": cell.name, "group": experiment.name, "key": cell.key, "settings": settings}
    return Reports(experiment.report_to, folder=folder, marks=cell.folder(root) / "reported.json", **about)


def _train(
    cell: Cell, variant: Variant, bench: Workbench, run: ActiveRun, folder: Path, evaluator: "Evaluator"
) -> list[str]:
    backbone, data = bench.backbone, bench.data
    weights, stages, clock = None, [bench.sft] if bench.sft is not None else [], undisturbed()
    if scorer := cell.scorer(bench.experiment):
        weights = token_weights(bench.stages, scorer, cell.seed)
        stages += map(bench.stages.key, scorer.stages.values())
        while scorer is not None:
            stages.append(scores_key(bench.stages, scorer, cell.seed))
            scorer = scorer.inner
    if bench.drawn is not None and bench.drawn.answers is not None:
        stages += bench.drawn.answers.keys
    run.tag("plo.stages", json.dumps(stages))
    probe = data.eval[:PROBE_PAIRS]
    reference = bench.store.for_loss(backbone, data.train, variant.needs)
    of_probe = bench.store.get(backbone, probe, hidden=True)
    evaluator.waited = undisturbed() - clock  # for what other cells need too

    def train(config: TrainConfig) -> TrainerState:
        backbone.reset(cell.seed, variant.loss)
        about = {"seed": cell.seed, "folder": folder, "weights": weights, "probe": (probe, of_probe)}
        callbacks = [one for one in (evaluator.reports, evaluator) if one is not None]
        trainer = PreferenceTrainer(backbone, data.train, reference, config, callbacks=callbacks, **about)
        evaluator.probe = trainer.probe
        checkpoint = distributed.on_main(lambda: last_checkpoint(folder, evaluator.missing))
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        return trainer.state

    state, notes = train_within_memory(train, cell.train(bench.experiment), variant.loss, cell.name)
    model = folder / "model"
    distributed.on_main(lambda: store.remove(model), share=False)  # its files may be those of an earlier attempt's run
    backbone.save(model)
    distributed.on_main(lambda: store.seal(model), share=False)
    run.folder(model)
    if distributed.is_main() and is_recorded(model, bench.experiment.record_models, bench.experiment.model):
        run.artifacts(model, MODEL)
    return notes + short_of_target(variant.loss, state.log_history, state.max_steps)


@dataclass(eq=False)
class Evaluator(CurveRecorder):
    """Records the training curve, and evaluates once at each point of `eval_at`, right after its checkpoint is complete."""

    run: ActiveRun
    cell: Cell
    bench: Workbench
    folder: Path
    reference_samples: pd.DataFrame | None
    progress: Callable[..., None]
    reports: Reports | None = None
    probe: Callable[[], dict[str, float]] = dict
    points: Mapping[int, float] = field(default_factory=lambda: {0: 1.0})  # of the reference, which is not trained
    steps: int = 0  # of this attempt, as `spent`
    spent: list[float] = field(default_factory=list)  # seconds of each evaluation
    waited: float = 0.0  # seconds for stages, token weights and the reference
    _recorded: set[int] = field(
        default_factory=set
    )  # points, and the last step, that progress and the run have already:
    _reached: int = 0  # a training that starts again after lack of memory repeats some

    def on_train_begin(self, args, state, control, **kwargs):
        self.points = self._points(state.max_steps)
        self._advance(state.global_step)
        super().on_train_begin(args, state, control)
        for step in self.points:
            if step <= state.global_step and step not in self._recorded:
                self.at_step(step, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= state.global_step in self.points
        control.should_log |= control.should_save  # resumed runs start from empty sums, and so does every checkpoint
        self.steps += 1
        self._advance(state.global_step)

    def on_save(self, args, state, control, **kwargs):
        if state.global_step in self.points and state.global_step not in self._recorded:
            self.at_step(state.global_step, state.global_step)

    def at_step(self, step: int, now: int) -> None:
        """Evaluate the point `step` and keep the result, or read that of an earlier attempt; the policy is at step `now`."""
        metrics = distributed.on_main(lambda: self._evaluated(step))
        if metrics is None:
            if step != now:  # it was there at the start, or `missing` would have chosen an earlier checkpoint
                raise EvaluationError(
                    f"The evaluation of step {step} in {self.folder} is missing: start the same command again."
                )
            with interrupt.awaiting("the evaluation under way is repeated at the next start"):
                started = undisturbed()
                metrics = self._evaluate_within_memory(step)
                self.spent.append(undisturbed() - started)
        self.run.log(metrics, step)
        if self.reports is not None:
            self.reports.evaluated(metrics, step)
        self._recorded.add(step)
        self.progress(EVALUATION_UNITS)

    def costs(self, seconds: float) -> dict[str, float]:
        """Return what this attempt took, apart from what other cells need too. Plans are estimated from it."""
        return {
            "seconds": round(seconds - self.waited, 3),
            "steps": self.steps,
            "evaluations": len(self.spent),
            "evaluation_seconds": round(sum(self.spent), 3),
            "memory_gb": round(peak_memory_gb(), 4),
            "threads": torch.get_num_threads(),
            "processes": distributed.processes(),
        }

    def missing(self, step: int, steps: int) -> str | None:
        """Return why a training of `steps` steps cannot continue at `step`, an earlier evaluation being missing, or None."""
        points = [point for point in self._points(steps) if point < step and self._evaluated(point) is None]
        return f"is past step {points[0]}, whose evaluation is missing" if points else None

    def result(self) -> tuple[dict[str, float], pd.DataFrame]:
        """Return metrics and samples of the last point."""
        step = max(self.points)
        return distributed.on_main(lambda: (self._evaluated(step) or {}, pd.read_parquet(self._samples(step))))

    def texts_by_point(self) -> pd.DataFrame:
        """Return the texts that were drawn at every point; their prompts are those of the last point's samples."""

        def read() -> pd.DataFrame:
            frames = [pd.read_parquet(self._samples(p)).assign(share=s, step=p) for p, s in self.points.items()]
            return pd.concat(frames, ignore_index=True)[["share", "step", "prompt_id", "sample", "text"]]

        return distributed.on_main(read)

    def by_point(self) -> pd.DataFrame | None:
        """Return each prompt's KL and reward at every point, by share of the training; None without a reward or training."""

        def read() -> pd.DataFrame | None:
            frames = [pd.read_parquet(self._samples(step)).assign(share=share) for step, share in self.points.items()]
            if self.cell.variant is None or any("reward" not in frame for frame in frames):
                return None
            return pd.concat(frames).groupby(["share", "prompt_id"])[["kl", "reward"]].mean().reset_index()

        return distributed.on_main(read)

    def _advance(self, step: int) -> None:
        """Report progress up to a step."""
        if step > self._reached:
            self.progress(step - self._reached, step - self._reached)
            self._reached = step

    def _points(self, steps: int) -> dict[int, float]:
        """Return {step: share of the training} of the evaluation points."""
        return {max(1, round(point * steps)): point for point in self.bench.experiment.points}

    def _samples(self, step: int) -> Path:
        return self.folder / f"samples-{step}.parquet"

    def _evaluated(self, step: int) -> dict[str, float] | None:
        """Return the metrics of an evaluation from disk; None if they or the samples are missing or damaged."""
        found = store.read_json(self.folder / f"evaluation-{step}.json")
        return found["metrics"] if found is not None and store.intact(self._samples(step)) else None

    def _evaluate_within_memory(self, step: int) -> dict[str, float]:
        try:
            return self._evaluate(step)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(f"Memory ran out in the evaluation of {self.cell.name}. Use a smaller model.") from error

    def _evaluate(self, step: int) -> dict[str, float]:
        """Evaluate now. Every process runs the model, as each may hold only a shard; the main one does the rest."""
        bench, config = self.bench, self.bench.experiment.evaluation
        prompts = held_out_prompts(bench.data.eval, config.prompts)
        given, n = (bench.backbone, bench.tokenizer, prompts, config, self.cell.seed), self.cell.best_of
        if n is None:
            samples = sample(*given)
        else:
            samples = best_of(*given, n, partial(gold_reward, bench.experiment.data.source))
        measured = self.probe() | ({} if n is None else {"oracle_queries": float(n * len(samples))})
        if self.cell.variant is not None:
            measured["preference_accuracy"] = preference_accuracy(bench)

        def judge() -> dict[str, float]:
            reference = samples if self.cell.is_reference else self.reference_samples
            result = evaluate(samples, bench.suite, reference=reference)
            store.write(self._samples(step), result.samples.to_parquet, durable=True)
            metrics = dict(result.metrics) | measured
            content = {"step": step, "point": self.points[step], "metrics": metrics}
            store.write_json(self.folder / f"evaluation-{step}.json", content, durable=True)
            return metrics

        return distributed.on_main(judge)


def preference_accuracy(bench: Workbench) -> float:
    """Return the share of held-out pairs whose log-ratio margin h is above 0; a tie counts half."""
    pairs = bench.data.eval[: bench.experiment.evaluation.pairs]
    margins = log_ratio_margins(bench.backbone, pairs, bench.store.get(bench.backbone, pairs))
    return wins(margins).mean().item()
