"""Reading, checking and naming of the hyper-parameters of a registered thing, the same for losses and scorers."""

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
    """A thing does not have a hyper-parameter or cannot take its value, or a text names none."""


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """Read `"bpo(generator=sba, lam=0.5)"` as ("bpo", {"generator": "sba", "lam": 0.5}).

    Raises:
        HyperParameterError: the text is neither a name nor a call.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise HyperParameterError(f"Cannot read {text!r} ({error.msg}): write name or name(key=value, ...).") from None
    return call_of(node)


def call_of(node: ast.expr) -> tuple[str, dict[str, Any]]:
    """Read a parsed expression as `read_call` reads a text."""
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
    """Return every hyper-parameter of a registered thing, the given ones checked against their type hints.

    Args:
        kind: kind of thing, in words, for messages ("loss").

    Raises:
        HyperParameterError: an unknown hyper-parameter, a value out of range, or no value where there is no default.
    """
    target = entry.load()
    known = hyper_parameters(target)
    for name in params:
        if name not in known:
            has = f"It has: {', '.join(known)}." if known else "It has none."
            raise HyperParameterError(f"The {kind} {entry.name!r} has no hyper-parameter {name!r}. {has}")
    values = {}
    for name, parameter in known.items():
        if name not in params and parameter.default is parameter.empty:
            raise HyperParameterError(f"The {kind} {entry.name!r} needs a value for {name!r}: {name}=...")
        values[name] = params.get(name, parameter.default)
    return {**values, **check_values(kind, entry, params)}


def check_values(kind: str, entry: Entry[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values of hyper-parameters as their type hints have them. Those of a name without a hint stay as they are.

    Raises:
        HyperParameterError: a value is of another type, or out of range.
    """
    hints = hints_of(entry.load())
    return {
        name: _typed(kind, entry.name, name, value, hints[name]) if name in hints else value
        for name, value in values.items()
    }


def full_name(entry: Entry[Any], params: Mapping[str, Any]) -> str:
    """Return the registered name, with the hyper-parameters that differ from their defaults in brackets."""
    given = [f"{key}={shown(value)}" for key, value in changed(entry, params).items()]
    return f"{entry.name}({', '.join(given)})" if given else entry.name


def changed(entry: Entry[Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the hyper-parameters that differ from their defaults."""
    defaults = {key: p.default for key, p in hyper_parameters(entry.load()).items()}
    return {key: value for key, value in params.items() if value != defaults[key]}


def shown(value: Any) -> str:
    """Write a value for a name: short, different for two values, and such that `read_call` reads it back."""
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
    """Return those of the parameters that a function takes."""
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
            with contextlib.suppress(ValidationError):  # `tasks=gsm8k,arc_easy` for a list
                return adapter.validate_python(read_list(value))
            with contextlib.suppress(ValidationError, ValueError, SyntaxError):  # `cap=None`, `clip=(0.01, None)`
                return adapter.validate_python(None if value == "null" else ast.literal_eval(value))
        wants_list = any(fault["type"] in ("tuple_type", "list_type") for fault in error.errors())
        if wants_list and isinstance(value, str | int | float):  # `temperatures=0.7`; otherwise an item is at fault
            return _typed(kind, owner, name, read_list(value) if isinstance(value, str) else [value], hint)
        reason = error.errors()[0]["msg"].removeprefix("Value error, ").rstrip(".")
        several = kind == "loss" and isinstance(value, list)
        remedy = f" Several values are a grid: {{{owner}: {{grid: {{{name}: {value!r}}}}}}}." if several else ""
        raise HyperParameterError(f"{name}={value!r} of the {kind} {owner!r}: {reason}.{remedy}") from None
