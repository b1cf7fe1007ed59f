"""Pinned judges: model, revision, prompts and decoding in one named, versioned specification."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field, NonNegativeFloat, PositiveInt

from plo.errors import reason
from plo.evals.judges.hf import HuggingFace
from plo.evals.judges.judge import Judge, JudgeError, Question, Verdict
from plo.evals.judges.local import BATCH
from plo.evals.judges.openai import DAY, OpenAI
from plo.evals.judges.template import Template, get_template
from plo.section import ConfigError, Section
from plo.values import yaml_fault

FOLDER = Path(__file__).parent / "specs"


class Specification(Section):
    """All that the verdicts of a pinned judge depend on."""

    version: PositiveInt
    """Number that grows with every change."""
    model: str
    """Name on the hub, or a folder."""
    revision: str | None = None
    """Commit of the hub model."""
    dtype: str = "bfloat16"
    """dtype of the computation in this process."""
    temperature: NonNegativeFloat = 0.0
    """Temperature on a server. In this process the likeliest token is taken."""
    max_tokens: PositiveInt = 40
    """Maximum length of an answer on a server."""
    templates: dict[str, str]
    """Judge prompt by the name of the one that an evaluation asks for."""


def read_pinned(name: str) -> tuple[Specification, str]:
    """Return the specification of a name, or of a YAML file, and a digest of it.

    Raises:
        JudgeError: there is no such name or file, or it is no specification.
    """
    path = FOLDER / f"{name}.yaml"
    path = path if path.is_file() else Path(name).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
        return Specification.of(yaml.safe_load(text), f"The pinned judge {path}"), hashlib.sha256(
            text.encode()
        ).hexdigest()[:16]
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.yaml")))
        raise JudgeError(
            f"There is no pinned judge {name!r} ({reason(error)}). Built in: {known}; or name a YAML file."
        ) from None
    except ConfigError as error:
        raise JudgeError(f"{error}\n{next(FOLDER.glob('*.yaml'))} is an example.") from None
    except yaml.YAMLError as error:
        example = next(FOLDER.glob("*.yaml"))
        raise JudgeError(
            f"The pinned judge {path} cannot be read: {yaml_fault(error)}. {example} is an example."
        ) from None


class Served(OpenAI):
    """A pinned judge on a server, which must take the request as the specification has it."""

    when_refused = (
        "A pinned judge is asked with the temperature and max_tokens of its specification: start a server that takes them, such "
        "as vLLM, or write a specification of your own and name its file"
    )


class Pinned(Judge):
    """The judge `pinned:<name or YAML file>[@base_url]`, in this process or on a server that runs the same model.

    A specification fixes model, revision, prompts and decoding. A server is asked for the model by its name, and does not say
    which revision it runs: start it with that of the specification. An evaluation's prompt is replaced by the specification's
    prompt for that question.

    Args:
        batch_size: number of questions that share a forward pass in this process.
        concurrency: maximum number of simultaneous calls of a server.
        timeout: maximum duration of a call in seconds.
        price_in, price_out: money per million tokens of prompt and answer of a server.

    Raises:
        JudgeError: there is no such specification, it has no prompt for the question, or the model cannot be loaded or asked.
        EndpointError: the address is malformed.
    """

    @classmethod
    def is_light(cls, argument: str) -> bool:
        return "@" in argument  # without a server a model is loaded

    def __init__(
        self,
        argument: str,
        template: Template,
        *,
        batch_size: PositiveInt = BATCH,
        concurrency: PositiveInt = 8,
        timeout: Annotated[float, Field(gt=0, le=DAY)] = 120.0,
        price_in: NonNegativeFloat | None = None,
        price_out: NonNegativeFloat | None = None,
    ):
        name, _, url = argument.partition("@")
        spec, digest = read_pinned(name)
        if template.name not in spec.templates:
            raise JudgeError(
                f"The pinned judge {name} has no prompt for the question {template.name!r}, only for "
                f"{', '.join(spec.templates)}. Ask one of these, or name the model itself: hf:{spec.model}."
            )
        own = get_template(spec.templates[template.name])
        if url:
            self.inner: Judge = Served(
                f"{spec.model}@{url}", own, max_tokens=spec.max_tokens, request={"temperature": spec.temperature},
                concurrency=concurrency, timeout=timeout, price_in=price_in, price_out=price_out,
            )  # fmt: skip
        else:
            self.inner = HuggingFace(spec.model, own, dtype=spec.dtype, revision=spec.revision, batch_size=batch_size)
        self.name = self.inner.name = f"pinned:{Path(name).name.removesuffix('.yaml')}-v{spec.version}" + (
            f"@{url}" if url else ""
        )
        self.template, self.version = own, f"{digest} {self.inner.version}"
        for attribute in ("repeatable", "concurrency", "batch", "retries", "timeout"):
            setattr(self, attribute, getattr(self.inner, attribute))

    @property
    def remarks(self) -> list[str]:
        return self.inner.remarks

    def judge(self, questions: Sequence[Question]) -> list[Verdict]:
        return self.inner.judge(questions)

    def estimate(self, questions: Sequence[Question]) -> float:
        return self.inner.estimate(questions)
