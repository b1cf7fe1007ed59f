"""Hashes that identify settings, and code together with the code that it calls. Keys of caches and cells consist of them.

Docstrings, comments, annotations, error messages, line numbers and the place of a file change no hash, and neither do
settings that have their default values. A change of a helper that the code calls does.
"""

import enum
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import re
import sys
import sysconfig
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from pydantic import BaseModel

from plo import syntax
from plo.paths import content_digest
from plo.registry import Entry, Registry

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
# Modules of plo that connect and check things and compute no numbers: they are not part of a loss's identity.
_PLUMBING = {
    "plo.config", "plo.configured", "plo.errors", "plo.registry", "plo.losses.get", "plo.losses.loss",
    "plo.losses.register", "plo.scorers.recipe", "plo.scorers.scorer", "plo.scorers.variant",
}  # fmt: skip
_OTHERS = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def sha256(content: Any) -> str:
    """Return the sha256 of a value that JSON can represent; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def settings_identity(section: BaseModel, exclude: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields that differ from their first defaults, so that fields added later change no key.

    A changed default would give two different settings one key. Its first value therefore goes into `first_defaults` of
    the class.
    """
    first = getattr(type(section), "first_defaults", {})
    values = section.model_dump(mode="json", exclude=set(exclude))
    defaults = type(section).model_construct().model_dump(mode="json", exclude=set(exclude), warnings=False)
    return {name: value for name, value in values.items() if value != first.get(name, defaults.get(name))}


def code_identity(*targets: Any, through: Sequence[type] = ()) -> str:
    """Return the sha256 of what functions, classes and objects compute: of their syntax trees and of the code they refer to.

    References are followed through globals of a module, closures, partials and imports inside functions, into plo,
    packages with plug-ins for plo, and files outside installed packages. Other libraries count by name, as their versions
    belong to the environment. Globals that are not code count by value. Look-ups by a text (`getattr`, a registry) are not
    followed.

    Args:
        through: classes whose instances the code receives: a method counts if the code mentions its name.
    """
    walk = _Walk(through)
    roots = [walk.value(target) for target in targets]
    return sha256([roots, walk.parts])


