"""Keys of comparisons and cells: hashes of everything that defines their numbers. No weights are needed for them."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from plo.backbone.token_statistics import statistic_of
from plo.config import ConfigError, Experiment, TrainConfig
from plo.data import SOURCES, PreferenceData
from plo.data.completions import provider_of
from plo.evals import EVALUATIONS, ModelEvaluation
from plo.evals.scoring import judge_version
from plo.identity import code_identity, settings_identity, sha256
from plo.paths import slug
from plo.preference_rules import read_rule
from plo.scorers import Scorer, Stage, Variant
from plo.subjects.sampling import VERSION

EVALUATION_UNITS = 10  # progress units of an evaluation: it takes about as long as ten steps
BEST_OF = "best_of_n"
WITHOUT_EFFECT = {"log_every", "probe_every", "checkpoint_every", "gradient_checkpointing"}  # on a run's numbers


@dataclass(frozen=True)
class Inputs:
    """Settings, data and evaluations that all cells of a comparison share."""

    experiment: Experiment
    tokenizer: Any
    data: PreferenceData
    suite: tuple[str, ...]  # names of the evaluations of samples
    model_evaluations: tuple[ModelEvaluation, ...]
    model_identity: str  # hash of policy and reference, which two runs must share to be compared

    def base_identity(self, stage: Stage) -> list[Any]:
        """Return what identifies the model that a stage starts from."""
        raise NotImplementedError(f"The stage starts from {stage.model}, whose weights are not loaded.")


@dataclass(frozen=True)
class Cell:
    """A variant (None: the reference itself) and a seed; `key` is the hash of everything that defines its numbers.

    Attributes:
        given: name of the variant as the experiment has it; "" if that is the variant's own name.
        point: settings in which the variant differs from that one, as tuning chose them.
        best_of: n of a row best_of_n, which keeps the best of n samples of the reference; None for every other cell.
    """

    variant: Variant | None
    seed: int
    key: str
    given: str = ""
    point: Mapping[str, Any] = field(default_factory=dict)
    best_of: int | None = None

    @property
    def label(self) -> str:
        """Name of the variant, or "reference" or "best_of_n(n=4)"."""
        if self.best_of is not None:
            return best_of_label(self.best_of)
        return self.variant.name if self.variant is not None else "reference"

    @property
    def is_reference(self) -> bool:
        """Whether the cell is the reference itself, whose samples the other cells of its seed are compared with."""
        return self.variant is None and self.best_of is None

    @property
    def name(self) -> str:
        """Name in logs and records, such as "dpo seed 0"."""
        return f"{self.label} seed {self.seed}"

    def train(self, experiment: Experiment) -> TrainConfig:
        """Return the training settings: the experiment's, with those of the variant's own."""
        return train_settings(experiment, self.variant)

    def scorer(self, experiment: Experiment) -> Scorer | None:
        """Return the variant's token scorer; its stages have the cell's seed unless the experiment's seeds share them."""
        scorer = self.variant.scorer if self.variant is not None else None
        return scorer if scorer is None or experiment.share_stages else scorer.of_seed(self.seed)

    def units(self, experiment: Experiment, pairs: int) -> int:
        """Return the number of units of progress that the cell takes."""
        if self.variant is None:
            return EVALUATION_UNITS
        return self.steps(experiment, pairs) + EVALUATION_UNITS * len(experiment.points)

    def steps(self, experiment: Experiment, pairs: int) -> int:
        """Return the number of optimiser steps that the cell takes."""
        return optimiser_steps(self.train(experiment), pairs) if self.variant is not None else 0

    def folder(self, root: Path) -> Path:
        """Return the cell's folder in the folder of its comparison."""
        return root / f"{slug(self.label)}-seed{self.seed}-{self.key[:8]}"


def best_of_label(n: int) -> str:
    """Return the name of the row that keeps the best of n samples of the reference."""
    return f"{BEST_OF}(n={n})"


def train_settings(experiment: Experiment, variant: Variant | None) -> TrainConfig:
    """Return the training settings of a variant: the experiment's, replaced by its own.

    Raises:
        ConfigError: they do not fit each other.
    """
    if variant is None or not variant.train:
        return experiment.train
    return TrainConfig.of({**experiment.train.model_dump(), **variant.train}, f"The training of {variant.name}")


def cell_key(inputs: Inputs, variant: Variant | None, seed: int, best_of: int | None = None) -> str:
    """Return the hash of model, data, optimisation, evaluation, seed, and the code of the loss, statistics and evaluations."""
    return cell_keys(inputs)(variant, seed, best_of)


def cell_keys(inputs: Inputs) -> Callable[..., str]:
    """Return a function that is `cell_key` of these inputs, and computes what the seeds of a variant share once."""
    known: dict[int, dict[str, Any]] = {}

    def key(variant: Variant | None, seed: int, best_of: int | None = None) -> str:
        if id(variant) not in known:
            known[id(variant)] = _settings(inputs, variant)
        own_stages = variant is not None and variant.scorer and variant.scorer.stages
        stage_seed = {"stage_seed": seed} if own_stages and not inputs.experiment.share_stages else {}
        chosen = {"best_of": best_of} if best_of is not None else {}
        after: dict[str, Any] = {}
        if variant is not None and variant.origin.round > 1:
            after["after"] = cell_key(inputs, previous_round(variant), seed)
        return sha256({**known[id(variant)], "seed": seed, **stage_seed, **after, **chosen})

    return key


