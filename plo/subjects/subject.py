"""What an evaluation asks for text, whatever it is: a policy in memory, a file of outputs, a server."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from plo.data.rows import Row, Text
from plo.errors import PloError


class SubjectError(PloError, ValueError):
    """A subject that cannot be loaded, or that cannot give what an evaluation asks of it."""


class Subject(Protocol):
    """A model, or a file of a model's outputs, that can be asked for text.

    Attributes:
        name: what tables call it.
        seed: of its training and sampling; fixes the sampling noise.
        fixed: its texts are given (a file of outputs): settings of sampling change nothing.
        reference: what it was trained from, or what the user compares it with; None if there is nothing.
        chat: prompts go through its chat template: give it messages, or rows turned with `plo.data.rows.to_chat`.
        trained_on: rendered prompts of its training pairs, so that none is asked again; empty if not known.
        paths: local file or folder by data source ("hh", "tldr", ...), where its own experiment named one.
    """

    name: str
    seed: int
    fixed: bool
    reference: "Subject | None"
    chat: bool
    trained_on: Collection[str]
    paths: Mapping[str, Path]

    def sample(
        self,
        prompts: Sequence[Text],
        *,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
    ) -> pd.DataFrame:
        """Continuations, a row a sample in the order of the prompts: prompt_id (the place in `prompts`), sample, prompt
        (rendered), text, tokens (EOS included; of an outputs file: NaN), finished (ended by EOS; of an outputs file: NaN).
        A server adds null (its content was null) and adapted (how it had to be asked, a list). Temperature 0 is greedy.
        `plo.evals.answers` cuts what was thought, and says what must be said of the answers.

        Kept on disk as they are drawn: asked again, also by a later process, the same rows come back.

        Raises:
            SubjectError: an outputs file lacks a prompt.
        """

    def causal_lm(self) -> tuple[Any, Any]:
        """The model as transformers knows it (adapters on) and its tokenizer, in evaluation mode.

        Raises:
            SubjectError: there is no model, but a file of outputs or a server.
        """

    def margins(self, rows: Sequence[Row]) -> np.ndarray:
        """(rows,) nats: log-ratio of the chosen less that of the rejected, against the reference's weights;
        exactly 0 where it is 0 but for rounding, NaN for a row that cannot be tokenised within the model's length.

        Raises:
            SubjectError: there is no model, no reference of the same tokens, or no row that fits.
        """
