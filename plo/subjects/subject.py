"""Interface of subjects, which evaluations of level "model" take text from."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd

from plo.data.rows import Row, Text
from plo.errors import PloError

if TYPE_CHECKING:
    from plo.backbone.reference import Reference
    from plo.data import Pair


class SubjectError(PloError, ValueError):
    """A subject cannot be loaded, or cannot provide what an evaluation needs."""


@dataclass(frozen=True)
class Sampling:
    """Settings of `Subject.sample`. Temperature 0 is greedy."""

    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 256


@dataclass(frozen=True)
class Trajectory:
    """Texts that were drawn at the evaluation points of a training.

    Attributes:
        samples: one row per sample, with the columns share (of the training), step, prompt_id, sample, prompt and text.
        reference: {(prompt_id, sample): text} of the reference with the same seed.
        rows: held-out rows by their rendered prompt.
        notes: sentences about points that were not recorded.
    """

    samples: pd.DataFrame
    reference: Mapping[tuple[int, int], str]
    rows: Mapping[str, Row]
    notes: tuple[str, ...] = ()


class Subject(Protocol):
    """Something that gives text for prompts: a model in memory, a file of a model's outputs, or a server.

    Attributes:
        name: name in tables.
        identity: hash of everything that its texts depend on, except for prompts, settings of sampling and the seed.
        seed: seed of its training and sampling, which fixes the sampling noise.
        fixed: whether its texts are given, as in a file of outputs, so that settings of sampling change nothing.
        reference: model that it was trained from, or that the user compares it with; None if there is none.
        chat: whether prompts go through a chat template: give it messages, or rows from `plo.data.rows.to_chat`.
        trained_on: rendered prompts of its training pairs, for leaving them out; empty if they are not known.
        paths: local file or folder by data source ("hh", "tldr", ...), as far as its experiment named any.
    """

    name: str
    identity: str
    seed: int
    fixed: bool
    reference: "Subject | None"
    chat: bool
    trained_on: Collection[str]
    paths: Mapping[str, Path]

    def sample(self, prompts: Sequence[Text], **settings: Any) -> pd.DataFrame:
        """Return continuations of the prompts, one row per sample, in the order of the prompts.

        Columns are prompt_id (index into `prompts`), sample, prompt (rendered), text, tokens (including EOS) and finished
        (whether EOS ended it); both are NaN if the subject does not know them. A server adds null (whether its content was
        null) and adapted (list of changes of the request). `plo.evals.answers` removes thoughts and counts such cases.

        Samples are kept on disk as they are drawn, so that the same call returns the same rows, in later processes too.

        Args:
            settings: fields of `Sampling` that differ from their defaults.

        Raises:
            SubjectError: a file of outputs lacks a prompt, or a server refuses.
        """
        ...

    def causal_lm(self) -> tuple[Any, Any]:
        """Return the transformers model, with adapters on and in evaluation mode, and its tokenizer.

        Raises:
            SubjectError: the subject is a file of outputs or a server.
        """
        ...

    def margins(self, rows: Sequence[Row]) -> np.ndarray:
        """Return log-ratio margins (rows,) in nats: log-ratio to the reference of the chosen less that of the rejected response.

        A margin is exactly 0 if it is 0 except for rounding, and NaN for a row that is too long for the model.

        Raises:
            SubjectError: there is no model, no reference with the same tokens, or no row that fits.
        """
        ...


@runtime_checkable
class ScoringSubject(Protocol):
    """A subject that knows the log-probs of any response: a model in memory.

    Attributes:
        tokenizer: its transformers tokenizer.
    """

    tokenizer: Any

    def logps(self, pairs: "Sequence[Pair]") -> "Reference":
        """Return log-probs (nats) of the pairs' response tokens."""
        ...
