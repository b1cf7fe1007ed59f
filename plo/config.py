"""Settings of an experiment, which `plo compare` runs, read from YAML. Errors name the place and the remedy."""

import difflib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from plo import extras
from plo.config_data import DataConfig
from plo.grid import expand_grid
from plo.section import ConfigError, Section, problem, read_settings
from plo.tasks import with_task_settings
from plo.values import as_list, read_list


def _as_losses(value: Any) -> Any:
    """Return a list of losses, with every grid expanded."""
    listed = as_list(value)
    return [one for spec in listed for one in expand_grid(spec)] if isinstance(listed, list | tuple) else listed


def _targets(value: Any) -> Any:
    """Return a list for `lora_targets: q_proj,v_proj`; a single name is a pattern and stays as it is."""
    parts = read_list(value) if isinstance(value, str) else []
    return parts if len(parts) > 1 else value


class ModelConfig(Section):
    """The policy; its initial weights are the reference."""

    name: str = "embedded"
    """Model to train: 'embedded', 'pocket', or the folder or hub name of a model or of a LoRA adapter with its base."""
    peft: Literal["lora", "full"] = "lora"
    """Fine-tuning: of a LoRA adapter or of all weights."""
    lora_r: PositiveInt = 16
    """Rank of the adapter."""
    lora_alpha: PositiveFloat = 32
    """Scale of the adapter: its product counts lora_alpha / lora_r times."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout of the adapter's input."""
    lora_targets: Annotated[str | list[str], BeforeValidator(_targets)] = "all-linear"
    """Modules that get an adapter: a list of names, a regular expression, or all-linear."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Precision of matrix products; auto is bfloat16 where the hardware supports it."""
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """Attention of padded rows and in generation; auto is sdpa where the model supports it."""
    reference_disk_gb: float = Field(default=20, ge=0)
    """Hidden states of the reference to keep on disk, in GB; the rest is computed in every step."""
    packed: bool = True
    """Compute pairs without padding and each prompt once, where the model supports it."""


LEARNING_RATES = {"lora": 2e-4, "full": 1e-5}  # where train.lr is not given


class TrainConfig(Section):
    """Optimisation, equal for every loss of a comparison unless a loss has a `train` of its own."""

    first_defaults: ClassVar[dict[str, Any]] = {"max_grad_norm": 1.0}

    lr: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Learning rate; null is 2e-4 with LoRA and 1e-5 in full fine-tuning, which suit models of some 100M "
        "parameters (7B models take 5e-7 to 1e-6).",
    )
    batch_size: PositiveInt = 8
    """Pairs per optimiser step, over all processes."""
    micro_batch_size: PositiveInt | None = None
    """Maximum number of pairs per forward pass on a device; null is its whole share of the batch."""
    epochs: float = Field(default=1, gt=0, allow_inf_nan=False)
    """Passes over the training pairs."""
    steps: PositiveInt | None = None
    """Number of optimiser steps, in place of epochs."""
    schedule: str = "cosine"
    """Schedule of the learning rate: a name of transformers' SchedulerType."""
    warmup: float = Field(default=0.1, ge=0, lt=1)
    """Share of the steps in which the learning rate rises."""
    optimizer: str = "adamw_torch_fused"
    """Optimiser: a name of transformers' OptimizerNames."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of the optimiser."""
    max_grad_norm: PositiveFloat | None = None
    """Norm at which gradients are clipped; null is clip_factor times the running median norm."""
    clip_factor: PositiveFloat = 2.0
    """Multiple of the median norm of the last 100 steps at which gradients are clipped, without max_grad_norm."""
    gradient_checkpointing: Literal["auto", "on", "off"] = "auto"
    """Compute layers twice to save memory; auto does so where they would not fit."""
    log_every: PositiveInt = 1
    """Steps between two records of the training metrics."""
    probe_every: PositiveInt = 20
    """Steps between two measurements of full-vocabulary KL and entropy on a fixed probe batch."""
    checkpoint_every: PositiveInt = 200
    """Steps between two checkpoints; every evaluation point also has one."""

    @field_validator("schedule", "optimizer")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        extras.require("train", "An experiment")
        from transformers.trainer_utils import SchedulerType  # heavy, and needed only here
        from transformers.training_args import OptimizerNames

        names = [member.value for member in (SchedulerType if info.field_name == "schedule" else OptimizerNames)]
        if value not in names:
            close = [name for name in names if name.startswith(value)]
            close = list(dict.fromkeys([*close, *difflib.get_close_matches(value, names, n=3, cutoff=0.4)]))[:4]
            raise ValueError(f"transformers does not know this name; similar ones: {', '.join(close or names)}")
        return value

    @model_validator(mode="after")
    def _whole_batches(self) -> "TrainConfig":
        if self.batch_size % (self.micro_batch_size or 1):
            raise ValueError(
                f"batch_size={self.batch_size} is not a multiple of micro_batch_size={self.micro_batch_size}"
            )
        return self


