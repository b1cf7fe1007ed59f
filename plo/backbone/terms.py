"""Terms of a loss, computed from per-token statistics: sums, the numbers of what they sum, and metrics."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plo.losses import Loss, LossError, LossValue
from plo.margins import wins, without_rounding
from plo.pairs import Pairs, Side

Sides = tuple[Callable[..., Side], Callable[..., Side]]  # what makes the chosen and the rejected side


@dataclass(frozen=True)
class Terms:
    """The value of a loss on a batch, term by term.

    Attributes:
        sums: (terms,) weighted sum of each term over its pairs or tokens, with gradient.
        counts: number of pairs or tokens in each sum.
        finite: (pairs,) whether all terms are finite for the pair.
        metrics: name -> (pairs,), detached; named after its term in a sum of losses, else "loss/...".
    """

    sums: Tensor
    counts: list[int]
    finite: Tensor
    metrics: dict[str, Tensor]


def evaluate(loss: Loss, pairs: Pairs) -> Terms:
    """Compute the terms of a loss. A step's mean is the sum of its micro-batches' sums by the sum of their counts."""
    sums, counts, metrics = [], [], {}
    finite = torch.ones(len(pairs), dtype=torch.bool, device=pairs.chosen.mask.device)
    for coefficient, term in loss.terms:
        value = term.evaluate(pairs)
        sums.append(coefficient * value.values.sum())
        counts.append(len(pairs) if value.mask is None else int(value.mask.sum()))
        finite &= value.values.isfinite() if value.mask is None else value.values.isfinite().all(-1)
        prefix = f"{term.name}/" if len(loss.terms) > 1 else "loss/"
        metrics |= {prefix + name: values for name, values in value.metrics.items()}
    return Terms(torch.stack(sums), counts, finite, metrics)


def count(loss: Loss, mask: Tensor, columns: Mapping[str, Tensor], hidden_size: int) -> list[int]:
    """Return how many pairs or tokens each term of a loss averages over, without a forward pass.

    The mask of a token-level loss may depend on lengths, not on values: it is computed from statistics that are all 0.

    Args:
        mask: (2 pairs, tokens) bool, chosen before rejected.
    """
    if all(term.level != "token" for _, term in loss.terms):
        return [len(mask) // 2] * len(loss.terms)
    values = evaluate_zeros(loss, mask, columns, hidden_size)
    return [len(mask) // 2 if value.mask is None else int(value.mask.sum()) for value in values]


def check_counts(loss: Loss, got: list[int], promised: list[int]) -> None:
    """Raise a LossError if a forward pass averaged over other numbers of pairs or tokens than `count` returned before it."""
    if got != promised:
        raise LossError(
            f"The loss {loss.name!r} averages over {got} pairs or tokens where its mask promised {promised}: the mask "
            f"of a token-level loss may depend on lengths, not on values."
        )


def parameter_groups(loss: Loss, learning_rate: float) -> list[dict[str, Any]]:
    """Return the optimiser's groups of a loss's own parameters, one for each term that has some.

    Args:
        learning_rate: of a term that declares none.
    """
    groups = [(list(term.parameters()), term.learning_rate or learning_rate) for _, term in loss.terms]
    return [{"params": own, "lr": lr, "weight_decay": 0.0} for own, lr in groups if own]


def evaluate_zeros(
    loss: Loss, mask: Tensor, columns: Mapping[str, Tensor], hidden_size: int, sides: Sides = (Side, Side)
) -> list[LossValue]:
    """Evaluate each term of a loss on statistics that are 0 everywhere."""
    zeros = torch.zeros(mask.shape, device=mask.device)
    names = [need for need in loss.needs if not need.startswith(("column:", "completion:"))]
    statistics = dict.fromkeys(("logps", *names), zeros)
    if "hidden" in statistics:
        statistics["hidden"] = torch.zeros(*mask.shape, hidden_size, device=mask.device)
    half = len(mask) // 2
    zero = Side(mask=mask[:half], logps=zeros[:half], ref_logps=zeros[:half])
    completions = {need.removeprefix("completion:"): zero for need in loss.needs if need.startswith("completion:")}
    pairs = as_pairs(statistics, mask, columns=columns, sides=sides, completions=completions)
    with torch.no_grad():
        return [term.evaluate(pairs) for _, term in loss.terms]


def as_pairs(
    statistics: Mapping[str, Tensor],
    mask: Tensor,
    *,
    columns: Mapping[str, Tensor] | None = None,
    progress: float = 0.0,
    sides: Sides = (Side, Side),
    completions: Mapping[str, Side] | None = None,
) -> Pairs:
    """Make `Pairs` of statistics (2 pairs, tokens, ...), chosen before rejected; `sides` are the two classes to use."""
    half = len(mask) // 2
    chosen, rejected = sides
    return Pairs(
        chosen=chosen(mask=mask[:half], **{name: values[:half] for name, values in statistics.items()}),
        rejected=rejected(mask=mask[half:], **{name: values[half:] for name, values in statistics.items()}),
        columns=columns,
        progress=progress,
    ).with_completions(completions or {})


def scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Return token values (n, ...), given row after row, as (rows, tokens, ...), 0 off the mask."""
    if values.dim() == 1:
        return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
    out = torch.zeros(*mask.shape, *values.shape[1:], dtype=values.dtype, device=values.device)
    out[mask] = values
    return out


def always_logged(pairs: Pairs, dtype: torch.dtype) -> dict[str, Tensor]:
    """Compute the metrics that are logged whatever the loss, (pairs,), in nats, without beta."""
    metrics = {
        "logps/chosen": pairs.chosen.logp(),
        "logps/rejected": pairs.rejected.logp(),
        "log_ratios/chosen": pairs.chosen.log_ratio(),
        "log_ratios/rejected": pairs.rejected.log_ratio(),
        "margin": pairs.log_ratio_margin(),
        "accuracy": accuracy(pairs, dtype),
    }
    return {name: values.detach() for name, values in metrics.items()}


def accuracy(pairs: Pairs, dtype: torch.dtype) -> Tensor:
    """Return (pairs,) 1 for a margin above 0, 1/2 for one within the rounding of `dtype` of 0, and 0 below."""
    tokens = pairs.chosen.lengths + pairs.rejected.lengths
    return wins(without_rounding(pairs.log_ratio_margin(), tokens, dtype))
