"""Token scorers turn every pair into constants, one a response token, which a loss reads as `pairs.chosen.weights`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from torch import Tensor

from plo.configured import accepted, changed, full_name, read_call, resolve_params
from plo.errors import PloError
from plo.identity import code_identity, sha256
from plo.registry import Entry, Registry, check_signature

Target = TypeVar("Target", bound=Callable[..., Any])
Scores = tuple[Tensor, Tensor]  # (tokens,) of the chosen and of the rejected response, EOS included


class ScorerError(PloError, ValueError):
    """A scorer cannot be configured, or returned the wrong thing."""


@dataclass(frozen=True)
class Stage:
    """A model that is trained before a scorer can score: a recorded run of its own, shared by all that need the same one.

    Attributes:
        loss: anything `get_loss` takes.
        model: a model of the same tokenizer, by the name an experiment gives it; None: the policy's own.
        share: share of the training pairs, the first in their order.
        reversed: whether chosen and rejected are exchanged.
        train: settings of the optimisation that differ from the experiment's, {"lr": 5e-7}.
        seed: seed of batch order and adapters; that of a cell is added to it unless the experiment's seeds share stages.
    """

    loss: Any = "dpo"
    model: str | None = None
    share: float = 1.0
    reversed: bool = False
    train: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class ScorerFacts:
    """Facts that `register_scorer` declares of a token scorer; its arguments describe them."""

    stages: Callable[..., Mapping[str, Stage]] | None = None
    reads: tuple[str, ...] = ()
    seeded: bool = False
    paper: str = ""


SCORERS = Registry("token scorer", group="plo.scorers", facts=ScorerFacts)


class Material(Protocol):
    """Data and models that a scorer works from.

    Attributes:
        pairs: the tokenised pairs (`plo.data.Pair`): ids of the prompt and of both responses, and `row`, their texts.
        seed: the run's seed, for a scorer whose weights depend on it; 0 for the others.
        tokenizer: the tokenizer of transformers.
    """

    pairs: Sequence[Any]
    seed: int
    tokenizer: Any

    def logps(self, stage: str | None = None) -> Sequence[Scores]:
        """Return log-probs of the response tokens, per pair ((T_w,), (T_l,)) nats.

        Args:
            stage: name of the stage whose trained model is used, or `"name.reference"`, its model before training; None:
                the reference (the policy's initial weights).
        """
        ...

    def logps_after(self, prompts: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Sequence[Scores]:
        """Return the reference's log-probs of the response tokens after other prompts, per pair ((T_w,), (T_l,)) nats.

        Args:
            prompts: token ids of the prompt of the chosen and of the rejected response, per pair.
        """
        ...

    def scores(self) -> Sequence[Scores]:
        """Return the weights of the scorer that the hyper-parameter `of` names, made once for all seeds."""
        ...

    def attending_model(self) -> Any:
        """Return the initial policy, a causal LM in evaluation mode that returns attention weights (eager)."""
        ...


def register_scorer(
    name: str,
    *,
    stages: Callable[..., Mapping[str, Stage]] | None = None,
    reads: Sequence[str] = (),
    seeded: bool = False,
    paper: str = "",
    replace: bool = False,
) -> Callable[[Target], Target]:
    """Register a token scorer: a function of `Material` that yields `Scores`, pair after pair.

    The keyword-only arguments are the hyper-parameters, checked against their hints like those of a loss. The docstring
    documents what the weights of a response sum to.

    Args:
        name: the name in `twdpo(scorer=position_decay(gamma=0.9))`.
        stages: a function of the hyper-parameters that returns the models to train first, by name.
        reads: inputs that the weights depend on in addition to token ids: "texts", "model", "tokenizer" (its special
            tokens).
        seeded: whether the weights depend on the run's seed; others are computed once for all seeds.
        paper: arXiv number or citation.

    Example:
        >>> @register_scorer("first_half")
        ... def first_half(material, *, share: float = 0.5):
        ...     for pair in material.pairs:
        ...         yield tuple((torch.arange(len(ids)) < share * len(ids)).float()
        ...                     for ids in (pair.chosen_ids, pair.rejected_ids))
    """
    add = SCORERS.register(name, facts=ScorerFacts(stages, tuple(reads), seeded, paper), replace=replace)

    def register(function: Target) -> Target:
        check_signature("token scorer", name, function, given="material")
        return add(function)

    return register


class Scorer:
    """A registered token scorer with its hyper-parameters.

    Attributes:
        name: registered name and the hyper-parameters that differ from their defaults.
        params: every hyper-parameter.
        stages: models to train first, by name.
    """

    def __init__(self, entry: Entry, params: Mapping[str, Any]):
        self.entry = entry
        if isinstance(params.get("of"), Mapping):
            params = {**params, "of": get_scorer(params["of"]).name}
        self.params = resolve_params("token scorer", entry, params)
        self.name = full_name(entry, self.params)
        stages = entry.facts.stages
        self.stages: dict[str, Stage] = dict(stages(**accepted(stages, self.params))) if stages else {}
        inner = self.params.get("of")  # of a scorer that changes another one's weights
        self.inner = get_scorer(inner) if inner is not None else None
        if self.inner is not None:
            self.stages |= self.inner.stages
        self._seeded_stages = False

    def of_seed(self, seed: int) -> "Scorer":
        """Return the scorer with stages that are trained with a seed of their own, instead of one for all seeds."""
        if not self.stages:
            return self
        one = copy(self)
        one.stages = {name: replace(stage, seed=stage.seed + seed) for name, stage in self.stages.items()}
        one.inner = self.inner.of_seed(seed) if self.inner is not None else None
        one._seeded_stages = True
        return one

    def with_params(self, changes: Mapping[str, Any]) -> "Scorer":
        """Return the same scorer with some hyper-parameters changed; the others keep their values."""
        return Scorer(self.entry, {**changed(self.entry, self.params), **changes})

    @property
    def seeded(self) -> bool:
        """True if the weights depend on the run's seed."""
        inner = self.inner is not None and self.inner.seeded
        return self.entry.facts.seeded or self._seeded_stages or inner

    @property
    def reads(self) -> tuple[str, ...]:
        """Inputs that the weights depend on in addition to token ids, those of the scorer inside included."""
        return (*self.entry.facts.reads, *(self.inner.reads if self.inner is not None else ()))

    @property
    def source(self) -> str:
        """Hash that identifies the weights: code, hyper-parameters, and the scorer inside."""
        inner = self.inner.source if self.inner is not None else None
        return sha256([code_identity(self.entry.load()), repr(self.params), inner])

    def __call__(self, material: Material) -> Iterator[Scores]:
        """Yield the weights of pair after pair.

        Raises:
            ScorerError: other than two tensors of one finite number per token.
        """
        yielded = iter(self.entry.load()(material, **self.params))
        for pair in material.pairs:
            scores = next(yielded, None)
            if scores is None:
                raise ScorerError(
                    f"{self._title} yielded nothing for {pair.where}: it must yield two tensors for every pair."
                )
            expected = [(len(pair.chosen_ids),), (len(pair.rejected_ids),)]
            got = [tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in scores]
            if got != expected or not all(part.isfinite().all() for part in scores):
                raise ScorerError(
                    f"{self._title} must yield one finite number per response token, shapes {expected}, for "
                    f"{pair.where}, and yielded {got}."
                )
            yield scores[0].float(), scores[1].float()
        if next(yielded, None) is not None:
            raise ScorerError(
                f"{self._title} yielded more than two tensors for every pair: {len(material.pairs)} were given."
            )

    @property
    def _title(self) -> str:
        return f"The token scorer {self.name!r} ({self.entry.origin})"

    def __repr__(self) -> str:
        return f"Scorer({self.name})"


def get_scorer(spec: "str | Mapping[str, Any] | Scorer", **params: Any) -> Scorer:
    """Return a configured scorer, from "position_decay(gamma=0.9)" or {"name": "position_decay", "gamma": 0.9}.

    Raises:
        RegistryError: no such scorer. HyperParameterError: a hyper-parameter it does not have.
    """
    if isinstance(spec, Scorer):
        return spec
    if isinstance(spec, str):
        name, own = (spec, {}) if spec in SCORERS else read_call(spec)
    elif isinstance(spec, Mapping) and "name" in spec:
        own = dict(spec)
        name = own.pop("name")
    elif isinstance(spec, Mapping) and len(spec) == 1:
        name, own = next(iter(spec.items()))
    else:
        raise ScorerError(f"Cannot make a token scorer of {spec!r}: give a name, name(key=value) or a mapping.")
    return Scorer(SCORERS[name], {**(own or {}), **params})
