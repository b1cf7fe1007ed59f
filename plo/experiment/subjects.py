"""What evaluations of level "model" can ask for text: a policy in memory, a file of outputs."""

import gzip
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plo.backbone.model import Backbone
from plo.backbone.reference import Reference, ReferenceStore
from plo.config import EvaluationConfig
from plo.data import DataError, Pair, tokenize_prompt
from plo.data.rows import Row, Text, to_chat
from plo.data.tokenize import template_of, tokenize_rows
from plo.evals import EvaluationError
from plo.evals.judges.local import context_of
from plo.experiment.cell import log_ratio_margins
from plo.experiment.sampling import VERSION, Prompt, continuations, eos_ids
from plo.identity import sha256
from plo.paths import plo_home


class Policy:
    """The policy that a backbone holds, or its reference.

    Another seed needs no other policy: `seed` fixes nothing but the noise of sampling, and may be set.

    Args:
        identity: of what its numbers depend on beside what it is asked (weights, adapter, dtype, device, attention): what
            it says is kept under this name.
        trained_on: rendered prompts of its training pairs.
        paths: local data by source.
        chat: whether plain prompts go through the chat template; None: they do where there is one.
        as_reference: the subject is the backbone's reference.
    """

    fixed = False

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Any,
        *,
        name: str,
        seed: int,
        identity: str,
        config: EvaluationConfig,
        trained_on: Collection[str] = (),
        paths: Mapping[str, Path] | None = None,
        chat: bool | None = None,
        as_reference: bool = False,
    ):
        self.backbone, self.tokenizer, self.config = backbone, tokenizer, config
        self.name, self.seed, self.identity = name, seed, identity
        self.trained_on, self.paths = frozenset(trained_on), dict(paths or {})
        self.chat = template_of(tokenizer) is not None if chat is None else chat
        self.as_reference = as_reference
        self.reference: Any = None

    def sample(
        self,
        prompts: Sequence[Text],
        *,
        samples: int = 1,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
    ) -> pd.DataFrame:
        asked = [Prompt(tokenize_prompt(prompt, self.tokenizer), self._shown(prompt)) for prompt in prompts]
        settings = {"samples": samples, "temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens}
        config = self.config.model_copy(update=settings)
        how = [VERSION, self.identity, self.seed, settings, config.batch_size, eos_ids(self.backbone, self.tokenizer)]
        key = sha256([how, [prompt.ids for prompt in asked]])
        folder = plo_home() / "outputs" / key[:32]
        with self._as():
            return continuations(self.backbone, self.tokenizer, asked, config, self.seed, folder)

    def causal_lm(self) -> tuple[Any, Any]:
        if self.as_reference and not self.backbone.starts_at_reference:
            raise EvaluationError(
                f"The {self.name} is not the model that training starts from: evaluate it by its own name."
            )
        self.backbone.use_packed(False)  # until the evaluation ends: see `evaluations.py`
        return self.backbone.policy.eval(), self.tokenizer

    def margins(self, rows: Sequence[Row]) -> np.ndarray:
        if self.reference is None:
            raise EvaluationError(f"{self.name} has no reference to take a log-ratio to.")
        if not isinstance(self.reference, Policy):
            raise EvaluationError(
                f"{self.reference.name} gives texts alone, and the log-ratio of {self.name} needs the model: give its folder "
                f"or name."
            )
        rows = [to_chat(row) if self.chat and not row.conversational else row for row in rows]
        pairs = self._pairs_like(self.reference, rows)
        fitting = [place for place, pair in enumerate(pairs) if not isinstance(pair, str)]
        if not fitting:
            raise EvaluationError(f"none of the {len(rows)} rows can be scored, the first because: {pairs[0]}.")
        scored, margins = [pairs[place] for place in fitting], np.full(len(rows), np.nan)
        theirs = self.reference.logps(scored)
        with self._as():
            margins[fitting] = log_ratio_margins(self.backbone, scored, theirs)
        return margins

    def logps(self, pairs: Sequence[Pair]) -> Reference:
        """Its log-probs of the pairs' response tokens, kept on disk."""
        weights = None if self.as_reference else self.identity
        return ReferenceStore(plo_home() / "reference", 0).get(self.backbone, pairs, policy=weights)

    def tokenized(self, rows: Sequence[Row], longest: int) -> list[Pair | str]:
        """Each row's ids, or why it cannot be scored."""
        return [pair for _, pair, _ in tokenize_rows(rows, self.tokenizer, longest, "keep_start")]

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that it can score."""
        return min(self.backbone.longest, context_of(self.backbone.causal_lm, self.tokenizer))

    def _pairs_like(self, reference: "Policy", rows: Sequence[Row]) -> list[Pair | str]:
        """The rows tokenised, after a check that the reference reads them as the same ids."""
        longest = min(self.longest, reference.longest)
        pairs = self.tokenized(rows, longest)
        if reference.tokenizer is self.tokenizer:
            return pairs
        try:
            same = list(map(_ids, pairs)) == list(map(_ids, reference.tokenized(rows, longest)))
        except DataError as error:
            raise EvaluationError(
                f"{reference.name} cannot read the rows that {self.name} is asked: {error}"
            ) from error
        if not same:
            raise EvaluationError(
                f"{reference.name} reads the rows as other tokens than {self.name}, so that there is no log-ratio between "
                f"them: compare with a model of the same tokenizer and chat template."
            )
        return pairs

    def _as(self) -> AbstractContextManager[None]:
        return self.backbone.holding(self.backbone.reference) if self.as_reference else nullcontext()

    def _shown(self, prompt: Text) -> str:
        if isinstance(prompt, str):
            return prompt
        return self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


class Outputs:
    """A file of a model's outputs: JSON, JSON lines (each also .gz), with `instruction` or `prompt`, and `output` or `text`.

    Its texts are what they are: settings of sampling and the seed change nothing.

    Raises:
        EvaluationError: the file cannot be read, or a row lacks these columns or holds no text there.
    """

    fixed, chat, reference, seed = True, True, None, 0
    trained_on: frozenset[str] = frozenset()
    paths: Mapping[str, Path] = {}

    def __init__(self, path: Path):
        self.path = path
        rows = list(_records(path))
        names = list(rows[0][1]) if rows else []
        asked = next((name for name in ("instruction", "prompt") if name in names), None)
        said = next((name for name in ("output", "text", "response") if name in names), None)
        if asked is None or said is None:
            raise EvaluationError(
                f"{path} is no file of outputs: it has the columns {', '.join(names) or 'none'}, and wants 'instruction' or "
                f"'prompt', and 'output' or 'text'."
            )
        for where, row in rows:
            for column, holds in ((asked, _is_prompt), (said, lambda text: isinstance(text, str))):
                if not holds(row.get(column)):
                    found = json.dumps(row[column])[:40] if column in row else "nothing"
                    raise EvaluationError(
                        f"{path}, {where}: {column!r} holds {found} where a text is wanted. Mend the row or leave it out."
                    )
        self.name = str(rows[0][1].get("generator") or path.stem.split(".")[0])
        self.identity = sha256([[row[asked], row[said]] for _, row in rows])
        self.texts: dict[str, list[str]] = {}
        for _, row in rows:
            self.texts.setdefault(rendered(row[asked]), []).append(row[said])

    def sample(self, prompts: Sequence[Text], *, samples: int = 1, **settings: Any) -> pd.DataFrame:
        found = []
        for number, prompt in enumerate(prompts):
            texts = self.texts.get(rendered(prompt), [])
            if len(texts) < samples:
                raise EvaluationError(
                    f"{self.path} has {len(texts)} outputs where {samples} are wanted for the prompt {rendered(prompt)[:80]!r}."
                )
            for k, text in enumerate(texts[:samples]):
                row = {"prompt_id": number, "sample": k, "prompt": rendered(prompt), "text": text}
                found.append(row | {"tokens": float("nan"), "finished": float("nan")})
        return pd.DataFrame(found)

    def causal_lm(self) -> tuple[Any, Any]:
        raise EvaluationError(
            f"{self.path} gives texts alone, and this evaluation needs the model: give its folder or name."
        )

    def margins(self, rows: Sequence[Row]) -> np.ndarray:
        self.causal_lm()


def rendered(prompt: Text) -> str:
    """What an outputs file calls a prompt: the human's last message, stripped."""
    if not isinstance(prompt, str):
        return prompt[-1]["content"].strip()
    return prompt.strip().removeprefix("Human:").removesuffix("Assistant:").strip()


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each row of a file, after its place: "line 3", or in a list "row 3"."""
    try:
        read: Callable = gzip.open if path.suffix == ".gz" else open
        with read(path, "rt", encoding="utf-8") as file:
            text = file.read()
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else text.split("\n")  # splitlines would cut inside texts, at U+2028
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise EvaluationError(f"The outputs {path} cannot be read: {error}.") from None
    for number, row in enumerate(rows, 1):
        where = f"{'row' if whole else 'line'} {number}"
        if not whole and not row.strip():
            continue
        try:
            row = row if whole else json.loads(row, strict=False)  # some writers leave control characters as they are
        except (ValueError, RecursionError) as error:
            raise EvaluationError(f"The outputs {path} cannot be read: {where}: {error}.") from None
        if not isinstance(row, dict):
            raise EvaluationError(f"The outputs {path} are no list of objects: {where} is {json.dumps(row)[:40]}.")
        yield where, row


def _is_prompt(value: Any) -> bool:
    """Text, or messages."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        return isinstance(value[-1].get("content"), str)
    return isinstance(value, str)


def _ids(pair: Pair | str) -> Any:
    return pair if isinstance(pair, str) else (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