def best_of_cells(inputs: Inputs, seeds: Iterable[int]) -> list[Cell]:
    """Return the cells of an experiment's rows best_of_n."""
    experiment, key = inputs.experiment, cell_keys(inputs)
    rows = [(seed, n) for seed in seeds for n in experiment.best_of]
    return [Cell(None, seed, key(None, seed, n), best_of_label(n), best_of=n) for seed, n in rows]


def previous_round(variant: Variant) -> Variant:
    """Return the variant whose model a round of iterated pairs samples and starts from."""
    return variant.on(replace(variant.origin, round=variant.origin.round - 1))


def _settings(inputs: Inputs, variant: Variant | None) -> dict[str, Any]:
    """Return what identifies a cell but for its seed."""
    plugged = [EVALUATIONS[name].load() for name in inputs.suite]
    if variant is not None:
        plugged += [
            one.load() for of in (statistic_of, provider_of) for one in map(of, variant.needs) if one is not None
        ]
    settings = {
        "shared": shared_settings(inputs),
        "loss": [variant.loss.name, variant.source] if variant is not None else None,
        **({"train": variant.train} if variant is not None and variant.train else {}),
        **({"pairs": _pairs(inputs.experiment, variant)} if variant is not None and variant.origin.settings else {}),
        "code": sorted({code_identity(function) for function in plugged}),
    }
    if other := other_models(inputs.experiment, variant):
        settings["stages"] = [inputs.base_identity(stage) for stage in other]
    return settings


def scorer_name(experiment: Experiment) -> str:
    """Return the name of the evaluation that scores answers.

    Raises:
        ConfigError: none is named, and the data source has no gold reward.
    """
    source, config = experiment.data.source, experiment.data.sample
    gold = SOURCES[source].facts.gold if source in SOURCES else None
    if not (config.scorer or gold):
        raise ConfigError(
            f"data.origin: sampled answers need a score, and the data source {source} has no gold reward: name an evaluation of "
            f"samples in data.sample.scorer, or a judge in data.sample.judge."
        )
    return config.scorer or str(gold)


def training_pairs(inputs: Inputs, variant: Variant | None) -> int:
    """Return the number of training pairs of a variant; of sampled ones, the largest that their rule can give."""
    if variant is None or not variant.origin.round:
        return len(inputs.data.train)
    config = inputs.experiment.data.sample
    prompts = len({pair.prompt for pair in inputs.data.train})
    kept = 1 - read_rule(config.rule).quantile
    return math.ceil(round(kept * min(prompts, config.prompts or prompts), 9))


def _pairs(experiment: Experiment, variant: Variant) -> list[Any]:
    """Return what identifies training pairs that are not the data source's own, but for the model that is sampled."""
    origin, config = variant.origin, experiment.data.sample
    if not origin.round:
        return [origin.settings]
    settings = settings_identity(config, exclude={"judge_calls", "judge_money"})
    if config.judge is not None:
        return [origin.settings, settings, judge_version(json.dumps(config.judge))]
    return [origin.settings, settings, code_identity(EVALUATIONS[scorer_name(experiment)].load())]


def other_models(experiment: Experiment, variant: Variant | None) -> list[Stage]:
    """Return what starts from another model than the policy's: stages of a variant's scorer, and the answers of its first round."""
    if variant is None:
        return []
    stages = list(variant.scorer.stages.values()) if variant.scorer is not None else []
    if variant.origin.round:
        stages.append(Stage(model=experiment.data.sample.policy))
    return [stage for stage in stages if stage.model]


def shared_settings(inputs: Inputs) -> dict[str, Any]:
    """Return the settings that all cells of a comparison share and that change their numbers."""
    experiment = inputs.experiment
    return {
        "model": [inputs.model_identity, settings_identity(experiment.model, exclude={"name", "reference_disk_gb"})],
        "data": inputs.data.digest,
        "train": settings_identity(experiment.train, exclude=WITHOUT_EFFECT),
        "eval_at": experiment.points,
        "evaluation": evaluation_settings(inputs),
    }


def evaluation_settings(inputs: Inputs) -> list[Any]:
    """Return the settings that evaluations must share to be compared."""
    config = inputs.experiment.evaluation
    # Evaluations of a model have keys of their own.
    others = {"batch_size", "sampler", "judge", "judge_calls", "judge_money"}
    of_samples = [name for name in config.evaluations if EVALUATIONS[name].facts.level != "model"]
    return [settings_identity(config, exclude=others) | {"suite": of_samples, "drawn": VERSION}, inputs.suite]


def comparison_key(inputs: Inputs) -> str:
    """Return the hash of what all cells share, so that losses and seeds added later join the same comparison."""
    return sha256([inputs.experiment.name, shared_settings(inputs)])


def comparison_folder(inputs: Inputs) -> Path:
    """Return the folder of a comparison's checkpoints and trained adapters."""
    return inputs.experiment.out / f"{slug(inputs.experiment.name)}-{comparison_key(inputs)[:8]}"


def optimiser_steps(train: TrainConfig, pairs: int) -> int:
    """Return the number of optimiser steps of a training on `pairs` pairs."""
    return train.steps or math.ceil(train.epochs * -(-pairs // train.batch_size))
