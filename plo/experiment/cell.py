"""One cell of a comparison: train one loss with one seed, sample and evaluate along the way, record."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from transformers import TrainerCallback

from plo import distributed, interrupt, store
from plo.backbone.checkpoints import last_checkpoint
from plo.backbone.targets import short_of_target
from plo.backbone.token_statistics import STATISTICS, needs_reference
from plo.backbone.trainer import PreferenceTrainer
from plo.evals import EvaluationError, describe_metrics, evaluate
from plo.experiment.keys import EVALUATION_UNITS, Cell
from plo.experiment.scores import scores_key, token_weights
from plo.experiment.workbench import Workbench
from plo.margins import wins
from plo.subjects.policy import log_ratio_margins
from plo.subjects.sampling import held_out_prompts, sample
from plo.tracking import ActiveRun

PROBE_PAIRS = 8


def run_cell(
    cell: Cell,
    bench: Workbench,
    run: ActiveRun,
    root: Path,
    reference_samples: pd.DataFrame | None,
    progress: Callable[..., None] = lambda units, steps=0: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
    """Train (resuming from the last whole checkpoint), evaluate at every point, record. Returns the final metrics.

    Args:
        run: where it is recorded.
        root: folder of the comparison; checkpoints and the trained adapter go into a folder of the cell's own.
        reference_samples: the reference's samples of the same seed, for win rates; None for the reference itself.
        progress: told the units of work done since the last call, and how many of them were steps.
        note: told what a reader of the cell's numbers should know; the record has it as the tag `plo.notes`.
    """
    folder = cell.folder(root)
    folder.mkdir(parents=True, exist_ok=True)
    evaluator = Evaluator(cell, bench, run, folder, reference_samples, progress)
    if cell.variant is None:
        with bench.backbone.holding(bench.backbone.reference):
            evaluator.at_step(0, 0)
    else:
        notes = _train(cell, bench, run, folder, evaluator)
        if notes:
            run.tag("plo.notes", json.dumps(notes))
        for text in notes:
            note(text)
    metrics, samples = evaluator.result()
    run.table(samples, "samples.json")
    run.describe(describe_metrics(bench.suite, metrics))
    run.finish(metrics)
    for checkpoint in folder.glob("checkpoint-*") if distributed.is_main() else ():
        shutil.rmtree(checkpoint, ignore_errors=True)  # the trained model stays; optimiser states have served
    return metrics


def _train(cell: Cell, bench: Workbench, run: ActiveRun, folder: Path, evaluator: "Evaluator") -> list[str]:
    backbone, data = bench.backbone, bench.data
    weights, stages = None, [bench.sft] if bench.sft is not None else []
    if scorer := cell.variant.scorer:
        weights = token_weights(bench.stages, scorer, cell.seed)
        stages += map(bench.stages.key, scorer.stages.values())
        while scorer is not None:
            stages.append(scores_key(bench.stages, scorer, cell.seed))
            scorer = scorer.inner
    run.tag("plo.stages", json.dumps(stages))
    backbone.reset(cell.seed, cell.variant.loss)
    probe = data.eval[:PROBE_PAIRS]
    registered = [need for need in cell.variant.needs if need in STATISTICS]
    trainer = PreferenceTrainer(
        backbone,
        data.train,
        bench.store.get(backbone, data.train, hidden=needs_reference(registered)),
        bench.experiment.train,
        seed=cell.seed,
        folder=folder,
        weights=weights,
        probe=(probe, bench.store.get(backbone, probe, hidden=True)),
        callbacks=[evaluator],
    )
    evaluator.probe = trainer.probe
    checkpoint = distributed.on_main(lambda: last_checkpoint(folder, evaluator.lacking))
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    backbone.save(folder / "model")
    distributed.on_main(lambda: store.seal(folder / "model"), share=False)
    run.folder(folder / "model")
    return short_of_target(cell.variant.loss, trainer.state.log_history, trainer.state.max_steps)


class Evaluator(TrainerCallback):
    """Evaluates at the points of `eval_at`, each once, right after its checkpoint is whole; logs as training goes."""

    def __init__(self, cell, bench, run, folder, reference_samples, progress):
        self.cell, self.bench, self.run, self.folder = cell, bench, run, folder
        self.reference_samples, self.progress = reference_samples, progress
        self.probe: Callable[[], dict[str, float]] = dict
        self.points: Mapping[int, float] = {0: 1.0}

    def on_train_begin(self, args, state, control, **kwargs):
        self.points = self._points(state.max_steps)
        self.progress(state.global_step, state.global_step)
        for entry in state.log_history:  # of an earlier attempt, up to the checkpoint that this one resumes
            if "loss" in entry:
                self.run.log(_numbers(entry), entry["step"])
        for step in self.points:
            if step <= state.global_step:
                self.at_step(step, state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save |= state.global_step in self.points
        control.should_log |= control.should_save  # a resumed run starts from empty sums: so does every checkpoint
        self.progress(1, 1)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:  # not the Trainer's own summary at the end
            self.run.log(_numbers(logs), state.global_step)

    def on_save(self, args, state, control, **kwargs):
        if state.global_step in self.points:
            self.at_step(state.global_step, state.global_step)

    def at_step(self, step: int, now: int) -> None:
        """Evaluate and keep the result on disk; where an earlier attempt did it already, read it.

        Args:
            step: the evaluation point.
            now: the step that the policy has reached.
        """
        metrics = distributed.on_main(lambda: self._evaluated(step))
        if metrics is None:
            if step != now:  # `lacking` chose another checkpoint, had it been so at the start
                raise EvaluationError(f"The evaluation of step {step} in {self.folder} is gone: start again.")
            with interrupt.awaiting("the evaluation under way is made again at the next start"):
                metrics = self._evaluate(step)
        self.run.log(metrics, step)
        self.progress(EVALUATION_UNITS)

    def lacking(self, step: int, steps: int) -> str | None:
        """What keeps a training of so many steps from going on at `step`: an evaluation before it that is there no more."""
        gone = [point for point in self._points(steps) if point < step and self._evaluated(point) is None]
        return f"is past step {gone[0]}, whose evaluation is gone" if gone else None

    def result(self) -> tuple[dict[str, float], pd.DataFrame]:
        """Metrics and samples of the last point."""
        step = max(self.points)

        return distributed.on_main(lambda: (self._evaluated(step), pd.read_parquet(self._samples(step))))

    def _points(self, steps: int) -> dict[int, float]:
        """{step: share of the training} of the evaluation points."""
        return {max(1, round(point * steps)): point for point in self.bench.experiment.points}

    def _samples(self, step: int) -> Path:
        return self.folder / f"samples-{step}.parquet"

    def _evaluated(self, step: int) -> dict[str, float] | None:
        """The metrics that an evaluation found, kept on disk; None if it, or its samples, is not there whole."""
        found = store.read_json(self.folder / f"evaluation-{step}.json")
        return found["metrics"] if found is not None and store.intact(self._samples(step)) else None

    def _evaluate(self, step: int) -> dict[str, float]:
        """The model's part in every process alike, as each may hold but a shard of it; the rest in the main one."""
        bench, config = self.bench, self.bench.experiment.evaluation
        prompts = held_out_prompts(bench.data.eval, config.prompts)
        samples = sample(bench.backbone, bench.tokenizer, prompts, config, self.cell.seed)
        measured = self.probe()
        if self.cell.variant is not None:
            measured["preference_accuracy"] = preference_accuracy(bench)

        def judge() -> dict[str, float]:
            reference = samples if self.cell.variant is None else self.reference_samples
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


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in logs.items() if isinstance(value, int | float) and name != "step"}
