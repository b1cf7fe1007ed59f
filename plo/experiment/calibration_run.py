"""Measure what the parts of an experiment cost: `python -m plo.experiment.calibration_run SETTINGS RESULT`.

The process loads the experiment's model and data, and passes a few batches through the code that `plo compare` runs. It is
a process of its own, so that its peak memory is that of a comparison. Its caches, store and folders are scratch.
"""

import itertools
import json
import logging
import random
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import psutil
import torch
from transformers import TrainerCallback

from plo import caches
from plo.backbone.memory import peak_memory_gb
from plo.backbone.steps import tokens_of
from plo.backbone.trainer import PreferenceTrainer
from plo.config import Experiment, TrainConfig
from plo.data import Pair
from plo.errors import PloError
from plo.evals import ModelEvaluation
from plo.experiment.cell import PROBE_PAIRS, run_cell
from plo.experiment.costs import cost_class
from plo.experiment.evaluations import evaluate_cells
from plo.experiment.keys import Cell, train_settings
from plo.experiment.plan_evaluations import texts_of
from plo.experiment.plan_stages import with_inner
from plo.experiment.preflight import checked_variants
from plo.experiment.scores import token_weights
from plo.experiment.stages import CurveRecorder
from plo.experiment.workbench import Workbench, draws_anew, has_own_sft, read_data, workbench
from plo.machine import undisturbed, waited
from plo.scorers import Variant
from plo.tracking import ActiveRun, Tracker

STEPS, MORE_STEPS = 5, 25  # of a measured training, and of one whose steps take less than `SHORT` seconds
SHORT = 0.2
HEAVY_STEPS = 2  # on the batch with the most tokens: the second one has the state of the optimiser
WARM = 10.0  # seconds of a cell below which it is measured again
EPOCHS = 3  # whose batches are looked through for it