class EvaluationConfig(Section):
    """Sampling on held-out prompts and what is measured on the samples."""

    prompts: PositiveInt = 64
    """Number of held-out prompts to sample responses to."""
    samples: PositiveInt = 2
    """Number of samples per prompt."""
    max_new_tokens: PositiveInt = 64
    """Maximum number of tokens of a sample."""
    temperature: PositiveFloat = 1.0
    """Temperature of the sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Probability mass that nucleus sampling keeps."""
    batch_size: PositiveInt = 64
    """Number of sequences to sample at a time."""
    sampler: str = "transformers"
    """Engine that samples for evaluations of a model: transformers, vllm or server:MODEL@URL."""
    pairs: PositiveInt = 200
    """Number of held-out pairs for the preference accuracy."""
    suite: Annotated[tuple[str | dict[str, dict[str, Any] | None], ...], BeforeValidator(as_list)] = Field(
        default=("ngram_diversity", "repetition"),
        description="Evaluations, with options as in {hh: {prompts: 100}}. Those of samples run at every point of eval_at, "
        "those of a model once per trained cell. The gold reward of the data source is always added.",
    )
    judge: str | dict[str, dict[str, Any]] | None = None
    """Judge of the answers: pinned:NAME, openai:MODEL, hf:FOLDER, reward:FOLDER, gold:NAME, replay:FILE. The option repeats of one
    whose verdicts vary, as in openai:MODEL(repeats=3), asks every question so often."""
    judge_calls: PositiveInt | None = None
    """Maximum number of judge calls per launch."""
    judge_money: PositiveFloat | None = None
    """Maximum cost of the judge's calls per launch, in the currency of its prices."""

    @property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Options of each evaluation by its name."""
        found: dict[str, dict[str, Any]] = {}
        for item in self.suite:
            for name, options in ({item: None} if isinstance(item, str) else item).items():
                if name in found:
                    raise ConfigError(f"evaluation.suite lists {name} twice; list each evaluation once.")
                found[name] = options or {}
        return found


class TuningConfig(Section):
    """Tuning of every loss before the comparison: trials on prompts of their own, equally many for each loss."""

    trials: PositiveInt = 8
    """Points of its search space that are tried for each loss."""
    promote: PositiveInt = 3
    """Number of best trials that are trained in full."""
    share: float = Field(default=0.25, gt=0, le=1)
    """Share of the steps that a first trial is trained for."""
    max_kl: PositiveFloat | None = None
    """Largest KL to the reference of a setting that may be chosen, in nats; null is any."""
    seed: int = Field(default=1000, ge=1000, lt=2**32)
    """Seed of the trials, which no final seed equals."""
    search: dict[str, dict[str, tuple[PositiveFloat, PositiveFloat]]] = Field(default={})
    """Ranges in place of those that losses declare, low to high, as in {dpo: {beta: [0.01, 1]}}."""

    @model_validator(mode="after")
    def _ranges_rise(self) -> "TuningConfig":
        for loss, ranges in self.search.items():
            for name, (low, high) in ranges.items():
                if low > high:
                    raise ValueError(f"search.{loss}.{name}: [{low:g}, {high:g}] ends below its beginning")
        if self.promote > self.trials:
            raise ValueError(f"promote={self.promote} is more than trials={self.trials}")
        return self


class Experiment(Section):
    """A comparison: losses x seeds on one model and one data set."""

    first_defaults: ClassVar[dict[str, Any]] = {"share_stages": True}
    _text: str = ""

    name: str = "comparison"
    """Name of the comparison; runs of one name and equal settings are one table."""
    losses: Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(_as_losses)] = Field(
        min_length=1,
        description="Losses to compare: dpo, bpo(lam=0.5), {bpo: {lam: 0.5}} or dpo + 0.2*sft; with training settings of "
        "their own, {dpo: {train: {lr: 1e-5}}} or dpo @ lr=1e-5; a grid of them, {dpo: {grid: {beta: [0.05, 0.1]}}}.",
    )
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], BeforeValidator(as_list)] = Field(
        default=(0, 1), min_length=1
    )
    """Seeds; each fixes batch order, LoRA initialisation, dropout and sampling alike for every loss."""
    looks: Annotated[tuple[PositiveInt, ...], BeforeValidator(as_list)] = ()
    """Numbers of seeds after which to stop if all verdicts are settled; `seeds: {looks: [3, 5, 8]}` sets both."""
    baseline_seeds: PositiveInt | None = None
    """Number of seeds of the baseline; null is that of the others times the root of their number."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    stages: Annotated[tuple[Literal["sft", "preference"], ...], BeforeValidator(as_list)] = ("preference",)
    """Stages of the training. With [sft, preference] every loss starts from one SFT on chosen responses."""
    share_stages: bool = False
    """Let all seeds share the stages (SFT, oracles of token scorers); otherwise each seed trains its own."""
    sft: dict[str, Any] = Field(default={})
    """Settings of train that differ in the stage sft."""
    reference: str | None = None
    """Reference: init (the model as loaded), sft (the stage's) or a model; null is what training starts from."""
    train: TrainConfig = TrainConfig()
    tuning: TuningConfig | None = None
    """Tuning of every loss before the comparison, as in {trials: 8}; null is none."""
    primary: str | None = None
    """Metric that tuning improves and verdicts are about; null is the reward, or the first that has a direction."""
    margin: PositiveFloat | None = None
    """Difference of the primary metric below which two losses count as equivalent."""
    baseline: str | None = None
    """Loss or variant that the others are compared with; null is the reference."""
    best_of: Annotated[tuple[Annotated[int, Field(ge=2)], ...], BeforeValidator(as_list)] = ()
    """Numbers n of rows best_of_n: of n samples of the reference the one with the best known reward, without training."""
    eval_at: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(as_list)] = (
        0.1,
        0.25,
        0.5,
        1.0,
    )
    """Shares of the training at which to evaluate; 1 is always among them."""
    evaluation: EvaluationConfig = EvaluationConfig()
    plugins: Annotated[tuple[Path, ...], BeforeValidator(as_list)] = ()
    """Python files that register losses, scorers and the like."""
    out: Path = Path("runs")
    """Folder of checkpoints and trained models."""
    record_models: Literal["adapters", "all", "none"] = "adapters"
    """Trained models that the store gets, so that other machines can use them: adapters (and models up to 100 MB), all or none."""
    store: str | None = None
    """MLflow tracking URI; null is sqlite:///plo.db in the working folder."""
    report_to: Annotated[tuple[Literal["tensorboard", "wandb", "trackio"], ...], BeforeValidator(as_list)] = ()
    """Trackers that show the trainings alongside MLflow, which keeps the record: tensorboard, wandb, trackio."""

    @model_validator(mode="before")
    @classmethod
    def _looks(cls, values: Any) -> Any:
        given = values.get("seeds") if isinstance(values, Mapping) else None
        if not isinstance(given, Mapping):
            return values
        if given.keys() != {"looks"}:
            raise ValueError("seeds: write a list of seeds, or {looks: [3, 5, 8]}")
        looks = as_list(given["looks"])
        if not looks or not all(isinstance(look, int) for look in looks):
            raise ValueError(
                f"seeds.looks: write increasing numbers of seeds, such as [3, 5, 8] (got {given['looks']!r})"
            )
        return {**values, "looks": looks, "seeds": list(range(looks[-1]))}

    @field_validator("looks")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if any(later <= earlier for earlier, later in itertools.pairwise(value)):
            raise ValueError("write increasing numbers of seeds, such as [3, 5, 8]")
        return value

    @field_validator("seeds")
    @classmethod
    def _once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed is listed twice")
        return value

    @model_validator(mode="after")
    def _learning_rate_is_known(self) -> "Experiment":
        if self.train.lr is None:  # records and keys contain the number
            train = self.train.model_copy(update={"lr": LEARNING_RATES[self.model.peft]})
            object.__setattr__(self, "train", train)
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> "Experiment":
        if self.looks and (len(self.seeds) != self.looks[-1] or not (self.primary and self.baseline)):
            raise ValueError("looks need as many seeds as the last of them, a primary metric and a baseline")
        if self.stages not in (("preference",), ("sft", "preference")):
            raise ValueError(f"stages={list(self.stages)}: write [preference] or [sft, preference]")
        if self.reference == "sft" and "sft" not in self.stages:
            raise ValueError("reference: sft requires the stage sft: stages: [sft, preference]")
        if self.tuning and self.tuning.seed in self.seeds:
            raise ValueError(
                f"seeds: {self.tuning.seed} is the seed of the tuning, whose settings would be chosen on it"
            )
        if self.sft and "sft" not in self.stages:
            raise ValueError("sft: its settings require the stage sft: stages: [sft, preference]")
        try:
            TrainConfig.model_validate({**self.train.model_dump(), **self.sft})
        except ValidationError as error:
            raise ValueError(f"sft.{problem(error.errors()[0], TrainConfig)}") from None
        return self

    @property
    def text(self) -> str:
        """Text of the file that the experiment was loaded from; empty without a file."""
        return self._text

    @property
    def points(self) -> tuple[float, ...]:
        """Evaluation points in order, including the end of training."""
        return tuple(sorted({*self.eval_at, 1.0}))


