"""Checks that a pair's loss depends on that pair's response tokens alone, and stays finite at extremes."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from plo.losses import Loss
from plo.losses.register import SIDES
from plo.verify.check import FAILED, NOT_APPLICABLE, PASSED, Check, verdict
from plo.verify.inputs import (
    LENGTHS,
    MASKS,
    WIDTH,
    Statistics,
    gradients_in,
    make_pairs,
    make_statistics,
    mask_of,
    per_pair,
    rows,
)

ROUNDING = 1e-12  # relative, in float64: sums in another order or width differ by less
EXTREME = 1e3  # nats


def padding(loss: Loss) -> Check:
    """Check that three more columns of padding, filled with nan, change neither values nor gradients."""
    statistics, masks = make_statistics(loss.needs), [mask_of(lengths, WIDTH + 3) for lengths in LENGTHS]
    wide = []
    for side, mask in zip(statistics, masks, strict=True):
        padded = {name: torch.cat([values, torch.zeros_like(values[:, :3])], 1) for name, values in side.items()}
        for values in padded.values():
            values[~mask] = float("nan")
        wide.append(padded)
    value, gradients = _values_and_gradients(loss, statistics)
    value_wide, gradients_wide = _values_and_gradients(loss, wide, masks)
    errors = [(_relative(value_wide, value), "the value")]
    for which, (new, old) in enumerate(zip(gradients_wide, gradients, strict=True)):
        error = torch.cat([_relative(new[:, :WIDTH], old), new[:, WIDTH:].abs()], 1).amax(-1)
        errors.append((error, f"the gradient in {SIDES[which]}.logps"))
    return _verdict_by_pair(
        "padding",
        errors,
        "value and gradient are the same with three more columns of padding, nan in all of it",
        "divide by side.lengths or use side.mean, not tensor.mean or a shape: they count padding.",
    )


def order(loss: Loss) -> Check:
    """Check that the pairs in another order give the same values in that order (at batch level: the same mean)."""
    pairs = make_pairs(make_statistics(loss.needs), loss.needs)
    index = [2, 0, 3, 1]
    expected, shuffled = per_pair(loss, pairs), per_pair(loss, rows(pairs, index))
    if loss.level == "batch":
        errors = [(_relative(shuffled.mean(), expected.mean())[None], "the batch's mean")]
    else:
        errors = [(_relative(shuffled, expected[index]), "the value, batch reordered")]
    return _verdict_by_pair(
        "batch order",
        errors,
        "the pairs in another order give the same values",
        "compute each pair from its own row: no cumsum, sort or shift along dimension 0.",
    )


def split(loss: Loss) -> Check:
    """Check that pairs one by one, as gradient accumulation may split a step, add up to the whole batch.

    The check compares every value at pair level, and every sum and count of tokens at token level.
    """
    name = "batch split"
    if loss.level == "batch":
        reason = 'level="batch": values depend on the whole optimiser step, so the backbone refuses accumulation'
        return Check(name, NOT_APPLICABLE, meaning=reason)
    pairs = make_pairs(make_statistics(loss.needs), loss.needs)
    errors = []
    for _, term in loss.terms:
        whole = term.evaluate(pairs)
        parts = [term.evaluate(rows(pairs, [row])) for row in range(len(pairs))]
        values = torch.cat([part.values for part in parts])
        error = _relative(values, whole.values)
        errors.append(
            (error if error.dim() == 1 else error.amax(-1), f"the value of {term.name!r}, alone and in the batch")
        )
        if whole.mask is not None:
            counts = torch.cat([part.mask for part in parts if part.mask is not None]).sum(-1) - whole.mask.sum(-1)
            errors.append((counts.abs().double(), f"the count of tokens of {term.name!r}"))
    level = "every value" if loss.level == "pair" else "every token's value and the count of tokens"
    return _verdict_by_pair(
        name,
        errors,
        f"each pair alone gives {level} that it has in the batch, so accumulation is exact",
        'take no statistic over dimension 0; a loss that must see the whole step declares level="batch".',
    )


def extremes(loss: Loss) -> Check:
    """Check that value and gradient are finite where D(y) is +-1000 nats for one response and 0 for the other."""
    name, meaning = "extremes", "values at log-ratios of 1e3 nats; they and their gradients are finite, in float32 too"
    remedy = "use logsigmoid, softplus or expm1 for what overflows, or clamp the log-ratio (clip=...)."
    shown = {}
    for which, side in enumerate(SIDES):
        for sign in (1, -1):
            case = f"D({side}) {sign * EXTREME:+.0f}"
            for dtype in (torch.float64, torch.float32):  # float32 last, as in training: its values are shown
                values, gradients = _at_extreme(loss, which, sign, dtype)
                bad = [what for what, each in (("value", values), ("gradient", gradients)) if not each.isfinite().all()]
                if bad:
                    pair = int((~(values.isfinite() & gradients.isfinite())).nonzero()[0])
                    measured = f"{' and '.join(bad)} not finite"
                    precision = str(dtype).removeprefix("torch.")
                    where = f"pair {pair} in {precision}, {case} nats: value {float(values[pair]):g}, {measured}"
                    return Check(name, FAILED, measured, meaning, where, remedy)
            shown[case] = float(values.mean())
    measured = "; ".join(f"{case}: {value:.3g}" for case, value in shown.items())
    return Check(name, PASSED, measured, meaning, values=shown)


def _at_extreme(loss: Loss, which: int, sign: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return (pairs,) values and (pairs,) sums of absolute gradients."""
    loss = copy.deepcopy(loss).to(dtype)
    statistics = make_statistics(loss.needs, dtype)
    tokens = torch.full((len(LENGTHS[0]), WIDTH), EXTREME, dtype=dtype) / torch.tensor(LENGTHS[which])[:, None]
    for index, side in enumerate(statistics):
        # log-probabilities are never above 0: a ratio of +1000 is a reference at -1000
        side["logps"] = -tokens if index == which and sign < 0 else torch.zeros_like(tokens)
        if "ref_logps" in side:
            side["ref_logps"] = -tokens if index == which and sign > 0 else torch.zeros_like(tokens)
    values, gradients = _values_and_gradients(loss, statistics)
    return values, torch.stack([gradient.abs().sum(-1) for gradient in gradients]).sum(0)


def _values_and_gradients(
    loss: Loss, statistics: Statistics, masks: Sequence[Tensor] = MASKS
) -> tuple[Tensor, list[Tensor]]:
    leaves = [side["logps"].requires_grad_() for side in statistics]
    values = per_pair(loss, make_pairs(statistics, loss.needs, masks))
    return values.detach(), gradients_in(values.sum(), leaves)


def _relative(new: Tensor, old: Tensor) -> Tensor:
    return ((new - old).abs() / old.abs().clamp(min=1)).nan_to_num(nan=float("inf")).detach()


def _verdict_by_pair(name: str, errors: list[tuple[Tensor, str]], meaning: str, remedy: str) -> Check:
    worst, what = max(errors, key=lambda error: float(error[0].max()))
    where = f"pair {int(worst.argmax())}: {what} differs"
    return verdict(name, float(worst.max()), ROUNDING, "relative", meaning, where, remedy)