class _Clock(TrainerCallback):
    """Notes when each optimiser step ended."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(undisturbed())


class Calibration:
    """A short run of every part of an experiment, in a scratch folder.

    Attributes:
        figures: the measured costs by the names of `Costs`.
    """

    def __init__(self, experiment: Experiment, scratch: Path):
        variants, _ = checked_variants(experiment)
        self.scratch, self.figures = scratch, dict[str, float]()
        self._numbers = itertools.count(1)  # of folders and runs
        bench = workbench(experiment)
        self.tracker = Tracker(experiment.store, "plo")
        self.parent = self.tracker.comparison("calibration", "calibration", {})
        self.figures["start"] = time.time() - psutil.Process().create_time() - waited()
        self.variants = variants
        pairs, packed = bench.data.train, bench.backbone.packed
        self.tokens: Callable[[Iterable[Pair]], int] = lambda some: sum(tokens_of(pair, packed) for pair in some)
        drawn = random.Random(0)
        batch = max(train_settings(experiment, variant).batch_size for variant in variants)
        self.heavy = _heaviest_batch(pairs, batch, self.tokens, drawn)
        self.typical = drawn.sample(list(pairs), min(len(pairs), batch * (STEPS + 1)))
        self.bench = self._small(bench)
        self.seed = experiment.seeds[0]
        self.stages = list[float]()  # seconds of each stage
        self.evaluations = bench.model_evaluations

    def _small(self, bench: Workbench) -> Workbench:
        """Return the workbench with few pairs and steps, and one batch of samples in an evaluation."""
        experiment, config = bench.experiment, bench.experiment.evaluation
        whole = min(config.prompts, len({pair.prompt for pair in bench.data.eval}))
        prompts = min(whole, -(-config.batch_size // config.samples))
        self.share = prompts / whole
        changes = {
            "train": _with_steps(experiment.train, STEPS),
            "evaluation": config.model_copy(
                update={"prompts": prompts, "pairs": max(1, round(config.pairs * self.share))}
            ),
            "sft": {**experiment.sft, "steps": STEPS} if experiment.sft or "sft" in experiment.stages else {},
            "eval_at": (1.0,),
            "tuning": None,
            "looks": (),
        }
        small = experiment.model_copy(update=changes)
        stages = replace(bench.stages, pairs=self.typical, train=small.train, _digests={})
        stages.record = lambda key, name, params: self.tracker.start_stage(self.parent, key, name, {}, params)
        data = replace(bench.data, train=self.typical)
        return replace(bench, experiment=small, data=data, stages=stages, model_evaluations=())

    def run(self) -> dict[str, float]:
        """Measure everything, and return the figures."""
        experiment, figures = self.bench.experiment, self.figures
        if draws_anew(experiment):
            generation = self.bench.backbone.causal_lm.generation_config
            figures["draw"] = _seconds(lambda: read_data(experiment, self.bench.tokenizer, generation, self.seed))
        if "sft" in experiment.stages:
            started = undisturbed()
            self.bench = self.bench.started_from_sft(self.seed if has_own_sft(experiment) else 0)
            self.stages.append(undisturbed() - started)
        backbone, store = self.bench.backbone, self.bench.store
        tokens = self.tokens(self.typical)
        figures["reference"] = _seconds(lambda: store.get(backbone, self.typical)) / tokens
        store.get(backbone, self.heavy)
        figures["memory"] = peak_memory_gb()
        for cost, variant in self._classes().items():
            self._measure_class(cost, variant)
        for measured in (self._measure_reference, self._measure_cell):
            if measured() < WARM:
                measured()
        self._measure_evaluations()
        self._measure_scorers()
        if self.stages:
            steps = STEPS * experiment.train.batch_size * tokens / len(self.typical) * figures["training log-probs"]
            figures["stage"] = max(0.0, min(self.stages) - steps)
        figures["bytes of reference"] = 4.0  # a float32
        figures["bytes of hidden states"] = float(backbone.hidden_size * backbone.head_dtype.itemsize)
        return figures

    def _classes(self) -> dict[str, Variant]:
        """Return a variant of each cost class: the one with the largest forward pass."""
        found: dict[str, Variant] = {}
        size = lambda one: _pass_pairs(train_settings(self.bench.experiment, one))  # noqa: E731
        for variant in sorted(self.variants, key=size):
            found[cost_class(variant.loss)] = variant
        return found

    def _measure_class(self, cost: str, variant: Variant) -> None:
        steps, checkpoint, memory = self._train(variant, self.heavy, HEAVY_STEPS)
        self.figures[f"memory {cost}"] = memory
        self.figures["checkpoint"] = max(checkpoint, self.figures.get("checkpoint", 0.0))
        count = MORE_STEPS if max(steps) < SHORT else STEPS
        batch = min(train_settings(self.bench.experiment, variant).batch_size, len(self.typical))
        pairs = self.typical[: len(self.typical) // batch * batch]
        steps, _, memory = self._train(variant, pairs, count + 1)
        self.figures[f"training {cost}"] = median(steps) / (batch * self.tokens(pairs) / len(pairs))
        self.figures[f"memory {cost}"] = max(memory, self.figures[f"memory {cost}"])

    def _train(self, variant: Variant, pairs: Sequence[Pair], steps: int) -> tuple[list[float], float, float]:
        """Train for some steps, and return the seconds of each but the first, of the checkpoint, and the peak memory."""
        bench, clock = self.bench, _Clock()
        backbone, store, probe = bench.backbone, bench.store, bench.data.eval[:PROBE_PAIRS]
        backbone.reset(self.seed, variant.loss)
        sides = [(pair.chosen_ids, pair.rejected_ids) for pair in pairs]
        weights = [(torch.ones(len(chosen)), torch.ones(len(rejected))) for chosen, rejected in sides]
        folder, run = self._folder(), self._begin()
        trainer = PreferenceTrainer(
            backbone,
            pairs,
            store.for_loss(backbone, pairs, variant.needs),
            _with_steps(train_settings(bench.experiment, variant), steps),
            seed=self.seed,
            folder=folder,
            weights=weights if "weights" in variant.needs else None,
            probe=(probe, store.get(backbone, probe, hidden=True)),
            callbacks=[CurveRecorder(run), clock],
        )
        trainer.train()
        ended, memory = undisturbed(), peak_memory_gb()
        run.finish()
        self.figures["bytes of a checkpoint"] = _bytes(next(folder.glob("checkpoint-*"), folder))
        return [after - before for before, after in itertools.pairwise(clock.ends)], ended - clock.ends[-1], memory

    def _measure_reference(self) -> float:
        """Measure a cell of the reference, and return its seconds."""
        config, run, cell = self.bench.experiment.evaluation, self._begin(), Cell(None, self.seed, "0" * 64)
        seconds = _seconds(lambda: run_cell(cell, self.bench, run, self._folder(), None))
        self._least("evaluation of the reference", seconds / (config.prompts * config.samples))
        self.figures["memory"] = max(self.figures["memory"], peak_memory_gb())
        self.reference = self.tracker.table(run.run_id, "samples.json")
        return seconds

    def _measure_cell(self) -> float:
        """Measure a cell of `sft`, or of another loss without a scorer, and return its seconds."""
        bench, figures, config = self.bench, self.figures, self.bench.experiment.evaluation
        plain = next(variant for variant in self.variants if variant.scorer is None)
        variant = Variant(list(plain.terms), {k: v for k, v in plain.train.items() if k not in ("steps", "epochs")})
        cell, root, run, events = Cell(variant, self.seed, "1" * 64), self._folder(), self._begin(), list[float]()
        note = lambda units, steps=0: events.append(undisturbed())  # noqa: E731
        seconds = _seconds(lambda: run_cell(cell, bench, run, root, self.reference, note))
        step = median(after - before for before, after in itertools.pairwise(events[-STEPS - 1 : -1]))
        evaluation = events[-1] - events[-2]
        self._least("evaluation", evaluation / (config.prompts * config.samples))
        self._least("cell", max(0.0, seconds - evaluation - STEPS * step))
        figures["memory"] = max(figures["memory"], peak_memory_gb())
        folder = cell.folder(root)
        figures["bytes of a model"] = _bytes(folder / "model")
        evaluated = (_bytes(folder) - figures["bytes of a model"]) * len(bench.experiment.points) / self.share
        recorded = next(self.scratch.glob(f"mlartifacts/**/{run.run_id}"), None)
        figures["bytes of a cell"] = evaluated + (_bytes(recorded) if recorded is not None else 0.0)
        return seconds

    def _measure_evaluations(self) -> None:
        """Measure plo's own evaluations that neither ask a judge nor say how many texts they draw."""
        cells = [c for c in self.tracker.comparisons()[0].cells() if c.tags.get("plo.folder")]
        for one in filter(_is_measured, self.evaluations):
            bench = replace(self.bench, model_evaluations=(one,))
            for cell in cells[-2:]:
                run = lambda bench=bench, cell=cell: evaluate_cells(bench, [cell], self.tracker, self.parent)  # noqa: E731
                self._least(f"evaluating {one.name}", _seconds(run))

    def _measure_scorers(self) -> None:
        scorers = [one for variant in self.variants for one in with_inner(variant.scorer)]
        stages, tokens = self.bench.stages, self.tokens(self.typical)
        for scorer in {one.name: one for one in scorers}.values():
            scorer = scorer.of_seed(self.seed)
            for label, stage in scorer.stages.items():
                self.stages.append(_seconds(lambda label=label, stage=stage: stages.make(stage, label)))
            took = _seconds(lambda scorer=scorer: token_weights(stages, scorer, self.seed))
            self.figures[f"scoring {scorer.name}"] = took / tokens
            self.figures[f"memory scoring {scorer.name}"] = peak_memory_gb()
        kept = [*caches.CACHES["stages"].folder.glob("*/policy.safetensors")]
        if kept:
            self.figures["bytes of a stage"] = fmean(_bytes(file) for file in kept)

    def _least(self, name: str, value: float) -> None:
        """Note the least of several measurements: the first one imports and compiles, and noise only adds."""
        self.figures[name] = min(value, self.figures.get(name, value))

    def _folder(self) -> Path:
        folder = self.scratch / f"run-{next(self._numbers)}"
        folder.mkdir(parents=True)
        return folder

    def _begin(self) -> ActiveRun:
        number, tags = next(self._numbers), {"plo.variant": "sft", "plo.seed": self.seed}
        return self.tracker.start_cell(self.parent, str(number), f"run {number}", tags)