SHORT = {"data": "data.source", "model": "model.name"}  # `data: hh` is short for `data: {source: hh}`


def load_experiment(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """Load an experiment from a YAML file, if any, and dotted overrides such as {"train.lr": "1e-4"}.

    `data: hh` is short for `data: {source: hh}`, and `model: embedded` for `model: {name: embedded}`. `data: pocket` brings
    settings of its own (`plo.tasks`).

    Raises:
        ConfigError: the file cannot be read, or a setting is unknown or has a wrong value.
    """
    where = str(path) if path else "the command line"
    text, read = read_settings(path) if path else ("", {})
    raw = {k: v for k, v in read.items() if v is not None}
    for key, value in (overrides or {}).items():
        _set(raw, SHORT.get(key, key) if not isinstance(value, Mapping) else key, value)
    for section, key in SHORT.items():
        if isinstance(raw.get(section), str):
            raw[section] = {key.split(".")[1]: raw[section]}
    experiment = Experiment.of(with_task_settings(raw), f"The experiment of {where}")
    experiment._text = text
    return experiment


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if raw.get(parent) is None:  # missing, or an empty `train:`
            raw[parent] = {}
        elif parent in SHORT and not isinstance(raw[parent], dict):  # `data: hh` in the file, data.limit=10 over it
            raw[parent] = {SHORT[parent].split(".")[1]: raw[parent]}
        elif not isinstance(raw[parent], dict):
            raise ConfigError(f"{key}={value}: {parent} is {raw[parent]!r} in the file, where settings were expected.")
        raw = raw[parent]
    raw[last] = value
