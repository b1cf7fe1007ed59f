"""`get_loss`: from a name, a dict, a callable or "dpo + 0.2*sft" to something to call on `Pairs`."""

import ast
import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from plo.configured import HyperParameterError, call_of
from plo.losses.loss import LOSSES, Loss, LossError, LossFacts, LossSum
from plo.registry import Entry, check_signature


def get_loss(spec: "str | Mapping[str, Any] | Callable | Loss", /, **params: Any) -> Loss:
    """A configured loss.

    Args:
        spec: a registered name, `"tbpo_a"`; a name with hyper-parameters, `"bpo(generator=sba, lam=0.5)"`; a
            weighted sum, `"dpo + 0.2*sft"`; a dict, `{"name": "dpo", "beta": 0.2}` or `{"dpo": {"beta":
            0.2}}`; or a callable of `Pairs`, whose attribute `needs` names its statistics (without it:
            `("ref_logps",)`).
        params: hyper-parameters.

    Raises:
        RegistryError: no such loss (near names are given).
        LossError: a hyper-parameter it does not have, or a spec that cannot be read.

    Example:
        >>> get_loss("bpo", lam=0.5).name
        'bpo(lam=0.5)'
        >>> get_loss("dpo(beta=0.2) + 0.1*sft").name
        'dpo(beta=0.2) + 0.1*sft'
    """
    if isinstance(spec, Loss):
        if params:
            raise LossError(f"{spec.name!r} is configured already: set hyper-parameters where it is made.")
        return spec
    if isinstance(spec, str):
        return _from_text(spec, params)
    if isinstance(spec, Mapping):
        return _from_mapping(spec, params)
    if isinstance(spec, functools.partial) and not spec.args:
        return get_loss(spec.func, **{**spec.keywords, **params})
    if callable(spec):
        return Loss(_entry_of(spec), params)
    raise LossError(f"Cannot make a loss of {spec!r}: give a name, a dict, or a function of Pairs.")


def _from_mapping(spec: Mapping[str, Any], params: Mapping[str, Any]) -> Loss:
    if "name" in spec:
        named = {key: value for key, value in spec.items() if key != "name"}
        return get_loss(spec["name"], **{**named, **params})
    if len(spec) == 1:
        name, inner = next(iter(spec.items()))
        if inner is None or isinstance(inner, Mapping):
            return get_loss(name, **{**(inner or {}), **params})
    raise LossError(
        f"Cannot make a loss of {dict(spec)!r}: write {{'name': 'dpo', 'beta': 0.2}} or {{'dpo': {{...}}}}."
    )


def _entry_of(function: Callable) -> Entry:
    for entry in LOSSES:
        if entry.target is function:
            return entry
    name = getattr(function, "__name__", type(function).__name__)
    check_signature("loss", name, function, given="pairs")
    declared = {
        field.name: getattr(function, field.name) for field in fields(LossFacts) if hasattr(function, field.name)
    }
    facts = LossFacts(**{"needs": ("ref_logps",), **declared})
    return Entry(name, function, facts, origin=f"{getattr(function, '__module__', '?')}.{name}")


def _from_text(text: str, params: Mapping[str, Any]) -> Loss:
    if text in LOSSES or text in LOSSES.absent:  # the look-up tells why one is absent; "ti-dpo" is no difference
        return _configured(LOSSES[text], params)
    try:
        terms = _terms(ast.parse(text.strip(), mode="eval").body, 1.0)
    except (SyntaxError, LossError, HyperParameterError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise LossError(
            f"Cannot read the loss {text!r} ({reason}). Write a name, name(key=value, ...), or a sum 'dpo + 0.2*sft'."
        ) from None
    if len(terms) == 1 and terms[0][0] == 1.0:
        _, name, own = terms[0]
        return _configured(LOSSES[name], {**own, **params})
    if params:
        raise LossError(
            f"Hyper-parameters of a sum belong to its terms: 'dpo(beta=0.2) + 0.2*sft', not {dict(params)}."
        )
    configured = [(weight, _configured(LOSSES[name], own)) for weight, name, own in terms]
    return LossSum([(weight * inner, term) for weight, loss in configured for inner, term in loss.terms])


def _configured(entry: Entry, params: Mapping[str, Any]) -> Loss:
    """A registered loss; with `preset`, those hyper-parameters below the given ones, in each term."""
    presets = entry.facts.presets
    if not presets or params.get("preset") is None:
        return Loss(entry, {key: value for key, value in params.items() if key != "preset" or not presets})
    own = dict(params)
    preset = own.pop("preset")
    if preset not in presets:
        raise LossError(f"preset={preset!r} of the loss {entry.name!r} must be one of {', '.join(presets)}.")
    terms = [(weight, Loss(entry, {**settings, **own})) for weight, settings in presets[preset]]
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else LossSum(terms)


def _terms(node: ast.expr, weight: float) -> list[tuple[float, str, dict[str, Any]]]:
    match node:
        case ast.BinOp(left, ast.Add(), right):
            return _terms(left, weight) + _terms(right, weight)
        case ast.BinOp(left, ast.Sub(), right):
            return _terms(left, weight) + _terms(right, -weight)
        case ast.BinOp(left, ast.Mult(), right) if isinstance(_value(left), int | float):
            return _terms(right, weight * _value(left))
        case ast.BinOp(left, ast.Mult(), right) if isinstance(_value(right), int | float):
            return _terms(left, weight * _value(right))
        case ast.Name() | ast.Call():
            return [(weight, *call_of(node))]
    raise LossError(f"{ast.unparse(node)!r} is not a term")


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