def _is_measured(evaluation: ModelEvaluation) -> bool:
    ours = (evaluation.entry.load().__module__ or "").startswith("plo.") and evaluation.entry.name != "lm_eval"
    return ours and not evaluation.asks_judge and texts_of(evaluation) is None


def _with_steps(train: TrainConfig, steps: int) -> TrainConfig:
    return train.model_copy(update={"steps": steps, "epochs": 1.0, "checkpoint_every": 10**6})


def _pass_pairs(train: TrainConfig) -> int:
    return min(train.batch_size, train.micro_batch_size or train.batch_size)


def _heaviest_batch(
    pairs: Sequence[Pair], size: int, tokens: Callable[[Iterable[Pair]], int], drawn: random.Random
) -> list[Pair]:
    """Return the batch with the most tokens among those of some epochs: its memory is the peak."""
    batches = []
    for _ in range(EPOCHS):
        order = drawn.sample(list(pairs), len(pairs))
        batches += [order[start : start + size] for start in range(0, len(order), size)]
    return max(batches, key=tokens)


def _seconds(work: Callable[[], Any]) -> float:
    started = undisturbed()
    work()
    return undisturbed() - started


def _bytes(path: Path) -> float:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return float(sum(file.stat().st_size for file in files))


def main(settings: Path, result: Path) -> None:
    """Measure the experiment of a JSON file, and write the figures, or the error, into another one."""
    logging.getLogger("plo").setLevel(logging.ERROR)
    try:
        experiment = Experiment.of(json.loads(settings.read_text("utf-8")), "The calibrated experiment")
        found: dict[str, Any] = {"figures": Calibration(experiment, settings.parent).run()}
    except PloError as error:
        found = {"error": str(error)}
    result.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
