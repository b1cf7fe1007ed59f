"""Pairs of random statistics, on which a loss is tried without a model."""

import copy
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from plo.losses import Loss
from plo.pairs import Pairs, Side

LENGTHS = ((5, 1, 3, 4), (2, 4, 3, 6))  # response tokens of the four pairs: chosen, rejected
WIDTH = 6
HIDDEN = 7
CONSTANTS = ("ref_logps", "weights", "hidden")  # statistics without gradient, like columns

Statistics = list[dict[str, Tensor]]  # [chosen, rejected]
Key = tuple[int, str]  # 0 for chosen or 1 for rejected, and the name of a statistic


def mask_of(lengths: Sequence[int], width: int = WIDTH) -> Tensor:
    """Return (pairs, width) bool: True on the first `lengths` tokens."""
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


MASKS = [mask_of(lengths) for lengths in LENGTHS]


def make_statistics(needs: Iterable[str], dtype: torch.dtype = torch.float64, seed: int = 0) -> Statistics:
    """Return [chosen, rejected], each {name: tensor}: random statistics of four pairs of unequal lengths.

    Each is (4, WIDTH), `hidden` (4, WIDTH, HIDDEN): log-probabilities ("logps_at(temperature=2)" too) in [-3.3, -.3]
    nats, `log_p2` negative, every other one positive, unknown ones too. They are random off the mask as well.
    """
    generator = torch.Generator().manual_seed(seed)

    def positive(*more: int) -> Tensor:
        return torch.rand(len(LENGTHS[0]), WIDTH, *more, generator=generator, dtype=torch.float64) + 0.1

    sides = []
    for _ in LENGTHS:
        side = {"logps": -3 * positive(), "ref_logps": -3 * positive(), "log_p2": -positive()}
        side |= {name: positive() for name in ("kl_ref_pi", "kl_pi_ref", "entropy", "weights")}
        side |= {"hidden": positive(HIDDEN) - 0.6}
        others = [need for need in needs if need not in side and not need.startswith(("column:", "completion:"))]
        side |= {need: -3 * positive() if need.startswith("logps") else positive() for need in others}
        sides.append({name: values.to(dtype) for name, values in side.items() if name in {"logps", *needs}})
    return sides


def make_pairs(
    statistics: Sequence[Mapping[str, Tensor]], needs: Iterable[str] = (), masks: Sequence[Tensor] = MASKS
) -> Pairs:
    """Make `Pairs` of [chosen, rejected] statistics, with the columns and further completions that `needs` names.

    Each column rises from .2 to .8. Log-probs of further completions are constants between -3.3 and -.3 nats.
    """
    chosen, rejected = (Side(mask=mask, **side) for mask, side in zip(masks, statistics, strict=True))
    count, dtype = len(masks[0]), statistics[0]["logps"].dtype
    names = [need.removeprefix("column:") for need in needs if need.startswith("column:")]
    columns = {name: torch.linspace(0.2, 0.8, count, dtype=dtype) for name in names}
    others = [need.removeprefix("completion:") for need in needs if need.startswith("completion:")]
    completions = {name: _completion(masks[0], dtype, seed) for seed, name in enumerate(others)}
    return Pairs(chosen=chosen, rejected=rejected, columns=columns, progress=0.3).with_completions(completions)


def _completion(mask: Tensor, dtype: torch.dtype, seed: int) -> Side:
    generator = torch.Generator().manual_seed(100 + seed)
    logps, ref_logps = -3 * torch.rand(2, *mask.shape, generator=generator, dtype=torch.float64) - 0.3
    return Side(mask=mask, logps=logps.to(dtype), ref_logps=ref_logps.to(dtype))


def rows(pairs: Pairs, index: Sequence[int] | Tensor) -> Pairs:
    """Return the pairs of these rows."""

    def of(side: Side) -> Side:
        return Side(mask=side.mask[index], **{name: values[index] for name, values in side._statistics.items()})

    columns = {name: values[index] for name, values in pairs.columns.items()}
    chosen, rejected = of(pairs.chosen), of(pairs.rejected)
    found = Pairs(chosen=chosen, rejected=rejected, columns=columns, progress=pairs.progress)
    return found.with_completions({name: of(side) for name, side in pairs.completions.items()})


def per_pair(loss: Loss, pairs: Pairs) -> Tensor:
    """Return (pairs,) the loss's values, summed over tokens at token level."""
    value = loss.evaluate(pairs)
    return value.values if value.mask is None else value.values.sum(-1)


def after_step(loss: Loss, pairs: Pairs, *, fresh: bool = False) -> Loss:
    """Return a loss with the state that an optimiser step over these pairs leaves; the loss itself if it keeps no state.

    Args:
        fresh: whether it is the first step of a training.
    """
    if not any(term.updated for _, term in loss.terms):
        return loss
    loss = copy.deepcopy(loss)
    for _, term in loss.terms:
        if fresh and term.updated:
            term.build(HIDDEN).to(pairs.chosen.logps)
        term.update(term.observe(pairs))
    return loss


def mean(loss: Loss, pairs: Pairs) -> Tensor:
    """Return the loss of the batch as the backbone computes it: each term's mean over pairs, or over tokens."""
    value = loss.evaluate(pairs)
    return value.values.sum() / (len(pairs) if value.mask is None else value.mask.sum().clamp(min=1))


def gradients_in(total: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a number in each leaf, 0 where it does not depend on the leaf."""
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(total, leaves, materialize_grads=True))


def by_key(statistics: Statistics) -> dict[Key, Tensor]:
    """Return the statistics of both sides in one dictionary."""
    return {(which, name): values for which, side in enumerate(statistics) for name, values in side.items()}
