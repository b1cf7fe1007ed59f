"""A registered thing with its hyper-parameters set: reading, checking and naming them, the same for losses and scorers."""

import ast
import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from plo.errors import PloError
from plo.registry import Entry, hyper_parameters
from plo.values import read_list


class HyperParameterError(PloError, ValueError):
    """A hyper-parameter that a thing does not have or cannot take, or a text that names none."""


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """`"bpo(generator=sba, lam=0.5)"` as ("bpo", {"generator": "sba", "lam": 0.5}); a bare name has none.

    Raises:
        HyperParameterError: the text is neither.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise HyperParameterError(f"Cannot read {text!r} ({error.msg}): write name or name(key=value, ...).") from None
    return call_of(node)


def call_of(node: ast.expr) -> tuple[str, dict[str, Any]]:
    """The same of a parsed expression."""
    match node:
        case ast.Name(name):
            return name, {}
        case ast.Call(ast.Name(name), [], keywords) if all(k.arg for k in keywords):
            names = [str(k.arg) for k in keywords]
            if twice := next((key for key in names if names.count(key) > 1), None):
                raise HyperParameterError(f"{ast.unparse(node)!r} sets {twice} twice")
            return name, dict(zip(names, map(_value, keywords), strict=True))
    raise HyperParameterError(f"{ast.unparse(node)!r} is not name or name(key=value, ...)")


def _value(keyword: ast.keyword) -> Any:
    match keyword.value:
        case ast.Name(name):  # generator=sba, without quotes
            return name
        case ast.Call():  # scorer=position_decay(gamma=0.9)
            return ast.unparse(keyword.value)
    try:
        return ast.literal_eval(keyword.value)
    except ValueError:
        raise HyperParameterError(f"{ast.unparse(keyword.value)!r} is not a value for {keyword.arg!r}") from None


def resolve_params(kind: str, entry: Entry[Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Every hyper-parameter of a registered thing, the given ones checked against their type hints.

    Args:
        kind: what it is, in words, for messages ("loss").

    Raises:
        HyperParameterError: one that it does not have, or a value out of its range, or none where it has no default.
    """
    target = entry.load()
    known = hyper_parameters(target)
    for name in params:
        if name not in known:
            has = f"It has: {', '.join(known)}." if known else "It has none."
            raise HyperParameterError(f"The {kind} {entry.name!r} has no hyper-parameter {name!r}. {has}")
    hints = hints_of(target)
    values = {}
    for name, parameter in known.items():
        if name not in params and parameter.default is parameter.empty:
            raise HyperParameterError(f"The {kind} {entry.name!r} needs a value for {name!r}: {name}=...")
        value = params.get(name, parameter.default)
        if name in params and name in hints:
            value = _typed(kind, entry.name, name, value, hints[name])
        values[name] = value
    return values


def full_name(entry: Entry[Any], params: Mapping[str, Any]) -> str:
    """The registered name, and in brackets the hyper-parameters that differ from their defaults."""
    given = [f"{key}={shown(value)}" for key, value in changed(entry, params).items()]
    return f"{entry.name}({', '.join(given)})" if given else entry.name


def changed(entry: Entry[Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that differ from their defaults."""
    defaults = {key: p.default for key, p in hyper_parameters(entry.load()).items()}
    return {key: value for key, value in params.items() if value != defaults[key]}


def shown(value: Any) -> str:
    """A value as a name shows it: short, never the same for two values, and such that `read_call` reads it back."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, str):
        try:
            read_call(value)
        except HyperParameterError:
            return repr(value)
        return value
    return getattr(value, "name", None) or getattr(value, "__name__", None) or str(value)


def accepted(function: Callable[..., Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the parameters that the function takes."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return dict(params)
    return {name: value for name, value in params.items() if name in parameters}


def hints_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the type hints of a registered thing's arguments."""
    parameters = inspect.signature(target, eval_str=True).parameters.values()
    return {p.name: p.annotation for p in parameters if p.annotation is not p.empty}


def _typed(kind: str, owner: str, name: str, value: Any, hint: Any) -> Any:
    adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        if isinstance(value, str):
            with contextlib.suppress(ValidationError):  # `tasks=gsm8k,arc_easy` where a list is wanted
                return adapter.validate_python(read_list(value))
            with contextlib.suppress(ValidationError, ValueError, SyntaxError):  # `cap=None`, `clip=(0.01, None)`
                return adapter.validate_python(None if value == "null" else ast.literal_eval(value))
        wants_list = any(fault["type"] in ("tuple_type", "list_type") for fault in error.errors())
        if wants_list and isinstance(value, str | int | float):  # `temperatures=0.7`; else the fault is an item's
            return _typed(kind, owner, name, read_list(value) if isinstance(value, str) else [value], hint)
        reason = error.errors()[0]["msg"].removeprefix("Value error, ").rstrip(".")
        raise HyperParameterError(f"{name}={value!r} of the {kind} {owner!r}: {reason}.") from None
