"""`get_loss` makes a loss of a name, a dict, a callable or a sum such as "dpo + 0.2*sft"."""

import ast
import functools
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple, cast

from plo.configured import HyperParameterError, call_of
from plo.losses.loss import Loss, LossSum
from plo.losses.register import LOSSES, LossError, LossFacts
from plo.registry import Entry, check_signature

Spec = str | Mapping[str, Any] | Callable[..., Any] | Loss


class TermSpec(NamedTuple):
    """A term of a sum as a user writes it: coefficient, name or function of a loss, and given parameters."""

    coefficient: float
    loss: str | Callable[..., Any]
    params: dict[str, Any]


def get_loss(spec: Spec, /, **params: Any) -> Loss:
    """Return a configured loss.

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
    terms = [(coefficient, Loss(entry, own)) for coefficient, entry, own in find_terms(spec, params)]
    return terms[0][1] if len(terms) == 1 and terms[0][0] == 1 else LossSum(terms)


def read_terms(spec: str | Mapping[str, Any] | Callable[..., Any], params: Mapping[str, Any]) -> list[TermSpec]:
    """Read the terms of a loss that is written in any of the ways that `get_loss` takes; nothing is looked up.

    Raises:
        LossError: the spec cannot be read, or `params` are given to a sum.
    """
    if isinstance(spec, str):
        return _read_text(spec, params)
    if isinstance(spec, Mapping):
        return _read_mapping(cast(Mapping[str, Any], spec), params)
    if isinstance(spec, functools.partial) and not spec.args:
        return read_terms(spec.func, {**spec.keywords, **params})
    if callable(cast(object, spec)):
        return [TermSpec(1.0, spec, dict(params))]
    raise LossError(f"Cannot make a loss of {spec!r}: give a name, a dict, or a function of Pairs.")


def find_loss(loss: str | Callable[..., Any]) -> Entry[LossFacts]:
    """Return the registry's entry of a loss by name, or one made for a function of `Pairs` that is not registered.

    Raises:
        RegistryError: no such loss, or a function whose hyper-parameters are not keyword-only.
    """
    if isinstance(loss, str):
        return LOSSES[loss]
    for entry in LOSSES:
        if entry.target is loss:
            return entry
    name = getattr(loss, "__name__", type(loss).__name__)
    check_signature("loss", name, loss, given="pairs")
    declared = {fact.name: getattr(loss, fact.name) for fact in fields(LossFacts) if hasattr(loss, fact.name)}
    facts = replace(LossFacts(needs=("ref_logps",)), **declared)
    return Entry(name, loss, facts, origin=f"{getattr(loss, '__module__', '?')}.{name}")


def find_terms(
    spec: str | Mapping[str, Any] | Callable[..., Any],
    params: Mapping[str, Any],
    find: Callable[[str | Callable[..., Any]], Entry[Any]] = find_loss,
) -> list[tuple[float, Entry[Any], dict[str, Any]]]:
    """Return (coefficient, registry entry, given hyper-parameters) of each term, presets replaced by what they stand for.

    Args:
        find: function that looks up what a term names.
    """
    found = ((term, find(term.loss)) for term in read_terms(spec, params))
    return [
        (term.coefficient * inner, entry, own)
        for term, entry in found
        for inner, own in expand_preset(entry, term.params)
    ]


def expand_preset(entry: Entry[Any], params: Mapping[str, Any]) -> list[tuple[float, dict[str, Any]]]:
    """Return ((coefficient, hyper-parameters), ...) of the terms that a preset stands for; without one, a single term.

    Hyper-parameters given with `preset` override those of the preset, in each term.
    """
    presets, own = getattr(entry.facts, "presets", {}), dict(params)
    preset = own.pop("preset", None) if presets else None
    if preset is None:
        return [(1.0, own)]
    if preset not in presets:
        raise LossError(f"preset={preset!r} of the loss {entry.name!r} must be one of {', '.join(presets)}.")
    return [(coefficient, {**settings, **own}) for coefficient, settings in presets[preset]]


def _read_mapping(spec: Mapping[str, Any], params: Mapping[str, Any]) -> list[TermSpec]:
    if "name" in spec:
        named = {key: value for key, value in spec.items() if key != "name"}
        return read_terms(spec["name"], {**named, **params})
    if len(spec) == 1:
        name, inner = next(iter(spec.items()))
        if inner is None or isinstance(inner, Mapping):
            return read_terms(name, {**cast(Mapping[str, Any], inner or {}), **params})
    raise LossError(
        f"Cannot make a loss of {dict(spec)!r}: write {{'name': 'dpo', 'beta': 0.2}} or {{'dpo': {{...}}}}."
    )


def _read_text(text: str, params: Mapping[str, Any]) -> list[TermSpec]:
    if text in LOSSES or text in LOSSES.absent:  # the look-up reports why one is absent; "ti-dpo" is not a difference
        return [TermSpec(1.0, text, dict(params))]
    try:
        terms = _read_sum(ast.parse(text.strip(), mode="eval").body, 1.0)
    except (SyntaxError, LossError, HyperParameterError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise LossError(
            f"Cannot read the loss {text!r} ({reason}). Write a name, name(key=value, ...), or a sum 'dpo + 0.2*sft'."
        ) from None
    if len(terms) == 1 and terms[0].coefficient == 1:
        return [terms[0]._replace(params={**terms[0].params, **params})]
    if params:
        raise LossError(
            f"Hyper-parameters of a sum belong to its terms: 'dpo(beta=0.2) + 0.2*sft', not {dict(params)}."
        )
    return terms


def _read_sum(node: ast.expr, coefficient: float) -> list[TermSpec]:
    match node:
        case ast.BinOp(left, ast.Add(), right):
            return _read_sum(left, coefficient) + _read_sum(right, coefficient)
        case ast.BinOp(left, ast.Sub(), right):
            return _read_sum(left, coefficient) + _read_sum(right, -coefficient)
        case ast.BinOp(left, ast.Mult(), right) if isinstance(factor := _value(left), int | float):
            return _read_sum(right, coefficient * factor)
        case ast.BinOp(left, ast.Mult(), right) if isinstance(factor := _value(right), int | float):
            return _read_sum(left, coefficient * factor)
        case ast.Name() | ast.Call():
            return [TermSpec(coefficient, *call_of(node))]
        case _:
            raise LossError(f"{ast.unparse(node)!r} is not a term")


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None
