"""Per-token statistics of the LM head, computed from hidden states in chunks, so that logits of all tokens never coexist.

If the head is frozen (LoRA), a statistic's gradient for its token's hidden state is taken in the forward pass, except for
a factor, while the chunk's logits exist. If the head is trained, the backward pass computes the chunk again: from its
logits if all of them can be kept, else from its hidden states.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from plo.configured import read_call, resolve_params
from plo.registry import Entry, Registry


@dataclass(frozen=True)
class StatisticFacts:
    """Facts that `register_statistic` declares: `reference` is whether it compares with the reference's distribution."""

    reference: bool = False


STATISTICS = Registry("statistic", group="plo.statistics", facts=StatisticFacts)
CHUNK_ELEMENTS = 2**23  # logits held at a time: 32 MiB in float32
KEPT_ELEMENTS = 2**26  # logits kept for the backward pass: 128 MiB in bfloat16, with their gradients 350 for a moment

Head = Callable[[Tensor], Tensor]  # (n, d) hidden states -> (n, vocabulary) logits
Statistic = Callable[[Tensor, Tensor | None, Tensor], Tensor]  # (log_probs, ref_log_probs, targets) -> (n,)


def register_statistic(name: str, *, reference: bool = False) -> Callable:
    """Register a per-token statistic: a function of (log_probs, ref_log_probs, targets) that returns (n,).

    `log_probs` and `ref_log_probs` are (n, vocabulary), float32, normalised; `targets` (n,) the tokens of the
    response. `ref_log_probs` is None unless `reference=True`. Keyword-only arguments are set in `needs`:
    `needs=("logps_at(temperature=1.1)",)`, which a loss reads as `pairs.chosen["logps_at(temperature=1.1)"]`.

    Example:
        >>> @register_statistic("top_p")
        ... def top_p(log_probs, ref_log_probs, targets): return log_probs.max(-1).values.exp()
    """
    return STATISTICS.register(name, facts=StatisticFacts(reference))


@register_statistic("logps")
def logps(log_probs: Tensor, ref_log_probs: Tensor | None, targets: Tensor) -> Tensor:
    """Return log pi(y_t | s_t), in nats."""
    return log_probs.gather(-1, targets[:, None]).squeeze(-1)


@register_statistic("kl_ref_pi", reference=True)
def kl_ref_pi(log_probs: Tensor, ref_log_probs: Tensor, targets: Tensor) -> Tensor:
    """Return KL(ref || pi) over the whole vocabulary at s_t, in nats."""
    return _kl(ref_log_probs, log_probs)


@register_statistic("kl_pi_ref", reference=True)
def kl_pi_ref(log_probs: Tensor, ref_log_probs: Tensor, targets: Tensor) -> Tensor:
    """Return KL(pi || ref) over the whole vocabulary at s_t, in nats."""
    return _kl(log_probs, ref_log_probs)


@register_statistic("entropy")
def entropy(log_probs: Tensor, ref_log_probs: Tensor | None, targets: Tensor) -> Tensor:
    """Return the entropy of pi at s_t over the whole vocabulary, in nats."""
    return -_expectation(log_probs, log_probs)


@register_statistic("log_p2")
def log_p2(log_probs: Tensor, ref_log_probs: Tensor | None, targets: Tensor) -> Tensor:
    """Return log sum_v pi(v | s_t)^2."""
    return (2 * log_probs).logsumexp(-1)


@register_statistic("logps_at")
def logps_at(
    log_probs: Tensor, ref_log_probs: Tensor | None, targets: Tensor, *, temperature: Annotated[float, Field(gt=0)]
) -> Tensor:
    """Return log pi(y_t | s_t) of the policy at another temperature, softmax(logits / temperature), in nats."""
    return logps((log_probs / temperature).log_softmax(-1), None, targets)


@register_statistic("logps_beyond", reference=True)
def logps_beyond(log_probs: Tensor, ref_log_probs: Tensor, targets: Tensor, *, epsilon: float) -> Tensor:
    """Return log p(y_t | s_t), in nats, p ~ pi^(1 + epsilon) ref^-epsilon: pi moved away from the reference, or towards it."""
    return logps(torch.lerp(log_probs, ref_log_probs, -epsilon).log_softmax(-1), None, targets)


def statistic_of(need: str) -> Entry[StatisticFacts] | None:
    """Return the registered statistic that a need names, "logps_at(temperature=1.1)" or "entropy"; None if it is none."""
    name = need.partition("(")[0]
    return STATISTICS[name] if name in STATISTICS else None  # noqa: SIM401 (not a dict)


