"""The experiment, typed: what `plo compare` runs. YAML in, errors that name the place and the remedy out."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from plo.errors import PloError
from plo.near import near
from plo.values import read_list, read_yaml


class ConfigError(PloError, ValueError):
    """An experiment that cannot be run as written."""


class Section(BaseModel):
    """Settings.

    Attributes:
        first_defaults: of fields whose default was changed, the first one: keys leave it out (`plo.identity`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)
    first_defaults: ClassVar[dict[str, Any]] = {}

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Self:
        """Check settings that a user gave.

        Args:
            where: the place they come from, for the message: "The experiment of FILE".

        Raises:
            ConfigError: what is wrong, where, and what is possible there.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "\n".join(f"  {_problem(e, cls)}" for e in _once(error.errors()))
            raise ConfigError(f"{where} cannot be used:\n{problems}") from None


def _as_list(value: Any) -> Any:
    """Make a list of its short forms: `losses: dpo`, `seeds: 0,1`, `eval_at: 0.5`, and a mapping of losses."""
    if isinstance(value, Mapping):
        return [{name: params} for name, params in value.items()]
    if isinstance(value, str):
        return read_list(value)
    if value is None:  # `losses=` on a command line
        return []
    return value if isinstance(value, list | tuple) else [value]


def _targets(value: Any) -> Any:
    """`lora_targets: q_proj,v_proj` is a list; one name is a pattern."""
    parts = read_list(value) if isinstance(value, str) else []
    return parts if len(parts) > 1 else value


class ModelConfig(Section):
    """The policy; its initial weights are the reference."""

    name: str = Field(
        "embedded",
        description="'embedded', a local folder, or a hub name: of a model, or of a LoRA adapter with its base",
    )
    peft: Literal["lora", "full"] = "lora"
    lora_r: PositiveInt = 16
    lora_alpha: PositiveFloat = 32
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    lora_targets: Annotated[str | list[str], BeforeValidator(_targets)] = "all-linear"
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="of matrix products; auto: bfloat16 where the hardware has it"
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto", description="of padded rows and in generation; auto: sdpa where the model has it"
    )
    reference_disk_gb: float = Field(
        20, ge=0, description="of the reference's hidden states that are kept on disk; beyond, computed anew each step"
    )
    packed: bool = Field(True, description="pairs without padding, their prompt computed once, where the model can")


class DataConfig(Section):
    """Preference pairs."""

    source: str = Field("sentiment", description="a registered source, a file or folder, or a hub data set")
    path: Path | None = Field(None, description="local file or folder of a registered source")
    limit: PositiveInt | None = Field(None, description="training pairs at most")
    eval_limit: PositiveInt | None = Field(None, description="held-out pairs at most")
    eval_fraction: float = Field(0.1, gt=0, lt=1, description="share of prompts held out, by hash")
    max_length: PositiveInt = Field(512, description="tokens of prompt and response together")
    truncation: Literal["keep_start", "keep_end"] = "keep_start"
    strict: bool = Field(False, description="any bad row is an error")
    options: dict[str, Any] = Field(default_factory=dict, description="of the source, e.g. {chat: true}")
    columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="the source's names of columns, e.g. {prompt: question}; {system: null} leaves one out",
    )


LEARNING_RATES = {"lora": 2e-4, "full": 1e-5}  # where train.lr says none


class TrainConfig(Section):
    """Optimisation, equal for every loss of a comparison."""

    lr: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="learning rate; None: by kind of fine-tuning, 2e-4 with LoRA, 1e-5 in full (at some 100M parameters: "
        "7B models take 5e-7 to 1e-6). An experiment holds the number",
    )
    batch_size: PositiveInt = Field(8, description="pairs per optimiser step, of all processes together")
    micro_batch_size: PositiveInt | None = Field(
        None, description="pairs per forward pass on each device at most; None: its whole share of the batch"
    )
    epochs: float = Field(1, gt=0, allow_inf_nan=False)
    steps: PositiveInt | None = Field(None, description="optimiser steps, instead of epochs")
    schedule: str = "cosine"
    warmup: float = Field(0.1, ge=0, lt=1, description="share of the steps")
    optimizer: str = Field("adamw_torch_fused", description="any name transformers' TrainingArguments takes")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    gradient_checkpointing: Literal["auto", "on", "off"] = Field(
        "auto", description="compute layers twice to save memory; auto: where they would not fit"
    )
    log_every: PositiveInt = Field(1, description="steps")
    probe_every: PositiveInt = Field(
        20, description="steps between full-vocabulary KL and entropy on a fixed probe batch"
    )
    checkpoint_every: PositiveInt = Field(200, description="steps; every evaluation point has a checkpoint besides")

    @field_validator("schedule", "optimizer")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        from transformers.trainer_utils import SchedulerType  # heavy, and only wanted here
        from transformers.training_args import OptimizerNames

        names = [member.value for member in (SchedulerType if info.field_name == "schedule" else OptimizerNames)]
        if value not in names:
            close = [name for name in names if name.startswith(value)]
            close = list(dict.fromkeys([*close, *difflib.get_close_matches(value, names, n=3, cutoff=0.4)]))[:4]
            raise ValueError(f"transformers knows no such name; near ones: {', '.join(close or names)}")
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
    samples: PositiveInt = Field(2, description="per prompt")
    max_new_tokens: PositiveInt = 64
    temperature: PositiveFloat = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    batch_size: PositiveInt = Field(64, description="sequences sampled at a time")
    pairs: PositiveInt = Field(200, description="held-out pairs for the preference accuracy")
    suite: Annotated[tuple[str | dict[str, dict[str, Any] | None], ...], BeforeValidator(_as_list)] = Field(
        ("ngram_diversity", "repetition"),
        description="registered evaluations, with options as {hh: {prompts: 100}}; those of samples run at every point of "
        "eval_at, those of a model once a trained cell; the data source's own gold reward is added",
    )
    judge: str | dict[str, dict[str, Any]] | None = Field(None, description="openai:MODEL, hf:FOLDER, gold:NAME, ...")
    judge_calls: PositiveInt | None = Field(None, description="maximum number of judge calls per launch")
    judge_money: PositiveFloat | None = Field(
        None, description="maximum cost of the judge's calls per launch, in the currency of its prices"
    )

    @property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """Names of the suite with their options."""
        found: dict[str, dict[str, Any]] = {}
        for item in self.suite:
            for name, options in ({item: None} if isinstance(item, str) else item).items():
                if name in found:
                    raise ConfigError(f"evaluation.suite: {name} stands there twice; each evaluation once.")
                found[name] = options or {}
        return found


class Experiment(Section):
    """A comparison: losses x seeds on one model and one data set."""

    name: str = "comparison"
    losses: Annotated[tuple[str | dict[str, Any], ...], BeforeValidator(_as_list)] = Field(min_length=1)
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], BeforeValidator(_as_list)] = Field(
        (0, 1), min_length=1
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    stages: Annotated[tuple[Literal["sft", "preference"], ...], BeforeValidator(_as_list)] = Field(
        ("preference",),
        description="[sft, preference]: every loss starts from one supervised fine-tuning on the chosen",
    )
    sft: dict[str, Any] = Field(default_factory=dict, description="settings of `train` that the stage sft changes")
    reference: str | None = Field(
        None,
        description="init: the model as loaded; sft: the stage's; or another model. None: what training starts from",
    )
    train: TrainConfig = TrainConfig()
    eval_at: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], BeforeValidator(_as_list)] = Field(
        (0.1, 0.25, 0.5, 1.0), description="shares of training; 1 is always among them"
    )
    evaluation: EvaluationConfig = EvaluationConfig()
    plugins: Annotated[tuple[Path, ...], BeforeValidator(_as_list)] = Field(
        (), description="Python files that register losses and the like"
    )
    out: Path = Field(Path("runs"), description="folder of checkpoints and trained adapters")
    store: str | None = Field(None, description="MLflow tracking URI; None: sqlite:///plo.db here")

    @field_validator("seeds")
    @classmethod
    def _once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed stands there twice")
        return value

    @model_validator(mode="after")
    def _learning_rate_is_known(self) -> "Experiment":
        if self.train.lr is None:  # the number goes into records and keys
            train = self.train.model_copy(update={"lr": LEARNING_RATES[self.model.peft]})
            object.__setattr__(self, "train", train)
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> "Experiment":
        if self.stages not in (("preference",), ("sft", "preference")):
            raise ValueError(f"stages={list(self.stages)}: write [preference] or [sft, preference]")
        if self.reference == "sft" and "sft" not in self.stages:
            raise ValueError("reference: sft wants the stage sft: stages: [sft, preference]")
        if self.sft and "sft" not in self.stages:
            raise ValueError("sft: its settings want the stage: stages: [sft, preference]")
        try:
            TrainConfig.model_validate({**self.train.model_dump(), **self.sft})
        except ValidationError as error:
            raise ValueError(f"sft.{_problem(error.errors()[0], TrainConfig)}") from None
        return self

    @property
    def points(self) -> tuple[float, ...]:
        """Evaluation points in order, the end of training included."""
        return tuple(sorted({*self.eval_at, 1.0}))


SHORT = {"data": "data.source", "model": "model.name"}  # `data: hh` is short for `data: {source: hh}`


def load_experiment(path: Path | None, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """An experiment from a YAML file (or none) and dotted overrides such as {"train.lr": "1e-4"}.

    `data: hh`, `model: embedded` are short for their `source` and `name`.

    Raises:
        ConfigError: what is wrong, where, and what is possible there.
    """
    where = str(path) if path else "the command line"
    raw = {k: v for k, v in _read(path).items() if v is not None} if path else {}
    for key, value in (overrides or {}).items():
        _set(raw, SHORT.get(key, key) if not isinstance(value, Mapping) else key, value)
    for section, key in SHORT.items():
        if isinstance(raw.get(section), str):
            raw[section] = {key.split(".")[1]: raw[section]}
    return Experiment.of(raw, f"The experiment of {where}")


def field_names(section: type[Section] = Experiment, prefix: str = "") -> list[str]:
    """Every dotted name that an override can set."""
    names = []
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            names += field_names(kind, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping with at least 'losses: [dpo, ...]'.")
    return raw


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        if raw.get(parent) is None:  # not there, or `train:` left empty
            raw[parent] = {}
        elif parent in SHORT and not isinstance(raw[parent], dict):  # `data: hh` in the file, data.limit=10 over it
            raw[parent] = {SHORT[parent].split(".")[1]: raw[parent]}
        elif not isinstance(raw[parent], dict):
            raise ConfigError(f"{key}={value}: {parent} is {raw[parent]!r} in the file, where settings were expected.")
        raw = raw[parent]
    raw[last] = value


def _once(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out what only repeats another error: a type that a value might have had too, a list that lost bad items."""
    found: dict[tuple, Mapping[str, Any]] = {}
    for error in errors:
        loc = tuple(part for part in error["loc"] if not str(part).startswith(("str", "dict[", "list[")))
        if error["type"] == "too_short" and any(other[: len(loc)] == loc for other in found):
            continue
        if not any(loc[: len(other)] == other for other in found):
            found[loc] = {**error, "loc": loc}
    return list(found.values())


def _problem(error: Mapping[str, Any], section: type[Section]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        names = field_names(section)
        meant = near(place, names)
        hint = f"did you mean {' or '.join(meant)}?" if meant else f"known are: {', '.join(names)}"
        return f"{place}: there is no such setting; {hint}"
    if error["type"] == "missing":
        return f"{place}: is missing; e.g. 'losses: [dpo, ipo]'"
    message = error["msg"].removeprefix("Value error, ")
    value = error["input"]
    got = "" if isinstance(value, Mapping) else f" (got {value!r})"
    return f"{place}: {message}{got}" if place else message