class _Walk:
    """Describes objects as JSON. Functions and classes are described once each, in `parts`, and referred to by number."""

    def __init__(self, through: Sequence[type]):
        self.packages, self.through = _packages(), through
        self.parts: list[Any] = []
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # keeps objects alive, so that no two of them have one id

    def value(self, thing: Any) -> Any:
        if isinstance(thing, _PLAIN):
            return [type(thing).__name__, repr(thing)]
        if isinstance(thing, Entry):
            return ["entry", thing.name, self.value(thing.load())]
        if isinstance(thing, Registry):
            return ["registry", thing.kind]
        if isinstance(thing, ModuleType):
            return ["module"]
        if isinstance(thing, staticmethod | classmethod | MethodType):
            own = getattr(thing, "__self__", None)
            return ["method", self.value(thing.__func__), None if own is None else self.value(own)]
        if isinstance(thing, property):
            return ["property", *(self.value(part) for part in (thing.fget, thing.fset))]
        if isinstance(thing, functools.partial):
            return ["partial", self.value(thing.func), self.value(thing.args), self.value(thing.keywords)]
        if isinstance(thing, FunctionType):
            return self._once(thing, self._function)
        if isinstance(thing, type):
            return self._once(thing, self._class)
        if isinstance(thing, CodeType):
            return self._code(thing)
        if (wrapped := inspect.getattr_static(thing, "__wrapped__", None)) is not None:  # functools.cache
            return ["wrapped", type(thing).__qualname__, self.value(wrapped)]
        return self._data(thing)

    def _data(self, thing: Any) -> Any:
        if isinstance(thing, enum.Enum):
            return ["enum", type(thing).__qualname__, thing.name]
        if isinstance(thing, Mapping):
            items = [[self.value(key), self.value(value)] for key, value in thing.items()]
            return [type(thing).__name__, sorted(items, key=json.dumps)]
        if isinstance(thing, set | frozenset):
            return [type(thing).__name__, sorted(map(self.value, thing), key=json.dumps)]
        if isinstance(thing, list | tuple):
            return [type(thing).__name__, [self.value(value) for value in thing]]
        if isinstance(thing, Path):
            return ["path", content_digest(thing) if thing.is_file() else thing.name]
        if isinstance(thing, re.Pattern):
            return ["pattern", self.value(thing.pattern), thing.flags]
        if hasattr(type(thing), "detach") and hasattr(type(thing), "cpu"):  # a tensor; a file has `detach` too
            thing = thing.detach().cpu().double().numpy()
        if hasattr(type(thing), "tobytes") and hasattr(type(thing), "shape"):
            return ["array", str(thing.dtype), list(thing.shape), hashlib.sha256(thing.tobytes()).hexdigest()]
        if self._is_ours(type(thing)):
            return self._once(thing, self._object)
        return ["other", *self._name(thing)]

    def _once(self, thing: Any, describe: Any) -> Any:
        if not self._is_ours(thing if isinstance(thing, FunctionType | type) else type(thing)):
            wrapped = vars(thing).get("__wrapped__")  # code of ours in the decorator of a library
            return ["other", *self._name(thing)] + ([self.value(wrapped)] if wrapped is not None else [])
        number = self._numbers.get(id(thing))
        if number is None:
            number = self._numbers[id(thing)] = len(self.parts)
            self._alive.append(thing)
            self.parts.append(None)
            self.parts[number] = describe(thing)
        return ["part", number]

    def _function(self, function: FunctionType) -> Any:
        node = syntax.node_of_code(function.__code__)
        closure = _closure(function)
        if node is None:
            names = {
                name: (*_resolved(name, closure, function.__globals__),) for name in _global_names(function.__code__)
            }
            inner = [[name, self.value(found[0])] for name, found in sorted(names.items()) if found]
            return [self._code(function.__code__), inner]
        text = syntax.plain_text(node)
        return [text, self._references(text, closure, function.__globals__, function.__code__.co_filename)]

    def _class(self, cls: type) -> Any:
        if issubclass(cls, BaseException):
            return ["exception", cls.__name__]
        module = vars(sys.modules.get(cls.__module__, object))
        node = syntax.node_of_class(cls, module.get("__file__"))
        functions = {name: value for name, value in sorted(vars(cls).items()) if isinstance(value, FunctionType)}
        bases = [self.value(base) for base in cls.__bases__ if base is not object]
        if node is None:
            return [cls.__name__, bases, [[name, self.value(value)] for name, value in functions.items()]]
        text = syntax.plain_text(node)
        written = [
            f for f in functions.values() if f.__code__.co_filename == module["__file__"]
        ]  # without those that a dataclass generates
        closure = {name: cell for function in written for name, cell in _closure(function).items()}
        return [text, bases, self._references(text, closure, dict(module), module["__file__"])]

    def _object(self, thing: Any) -> Any:
        state = getattr(thing, "__dict__", {})
        state = {name: value for name, value in state.items() if not name.startswith("__")}
        return ["object", self.value(type(thing)), self.value(state)]

    def _code(self, code: CodeType) -> Any:
        constants = [self.value(constant) for constant in code.co_consts]
        return ["code", code.co_code.hex(), constants, list(code.co_names)]

    def _references(self, text: str, closure: Mapping[str, Any], module: Mapping[str, Any], file: str) -> list[Any]:
        """Describe what the names in a definition refer to, as far as it is code of ours or a constant."""
        found: dict[str, Any] = {}
        names, chains, attributes = syntax.references(text)
        scope = {**closure, **self._imported(text, module)}
        for name in {*names, *scope}:
            for value in _resolved(name, scope, module):
                if not isinstance(value, ModuleType):
                    inside = name in scope
                    found[name] = self._named(name, value, file if inside else module.get("__file__"), inside)
                    continue
                for chain in (chain for chain in chains if chain[0] == name):
                    inner = _followed(value, chain[1:])
                    if inner is not None and self._is_ours(inner[0]):
                        found[".".join(chain)] = lambda inner=inner: self.value(inner[1])
        for cls in self.through:
            for name in attributes:
                member = vars(cls).get(name)
                if isinstance(member, FunctionType | property | functools.cached_property):
                    function = getattr(member, "func", member)
                    found[f"{cls.__name__}.{name}"] = lambda function=function: self.value(function)
        return [[name, found[name]()] for name in sorted(found)]  # sorted, as parts are numbered in the order of visits

    def _named(self, name: str, value: Any, file: str | None, inside: bool) -> Any:
        def describe() -> Any:
            is_code = callable(value)
            if not is_code and syntax.is_state(name, file, inside=inside):
                return ["state"] if inside else ["state", syntax.fillings(name, file)]
            said = self.value(value)
            return [said, syntax.assignments(name, file)] if said[0] == "other" and not is_code and not inside else said

        return describe

    def _imported(self, text: str, module: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a definition imports inside its body from code of ours."""
        found = {}
        for name, source, attribute in syntax.imports(text):
            if not source.startswith(".") and source.split(".")[0] not in self.packages:
                continue
            try:
                imported = importlib.import_module(source, module.get("__package__"))
                found[name] = imported if attribute is None else getattr(imported, attribute)
            except (ImportError, AttributeError):
                continue  # a submodule, or a package that is not installed
        return found

    def _is_ours(self, thing: Any) -> bool:
        """Return whether code belongs to plo, to a package with plug-ins, or to a file that no package manager installed."""
        if isinstance(thing, FunctionType):  # `__module__` would be what functools.wraps copied
            name, file = thing.__globals__.get("__name__", ""), thing.__code__.co_filename
        else:
            name = thing.__name__ if isinstance(thing, ModuleType) else thing.__module__
            module = thing if isinstance(thing, ModuleType) else sys.modules.get(name)
            file = getattr(module, "__file__", None) or ("" if name == "__main__" else None)
        if name.split(".")[0] in self.packages:
            return name not in _PLUMBING
        return file is not None and not file.startswith((*_OTHERS, "<frozen")) and "-packages" not in file

    @staticmethod
    def _name(thing: Any) -> tuple[str, str]:
        if isinstance(thing, FunctionType):  # `__qualname__` would be what functools.wraps copied
            return thing.__globals__.get("__name__", ""), thing.__code__.co_qualname
        named = thing if hasattr(thing, "__qualname__") else type(thing)
        module = getattr(named, "__module__", None) or ""
        return "plo" if module.startswith("plo.") else module, named.__qualname__  # the same wherever in plo it is


@functools.cache
def _packages() -> frozenset[str]:
    """Return plo and the installed packages that have plug-ins for it."""
    points = importlib.metadata.entry_points()
    ours = (point for group in points.groups if group.startswith("plo.") for point in points.select(group=group))
    return frozenset({"plo", *(point.module.split(".")[0] for point in ours)})


def _closure(function: FunctionType) -> dict[str, Any]:
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found = {}
    for name, cell in cells:
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    return found


def _resolved(name: str, scope: Mapping[str, Any], module: Mapping[str, Any]) -> list[Any]:
    """Return what a name refers to, as a list of one; empty for builtins, dunder names and unknown names."""
    if name.startswith("__"):
        return []
    return [known[name] for known in (scope, module) if name in known][:1]


def _followed(module: ModuleType, chain: Sequence[str]) -> tuple[ModuleType, Any] | None:
    """Return the first attribute of a chain that is not a module, preceded by the module that has it."""
    value: Any = module
    for name in chain:
        module, value = value, inspect.getattr_static(value, name, None)
        if not isinstance(value, ModuleType):
            return None if value is None else (module, value)
    return None


def _global_names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return {*code.co_names, *code.co_freevars}.union(*map(_global_names, inner))