def function_of(need: str) -> Statistic:
    """Return the function of (log_probs, ref_log_probs, targets) that computes a need, with the need's arguments.

    Raises:
        RegistryError: no such statistic.
        HyperParameterError: an argument that the statistic does not have or cannot take, or one that is missing.
    """
    name, params = read_call(need)
    entry = STATISTICS[name]
    params = resolve_params("statistic", entry, params)
    return partial(entry.load(), **params) if params else entry.load()


def needs_reference(names: Iterable[str]) -> bool:
    """Return whether any of `names` is a statistic that compares with the reference's whole distribution."""
    return any(entry.facts.reference for entry in map(statistic_of, names) if entry is not None)


def token_statistics(
    names: Iterable[str],
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    ref_hidden: Tensor | None = None,
    ref_head: Head | None = None,
    *,
    vocabulary: int,
    frozen: bool = False,
    kept: int = KEPT_ELEMENTS,
) -> dict[str, Tensor]:
    """Compute the named statistics of every token.

    Args:
        names: registered statistics, with their arguments.
        hidden: (n, d) policy's final hidden states at the positions that predict `targets`.
        targets: (n,) token ids.
        head: the policy's LM head.
        ref_hidden, ref_head: hidden states and head of the reference, for statistics that compare with it.
        frozen: whether no parameter of `head` is trained.
        vocabulary: number of logits of a token.
        kept: maximum number of logits, the reference's included, that are kept for the backward pass of a trained head.

    Returns:
        name -> (n,), float32 (float64 from float64 hidden states), with gradient where grad is enabled.
    """
    names = tuple(names)
    if not names:
        return {}
    functions = [function_of(name) for name in names]

    def of_logits(logits: Tensor, ref_logits: Tensor | None, targets: Tensor) -> tuple[Tensor, ...]:
        with torch.autocast(logits.device.type, enabled=False):  # it would round what is summed over the vocabulary
            log_probs = _log_softmax(logits)
            ref_log_probs = None if ref_logits is None else _log_softmax(ref_logits)
            return tuple(function(log_probs, ref_log_probs, targets) for function in functions)

    @torch.no_grad()
    def of_reference(ref_hidden: Tensor | None) -> Tensor | None:
        return None if ref_hidden is None or ref_head is None else ref_head(ref_hidden)

    def of_hidden(hidden: Tensor, ref_hidden: Tensor | None, targets: Tensor) -> tuple[Tensor, ...]:
        return of_logits(head(hidden), of_reference(ref_hidden), targets)

    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    logits = len(targets) * vocabulary * (1 if ref_hidden is None else 2)
    inputs = hidden, ref_hidden
    if not torch.is_grad_enabled():
        statistics = of_hidden
    elif frozen:
        statistics = partial(_WithGradient.apply, of_hidden)
    elif logits <= kept:
        statistics, inputs = partial(again, of_logits), (head(hidden), of_reference(ref_hidden))
    else:
        statistics = partial(again, of_hidden)
    size = max(1, CHUNK_ELEMENTS // vocabulary)
    chunks = targets.split(size)
    inputs = ([None] * len(chunks) if values is None else values.split(size) for values in inputs)
    parts = [statistics(*chunk) for chunk in zip(*inputs, chunks, strict=True)]
    return {name: torch.cat(values) for name, values in zip(names, zip(*parts, strict=True), strict=True)}


class _WithGradient(torch.autograd.Function):
    """Statistics of a chunk, computed with their gradients for the hidden states, except for the factors that come later."""

    @staticmethod
    def forward(ctx, chunk: Callable, hidden: Tensor, ref_hidden: Tensor | None, targets: Tensor):
        with torch.enable_grad():
            hidden = hidden.detach().requires_grad_()
            values = chunk(hidden, ref_hidden, targets)
            gradients = [
                torch.autograd.grad(value.sum(), hidden, retain_graph=True)[0] if value.requires_grad else None
                for value in values
            ]
        ctx.save_for_backward(*gradients)
        values = tuple(value.detach() for value in values)
        ctx.mark_non_differentiable(*(v for v, g in zip(values, gradients, strict=True) if g is None))
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx, *factors: Tensor | None):
        hidden = None
        for factor, gradient in zip(factors, ctx.saved_tensors, strict=True):
            if factor is not None and gradient is not None:
                part = (factor[:, None] * gradient).to(gradient.dtype)
                hidden = part if hidden is None else hidden + part
        return None, hidden, None, None


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return _expectation(p, p - q)


def _expectation(log_p: Tensor, values: Tensor) -> Tensor:
    p = log_p.exp()
    expected = torch.linalg.vecdot(p, values)  # one pass over the vocabulary, nothing of its size in between
    if expected.isfinite().all():
        return expected
    # A token of probability 0 (log -inf) contributes nothing: 0 * inf would be nan.
    return torch.linalg.vecdot(p, values.masked_fill(p == 0, 0))
