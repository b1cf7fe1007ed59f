"""A policy in memory, or its reference, as a subject of evaluations."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from plo import caches, store
from plo.backbone.batch import collate
from plo.backbone.model import Backbone
from plo.backbone.reference import Reference, ReferenceStore
from plo.config import EvaluationConfig
from plo.data import DataError, Pair, tokenize_prompt
from plo.data.rows import Row, Text, to_chat
from plo.data.tokenize import context_of, tokenize_rows
from plo.identity import sha256
from plo.margins import without_rounding
from plo.subjects.engines import DEFAULT, Adapter, Engine, Local, engine_of
from plo.subjects.sampling import VERSION, Draw, Prompt, continuations, eos_ids
from plo.subjects.subject import Sampling, Subject, SubjectError, Trajectory

PASS_PAIRS = 16  # pairs in a forward pass of the log-ratio margins


@dataclass(frozen=True)
class Mate:
    """Another policy on the same base that will be sampled with the same prompts and settings."""

    identity: str
    seed: int
    adapter: Adapter


@dataclass(eq=False)
class Policy:
    """The policy that a backbone holds, or its reference. See `Subject` for the other attributes.

    For another seed, set `seed`: it fixes only the noise of sampling.

    Args:
        identity: hash of weights, adapter, dtype, device and attention; outputs are kept under it.
        as_reference: whether the subject is the backbone's reference.
        adapter: saved adapter whose weights the backbone holds; None: it is not saved, or there is none.
        mates: returns policies to sample at the same time, where the engine can; their samples are kept for them.
        trajectory: returns what was drawn during its training; None where nothing is known.
    """

    backbone: Backbone
    tokenizer: Any
    _: KW_ONLY
    name: str
    seed: int
    identity: str
    config: EvaluationConfig
    chat: bool
    trained_on: Collection[str] = frozenset()
    paths: Mapping[str, Path] = field(default_factory=dict)
    as_reference: bool = False
    reference: Subject | None = None
    adapter: Adapter | None = None
    mates: Callable[[], Sequence[Mate]] = tuple
    trajectory: Callable[[], Trajectory | None] = lambda: None
    fixed: bool = field(default=False, init=False)
    _scored: tuple[Subject, list[Row], np.ndarray] | None = field(default=None, init=False)  # the last margins

    def sample(self, prompts: Sequence[Text], **settings: Any) -> pd.DataFrame:
        asked = [Prompt(tokenize_prompt(prompt, self.tokenizer), self._shown(prompt)) for prompt in prompts]
        settings = vars(Sampling(**settings))
        config = self.config.model_copy(update=settings)
        adapter, engine = self._adapter(config.sampler), self._engine(config)
        ends = eos_ids(self.backbone.causal_lm.generation_config, self.tokenizer)

        def drawn(identity: str, seed: int, adapter: Adapter | None) -> Draw:
            how = [VERSION, identity, seed, settings, engine.at_a_time, ends, *engine.identity]
            folder = caches.CACHES["outputs"].path(sha256([how, [prompt.ids for prompt in asked]])[:32])
            caches.hold(folder)
            return Draw(seed, adapter, folder)

        own = drawn(self.identity, self.seed, adapter)
        mates = self.mates()[: engine.together - 1] if engine.together > 1 else ()
        others = [drawn(mate.identity, mate.seed, mate.adapter) for mate in mates]
        with self._as():
            return continuations(self.backbone, self.tokenizer, asked, config, own, engine, others)

    def causal_lm(self) -> tuple[Any, Any]:
        if self.as_reference and not self.backbone.starts_at_reference:
            raise SubjectError(
                f"The {self.name} is not the model that training starts from: evaluate it under its own name."
            )
        self.backbone.use_packed(False)  # until the evaluation ends, see `plo.experiment.evaluations`
        return self.backbone.policy.eval(), self.tokenizer

    def margins(self, rows: Sequence[Row]) -> np.ndarray:
        if self.reference is None:
            raise SubjectError(f"{self.name} has no reference for log-ratios: name one with --against.")
        if not isinstance(self.reference, Policy):
            raise SubjectError(
                f"{self.reference.name} gives only texts, and the log-ratio of {self.name} needs the model: give its folder "
                f"or name."
            )
        rows = [to_chat(row) if self.chat and not row.conversational else row for row in rows]
        if self._scored is not None and self._scored[0] is self.reference and self._scored[1] == rows:
            return self._scored[2].copy()  # for each repeat of a judge an evaluation asks again
        pairs = self._pairs_like(self.reference, rows)
        fitting = [place for place, pair in enumerate(pairs) if not isinstance(pair, str)]
        if not fitting:
            raise SubjectError(f"none of the {len(rows)} rows can be scored, the first because: {pairs[0]}.")
        scored, margins = [pair for pair in pairs if not isinstance(pair, str)], np.full(len(rows), np.nan)
        theirs = self.reference.logps(scored)
        with self._as():
            margins[fitting] = log_ratio_margins(self.backbone, scored, theirs)
        self._scored = self.reference, rows, margins
        return margins.copy()

    def logps(self, pairs: Sequence[Pair]) -> Reference:
        """Return log-probs (nats) of the pairs' response tokens, which are kept on disk."""
        weights = None if self.as_reference else self.identity
        return ReferenceStore(caches.CACHES["reference"].folder, 0).get(self.backbone, pairs, policy=weights)

    def tokenized(self, rows: Sequence[Row], longest: int) -> list[Pair | str]:
        """Return the token ids of each row, or the reason why it cannot be scored."""
        return [pair for _, pair, _ in tokenize_rows(rows, self.tokenizer, longest, "keep_start")]

    @property
    def longest(self) -> int:
        """Number of tokens of the longest sequence that can be scored."""
        context = context_of(self.backbone.causal_lm, self.tokenizer)
        return min(self.backbone.longest or context, context)

    def _pairs_like(self, reference: "Policy", rows: Sequence[Row]) -> list[Pair | str]:
        """Return the rows tokenised, after checking that the reference tokenises them identically."""
        longest = min(self.longest, reference.longest)
        pairs = self.tokenized(rows, longest)
        if reference.tokenizer is self.tokenizer:
            return pairs
        try:
            same = list(map(_ids, pairs)) == list(map(_ids, reference.tokenized(rows, longest)))
        except DataError as error:
            raise SubjectError(f"{reference.name} cannot read the rows that {self.name} scores: {error}") from error
        if not same:
            raise SubjectError(
                f"{reference.name} tokenises the rows differently from {self.name}, so that there is no log-ratio between "
                f"them: compare with a model of the same tokenizer and chat template."
            )
        return pairs

    def _engine(self, config: EvaluationConfig) -> Engine:
        backbone = self.backbone
        if config.sampler == DEFAULT:
            return Local(backbone, config.batch_size, held=self.adapter)
        return engine_of(config.sampler, backbone, self.tokenizer)

    def _adapter(self, spec: str) -> Adapter | None:
        """Return the adapter to draw with; None for the base itself.

        Raises:
            SubjectError: the weights are neither the base's nor those of an adapter on it.
        """
        if spec == DEFAULT or not self.as_reference:
            if spec != DEFAULT and self.adapter is None and self.backbone.settings.peft == "full":
                raise SubjectError(
                    f"sampler={spec} draws with adapters of one base, and {self.name} is trained in full: leave out sampler, or "
                    f"serve its folder and name that, server:MODEL@URL."
                )
            return self.adapter
        reference = self.backbone.reference
        if reference.model is not None:
            raise SubjectError(
                f"sampler={spec} draws with adapters of one base, and the reference is another model: leave out sampler."
            )
        if not reference.tensors or reference.identity == self.backbone.base.identity:
            return None
        folder = caches.CACHES["adapters"].path(reference.identity[:32])
        with caches.lock(folder):
            if not store.intact(folder):
                with self._as():
                    self.backbone.save(folder)
                store.seal(folder)
            caches.hold(folder)
        return Adapter(reference.identity, folder)

    def _as(self) -> AbstractContextManager[None]:
        return self.backbone.holding(self.backbone.reference) if self.as_reference else nullcontext()

    def _shown(self, prompt: Text) -> str:
        if isinstance(prompt, str):
            return prompt
        return self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)


def log_ratio_margins(backbone: Backbone, pairs: Sequence[Pair], reference: Reference) -> torch.Tensor:
    """Return each pair's log-ratio margin h (nats, float64) to a reference: exactly 0 if it is 0 except for rounding."""
    found: list[float] = []
    for start in range(0, len(pairs), PASS_PAIRS):
        indices = range(start, min(start + PASS_PAIRS, len(pairs)))
        batch = reference.added_to(collate([pairs[i] for i in indices], packed=backbone.packed), indices)
        assert batch.ref_logps is not None  # `added_to` sets them
        ratios = backbone.measure(batch, ("logps",))["logps"].cpu() - batch.ref_logps
        totals = [part.sum().item() for part in ratios.split(batch.lengths)]
        half = len(indices)
        found += [c - r for c, r in zip(totals[:half], totals[half:], strict=True)]
    tokens = torch.tensor([len(pair.chosen_ids) + len(pair.rejected_ids) for pair in pairs])
    return without_rounding(torch.tensor(found, dtype=torch.float64), tokens, backbone.head_dtype)


def _ids(pair: Pair | str) -> Any:
    return pair if isinstance(pair, str) else (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)
