"""Settings of the training pairs: their source, where the pairs of each row come from, and how answers are sampled."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from plo.origin import Origin, OriginError
from plo.preference_rules import RuleError, read_rule
from plo.section import Section
from plo.values import as_list


class SampleConfig(Section):
    """Answers that a policy is sampled for training pairs, where the origin of these is `sampled` or `iterated(n)`."""

    policy: str | None = None
    """Model that the first round's answers are from; null is the policy that training starts from."""
    prompts: PositiveInt | None = None
    """Number of training prompts to sample answers to; null is all."""
    k: int = Field(default=4, ge=2)
    """Number of answers per prompt."""
    temperature: PositiveFloat = 1.0
    """Temperature of the sampling."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Probability mass that nucleus sampling keeps."""
    max_new_tokens: PositiveInt | None = None
    """Maximum number of tokens of an answer; null is that of the evaluation."""
    scorer: str | None = None
    """Evaluation of samples whose main score is an answer's; null is the gold reward of the data source, or the judge."""
    judge: str | dict[str, dict[str, Any]] | None = None
    """Judge in place of a scorer: an answer's score is its mean probability to beat the prompt's other answers."""
    judge_calls: PositiveInt | None = None
    """Maximum number of judge calls for the answers, per launch."""
    judge_money: PositiveFloat | None = None
    """Maximum cost of these calls per launch, in the currency of the judge's prices."""
    rule: str = "best/worst"
    """Pairs of a prompt's answers: best/worst, best/random, or margin(q), the best/worst pairs without the share q of least margin."""

    @field_validator("rule")
    @classmethod
    def _known(cls, value: str) -> str:
        try:
            read_rule(value)
        except RuleError as error:
            raise ValueError(str(error)) from None
        return value

    @model_validator(mode="after")
    def _one_oracle(self) -> "SampleConfig":
        if self.scorer is not None and self.judge is not None:
            raise ValueError(f"scorer={self.scorer} and judge={self.judge} both score the answers: give one of them")
        return self


class DataConfig(Section):
    """Preference pairs."""

    source: str = "sentiment"
    """Registered source, file, folder or hub data set."""
    path: Path | None = None
    """Local file or folder that a registered source reads."""
    limit: PositiveInt | None = None
    """Maximum number of training pairs; null is all."""
    eval_limit: PositiveInt | None = None
    """Maximum number of held-out pairs; null is all."""
    eval_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the prompts to hold out, chosen by hash."""
    max_length: PositiveInt = 512
    """Maximum number of tokens of a prompt and its response together."""
    truncation: Literal["keep_start", "keep_end"] = "keep_start"
    """End to cut where both together are too long: keep_start cuts the response's end, keep_end the prompt's start."""
    strict: bool = False
    """Refuse data with any bad row, rather than with more than 5% of them."""
    options: dict[str, Any] = Field(default={})
    """Options of the source, such as {chat: true}."""
    columns: dict[str, str | None] = Field(default={})
    """The source's names of columns, such as {prompt: question}; {system: null} ignores a column."""
    origin: Annotated[tuple[str, ...], BeforeValidator(as_list)] = Field(default=("offline",), min_length=1)
    """Training pairs that every loss is trained on, each a row: offline (the source's), sampled, iterated(n)."""
    flip: Annotated[tuple[float, ...], BeforeValidator(as_list)] = Field(default=(0.0,), min_length=1)
    """Shares of the training labels to turn round, each a row; the pairs are chosen by seed and content."""
    sample: Annotated[SampleConfig, BeforeValidator(lambda given: {} if given is None else given)] = SampleConfig()

    @field_validator("origin", "flip")
    @classmethod
    def _known(cls, values: tuple[Any, ...], info: ValidationInfo) -> tuple[Any, ...]:
        for value in values:
            try:
                Origin.read(**{"data" if info.field_name == "origin" else "flip": value})
            except OriginError as error:
                raise ValueError(str(error)) from None
        return values

    @model_validator(mode="after")
    def _origins(self) -> "DataConfig":
        known = [Origin.read(data, flip) for data in self.origin for flip in self.flip]
        if len(set(known)) < len(known):
            raise ValueError("origin or flip lists a value twice")
        return self

    @property
    def origins(self) -> list[Origin]:
        """Origins of training pairs, one for each row of a loss; an iterated one is preceded by its earlier rounds."""
        chosen = [Origin.read(data, flip) for data in self.origin for flip in self.flip]
        return list(dict.fromkeys(each for one in chosen for each in one.rounds))
