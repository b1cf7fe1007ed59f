"""Hash that identifies a loss, for the keys of what is computed with it."""

from collections.abc import Mapping
from typing import Any

from plo.identity import code_identity, sha256
from plo.losses.generators import GENERATORS
from plo.losses.get import get_loss
from plo.losses.loss import Loss
from plo.pairs import Pairs, Side

PLAIN = (str, int, float, tuple, list, type(None))  # values of hyper-parameters that are no code


def loss_identity(loss: Loss, params: Mapping[str, Any] | None = None, scorer: str | None = None) -> str:
    """Return the hash of a loss's code, of the code it calls, and of its hyper-parameters; of a sum, a line per term.

    Args:
        params: hyper-parameters of the variant that the loss is part of; None: the loss's own.
        scorer: hash that identifies the token weights.
    """
    if loss.entry is None:  # a sum
        return "\n".join(loss_identity(term) for _, term in loss.terms)
    params = loss.params if params is None else params
    plain: dict[str, Any] = {name: value for name, value in params.items() if isinstance(value, PLAIN)}
    code: list[Any] = [loss.target, *(value for name, value in params.items() if name not in plain)]
    generator, base = params.get("generator"), params.get("base")
    if isinstance(generator, str):
        entry = GENERATORS[generator]
        code += [entry.load(), entry.facts.closed_form]
    parts = [scorer]
    if isinstance(base, str):  # of a loss that changes another one
        parts.append(loss_identity(get_loss(base)))
    return sha256([repr(plain), loss.needs, loss.level, *parts, code_identity(*code, through=(Pairs, Side))])
