"""Check of the direction of a loss: the chosen response up, the rejected one down."""

import torch
from torch import Tensor

from plo.losses import Loss
from plo.losses.register import SIDES
from plo.verify.check import DESCRIBED, FAILED, PASSED, Check
from plo.verify.inputs import gradients_in, make_pairs, make_statistics, per_pair, rows

REACH = 20.0  # nats: the grid of log-ratios is [-REACH, REACH] in both responses
STEPS = 21
REFERENCE = torch.tensor([-4.0, -5.0, -7.0, -9.0], dtype=torch.float64)  # so low that log pi stays below 0;
# uneven, because some losses distinguish likely and unlikely tokens
WISHES = {"chosen": "falls", "rejected": "rises"}  # what the loss should do where the log-ratio of that side grows
MOST = 0.5


def directions(loss: Loss) -> Check:
    """Check the signs of dL/dD(y_w) and dL/dD(y_l) on a grid of log-ratios, spread evenly over a response's tokens.

    Fails where the loss pulls a side the wrong way on more than half of the points on which it pulls at all, unless the
    loss declares that side (`register_loss(against=...)`). Other statistics are held at one value, the same on both sides.
    """
    grid = torch.linspace(-REACH, REACH, STEPS, dtype=torch.float64)
    chosen, rejected = (axis.reshape(-1) for axis in torch.meshgrid(grid, grid, indexing="ij"))
    said, values, measured, wrong = [], {}, [], []
    for name, slope in zip(SIDES, _slopes(loss, chosen, rejected), strict=True):
        wish = WISHES[name]
        good = slope < 0 if wish == "falls" else slope > 0
        flat = slope == 0
        bad = ~good & ~flat
        said.append(_sentence(wish, name, good, flat, bad, chosen, rejected))
        shares = {wish: good, "flat": flat, "otherwise": bad}
        values |= {f"{name} {what}": float(share.double().mean()) for what, share in shares.items()}
        measured.append(f"{values[f'{name} {wish}']:.0%} {wish} in {name}")
        if int(bad.sum()) > MOST * int((~flat).sum()):
            wrong.append(name)
    meaning = "; ".join(said)
    undeclared = [name for name in wrong if name not in loss.against]
    if undeclared:
        remedy = (
            f"a sign is wrong, or the two sides are exchanged. If it is meant, register the loss with "
            f"against={tuple(undeclared)}."
        )
        claim = "the loss falls as the chosen response gets likelier, and rises as the rejected one does"
        return Check("direction", FAILED, ", ".join(measured), claim, meaning, remedy, values)
    if wrong:
        meaning += f"; against the preference in {' and '.join(wrong)}, as declared"
    return Check("direction", DESCRIBED if wrong else PASSED, ", ".join(measured), meaning, values=values)


def _slopes(loss: Loss, chosen: Tensor, rejected: Tensor) -> list[Tensor]:
    """Return (points,) dL/dD(y_w) and dL/dD(y_l)."""
    points, tokens = len(chosen), len(REFERENCE)
    ratios = [values.clone().requires_grad_() for values in (chosen, rejected)]
    masks = [torch.ones(points, tokens, dtype=torch.bool)] * 2
    constants = make_statistics(loss.needs)[0]
    sides = []
    for ratio in ratios:
        side = {name: values[:1, :1].expand(points, tokens, *values.shape[2:]) for name, values in constants.items()}
        side["ref_logps"] = REFERENCE.expand(points, tokens)
        side["logps"] = side["ref_logps"] + ratio[:, None] / tokens
        sides.append(side)
    pairs = make_pairs(sides, loss.needs, masks)
    if loss.level == "batch":  # a point is a batch of its own: others would change its rank
        total = torch.stack([per_pair(loss, rows(pairs, [point])) for point in range(points)]).sum()
    else:
        total = per_pair(loss, pairs).sum()
    return gradients_in(total, ratios)


def _sentence(wish: str, name: str, good: Tensor, flat: Tensor, bad: Tensor, chosen: Tensor, rejected: Tensor) -> str:
    if good.all():
        return f"{wish} in {name} everywhere on ±{REACH:g} nats"
    if flat.all():
        return f"does not depend on the log-ratio of {name}"
    text = f"{wish} in {name} on {float(good.double().mean()):.0%} of ±{REACH:g} nats"
    if bad.any():
        at = int(bad.nonzero()[len(bad.nonzero()) // 2])
        other = "rises" if wish == "falls" else "falls"
        place = f"as at D_w {float(chosen[at]):g}, D_l {float(rejected[at]):g}"
        text += f", {other} on {float(bad.double().mean()):.0%} ({place})"
    if flat.any():
        text += f", flat on {float(flat.double().mean()):.0%}"
    return text
