"""One cell of a comparison: train one loss with one seed, sample and evaluate along the way, record."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import TrainerCallback

from plo import distributed, interrupt, store
from plo.backbone.batch import collate
from plo.backbone.checkpoints import last_checkpoint
from plo.backbone.model import Backbone
from plo.backbone.reference import Reference
from plo.backbone.targets import short_of_target
from plo.backbone.token_statistics import STATISTICS, needs_reference
from plo.backbone.trainer import PreferenceTrainer
from plo.config import EvaluationConfig, Experiment
from plo.data import Pair
from plo.evals import EVALUATIONS, EvaluationError, describe_metrics, evaluate
from plo.experiment.sampling import held_out_prompts, sample
from plo.experiment.scores import scores_key, token_weights
from plo.experiment.stages import WITHOUT_EFFECT
from plo.experiment.workbench import Workbench
from plo.identity import code_identity, settings_identity, sha256
from plo.losses import Loss
from plo.margins import wins, without_rounding
from plo.paths import plo_home, slug
from plo.tracking import ActiveRun

PROBE_PAIRS = 8
ACCURACY_PAIRS = 16  # pairs a forward pass of the preference accuracy
EVALUATION_UNITS = 10  # progress units of an evaluation: it takes about as long as ten steps


@dataclass(frozen=True)
class Cell:
    """A loss (None: the reference itself) and a seed.

    Attributes:
        key: hash of everything that defines the cell's numbers.
    """

    loss: Loss | None
    seed: int
    key: str

    @property
    def variant(self) -> str:
        return self.loss.name if self.loss is not None else "reference"

    @property
    def name(self) -> str:
        return f"{self.variant} seed {self.seed}"

    def units(self, experiment: Experiment, pairs: int) -> int:
        """Units of progress that the cell takes."""
        if self.loss is None:
            return EVALUATION_UNITS
        return self.steps(experiment, pairs) + EVALUATION_UNITS * len(experiment.points)

    def steps(self, experiment: Experiment, pairs: int) -> int:
        """Optimiser steps that the cell takes."""
        train = experiment.train
        if self.loss is None:
            return 0
        return train.steps or math.ceil(train.epochs * -(-pairs // train.batch_size))

    def folder(self, root: Path) -> Path:
        return root / f"{slug(self.variant)}-seed{self.seed}-{self.key[:8]}"


def cell_key(bench: Workbench, loss: Loss | None, seed: int) -> str:
    """Hash of what the cell's numbers depend on: model, data, optimisation, evaluation, seed, and the code of
    the loss, its generator, its statistics and the evaluations, with the code that it calls."""
    plugged = [EVALUATIONS[name].load() for name in bench.suite]
    if loss is not None:
        plugged += [STATISTICS[need].load() for need in loss.needs if need in STATISTICS]
    other = [stage for stage in loss.scorer.stages.values() if stage.model] if loss is not None and loss.scorer else []
    settings = {
        "shared": shared_settings(bench),
        "loss": [loss.name, loss.source] if loss is not None else None,
        "code": sorted({code_identity(function) for function in plugged}),
        "seed": seed,
        **({"stages": [bench.stages.identity(stage) for stage in other]} if other else {}),
    }
    return sha256(settings)


def shared_settings(bench: Workbench) -> dict[str, Any]:
    """What all cells of a comparison have in common and what changes their numbers."""
    experiment = bench.experiment
    return {
        "model": [
            bench.model_identity,
            settings_identity(experiment.model, exclude={"name", "reference_disk_gb"}),
        ],
        "data": bench.data.digest,
        "train": settings_identity(experiment.train, exclude=WITHOUT_EFFECT),
        "eval_at": experiment.points,
        "evaluation": evaluation_settings(bench),
    }


def evaluation_settings(bench: Workbench) -> list[Any]:
    """What evaluations must share to be compared."""
    config = bench.experiment.evaluation
    others = {
        "batch_size",
        "judge",
        "judge_calls",
        "judge_money",
    }  # evaluations of a model have runs and keys of their own
    return [settings_identity(config, exclude=others) | {"suite": _of_samples(config)}, bench.suite]


def _of_samples(config: EvaluationConfig) -> list[str]:
    return [name for name in config.evaluations if EVALUATIONS[name].facts.level != "model"]


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
    if cell.loss is None:
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
    if scorer := cell.loss.scorer:
        weights = token_weights(bench.stages, scorer, cell.seed, plo_home() / "scores")
        stages += map(bench.stages.key, scorer.stages.values())
        while scorer is not None:
            stages.append(scores_key(bench.stages, scorer, cell.seed))
            scorer = scorer.inner
    run.tag("plo.stages", json.dumps(stages))
    backbone.reset(cell.seed, cell.loss)
    probe = data.eval[:PROBE_PAIRS]
    registered = [need for need in cell.loss.needs if need in STATISTICS]
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
    return short_of_target(cell.loss, trainer.state.log_history, trainer.state.max_steps)


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
        if self.cell.loss is not None:
            measured["preference_accuracy"] = preference_accuracy(bench)

        def judge() -> dict[str, float]:
            reference = samples if self.cell.loss is None else self.reference_samples
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


def log_ratio_margins(backbone: Backbone, pairs: Sequence[Pair], reference: Reference) -> torch.Tensor:
    """Return each pair's margin h (nats, float64) by the stored reference: exactly 0 where it is 0 but for rounding."""
    found: list[float] = []
    for start in range(0, len(pairs), ACCURACY_PAIRS):
        indices = range(start, min(start + ACCURACY_PAIRS, len(pairs)))
        batch = reference.added_to(collate([pairs[i] for i in indices], packed=backbone.packed), indices)
        ratios = backbone.measure(batch, ("logps",))["logps"].cpu() - batch.ref_logps
        totals = [part.sum().item() for part in ratios.split(batch.lengths)]
        half = len(indices)
        found += [c - r for c, r in zip(totals[:half], totals[half:], strict=True)]
    tokens = torch.tensor([len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs])
    return without_rounding(torch.tensor(found, dtype=torch.float64), tokens, backbone.head_dtype)


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in logs.items() if isinstance(value, int | float) and name != "step"}
