"""`Registry` keeps the entries of one kind of plug-in: losses, statistics, generators, data sources, evaluations, ..."""

import difflib
import fnmatch
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import keyword
import linecache
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, overload

from plo.errors import PloError

Facts = TypeVar("Facts")
Target = TypeVar("Target")


class RegistryError(PloError, ValueError):
    """A name is taken, or nobody registered it. The message names the thing and the remedy."""


@dataclass(frozen=True)
class NoFacts:
    """Facts of a registry whose entries declare none."""


@dataclass(frozen=True)
class Entry(Generic[Facts]):
    """A registered thing: its name, what was registered, the facts declared with it, and where it was defined."""

    name: str
    target: Any
    facts: Facts
    origin: str

    def load(self) -> Any:
        """Return the registered object; a lazy target `"module:attribute"` is imported on first use."""
        if isinstance(self.target, str):
            module, _, attribute = self.target.partition(":")
            return getattr(importlib.import_module(module), attribute)
        return self.target


class Registry(Generic[Facts]):
    """Names of one kind of plug-in.

    Args:
        kind: kind of plug-in, in words, for messages ("loss").
        group: entry-point group that other packages may register in ("plo.losses"); loaded at the first look-up.
        facts: class of the facts that are declared with an entry, a frozen dataclass whose fields have defaults.

    Attributes:
        absent: names that users look for and nobody registered, each with the reason, which `[name]` reports.

    Example:
        >>> @dataclass(frozen=True)
        ... class Colour:
        ...     warm: bool = False
        >>> colours = Registry("colour", facts=Colour)
        >>> @colours.register("red", facts=Colour(warm=True))
        ... def red(): return "#f00"
        >>> colours["red"].load()(), colours["red"].facts.warm, colours.names("r*")
        ('#f00', True, ['red'])
    """

    def __init__(self, kind: str, group: str | None = None, *, facts: Callable[[], Facts] = NoFacts):  # type: ignore[assignment]
        self.kind = kind
        self.group = group
        self._no_facts = facts
        self._entries: dict[str, Entry[Facts]] = {}
        self._aliases: dict[str, str] = {}
        self.absent: dict[str, str] = {}
        self._entry_points_loaded = group is None

    @overload
    def register(
        self, name: str, *, facts: Facts | None = None, replace: bool = False
    ) -> Callable[[Target], Target]: ...
    @overload
    def register(
        self, name: str, target: object, *, facts: Facts | None = None, replace: bool = False
    ) -> Entry[Facts]: ...
    def register(
        self, name: str, target: Any = None, *, facts: Facts | None = None, replace: bool = False
    ) -> Entry[Facts] | Callable[[Any], Any]:
        """Register `target`, an object or a text `"module:attribute"` that is imported on first use.

        Returns:
            The entry; without `target`, a decorator that registers what it decorates.

        Raises:
            RegistryError: the name is taken (both origins are named), unless `replace=True`; or it cannot be written in
                `name(key=value)`.
        """
        self.check_name(name)
        if target is None:
            return lambda target: self.register(name, target, facts=facts, replace=replace) and target
        entry = Entry(name, target, self._no_facts() if facts is None else facts, _origin(target))
        known = self._entries.get(self._aliases.get(name, name))
        if known is not None and not replace:
            alias = f" (as an alias of {known.name!r})" if name in self._aliases else ""
            raise RegistryError(
                f"{self.kind} {name!r} is registered twice: {known.origin}{alias} and {entry.origin}. "
                f"Rename one of them, or pass replace=True to the second."
            )
        self._aliases.pop(name, None)
        self._entries[name] = entry
        return entry

    def names(self, pattern: str = "*") -> list[str]:
        """Return the names that match a pattern with wildcards, in alphabetical order.

        An entry also matches by its aliases: `names("sigmoid")` is `["dpo"]`.
        """
        return [
            entry.name
            for entry in self
            if any(fnmatch.fnmatchcase(name, pattern) for name in (entry.name, *self.aliases(entry.name)))
        ]

    def alias(self, name: str, of: str) -> None:
        """Make `name` another name of the entry `of`, which a loop over the registry meets once.

        Raises:
            RegistryError: `name` is taken, or nothing of the name `of` is registered.
        """
        self.check_name(name)
        if of not in self._entries:
            raise RegistryError(f"{name!r} cannot be an alias: there is no {self.kind} {of!r}. Register that first.")
        if name in self._entries or name in self._aliases:
            known = self._entries[self._aliases.get(name, name)]
            raise RegistryError(
                f"{self.kind} {name!r} is taken by {known.name!r} ({known.origin}): no alias of {of!r}."
            )
        self._aliases[name] = of

    def check_name(self, name: object) -> None:
        """Refuse a name that could not be written in `name(key=value)`.

        Raises:
            RegistryError: with a name that could.
        """
        if callable(name):
            raise RegistryError(
                f"The {self.kind} at {_origin(name)} is registered without a name: write the name in brackets after the "
                f'decorator, ("{getattr(name, "__name__", "mine")}").'
            )
        if not (isinstance(name, str) and name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
            better = re.sub(r"\W+", "_", str(name), flags=re.ASCII).strip("_")
            better = better if better.isidentifier() and not keyword.iskeyword(better) else f"my_{better}".strip("_")
            raise RegistryError(
                f"{name!r} cannot be the name of a {self.kind}, as name(key=value) would not be read back: use letters, "
                f"digits and _, such as {better!r}."
            )

    def aliases(self, of: str) -> list[str]:
        """Return the other names of an entry, in alphabetical order."""
        return sorted(name for name, target in self._aliases.items() if target == of)

    def __getitem__(self, name: str) -> Entry[Facts]:
        self._load_entry_points()
        name = self._aliases.get(name, name)
        if name not in self._entries:
            raise self.unknown(name)
        return self._entries[name]

    def unknown(self, name: str, others: Iterable[str] = ()) -> RegistryError:
        """Return the error for a name that nobody registered, which suggests near names and lists all.

        Args:
            others: names of another registry that the user may have meant as well.
        """
        known = [*self._entries, *others]
        near = difflib.get_close_matches(name, [*known, *self._aliases], n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        hint = f" {self.absent[name]}" if name in self.absent else hint
        return RegistryError(
            f"There is no {self.kind} {name!r}.{hint} Registered: {', '.join(sorted(known))}. "
            f"One of your own in a file is loaded with --plugin FILE.py."
        )

    def __contains__(self, name: str) -> bool:
        self._load_entry_points()
        return name in self._entries or name in self._aliases

    def __iter__(self) -> Iterator[Entry[Facts]]:
        """Iterate over the entries in alphabetical order of their names; an alias is no entry of its own."""
        self._load_entry_points()
        return iter([self._entries[name] for name in sorted(self._entries)])

    def _load_entry_points(self) -> None:
        if self._entry_points_loaded or self.group is None:
            return
        self._entry_points_loaded = True  # before loading: a plug-in may look names up while it registers its own
        for point in importlib.metadata.entry_points(group=self.group):
            try:
                point.load()
            except Exception as error:
                raise RegistryError(
                    f"The plug-in {point.name!r} ({point.value}) of entry-point group {self.group!r} failed to load: "
                    f"{type(error).__name__}: {error}. Repair or uninstall the package that declares it."
                ) from error


PLUGINS = "PLO_PLUGINS"  # environment variable with the files that this process loaded, for child processes
_PREFIX = "plo_plugin_"


def load_plugin(path: str | Path) -> ModuleType:
    """Run a Python file for the registrations in it (`--plugin my_loss.py`), once per process.

    The module's name follows from the path, so that objects of the file can be pickled. A child process that has imported
    plo finds the file by itself; any other one calls `load_plugin` before it unpickles.

    Returns:
        The file as a module.

    Raises:
        RegistryError: the file does not exist, or fails when run.
    """
    path = Path(path).expanduser().resolve()
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise RegistryError(f"The plug-in file {path} does not exist.")
    known = os.environ.get(PLUGINS, "").split("\n")
    os.environ[PLUGINS] = "\n".join(dict.fromkeys([*filter(None, known), str(path)]))
    linecache.checkcache(str(path))
    linecache.getlines(str(path))  # keeps the text that is run for `plo.identity`, should the file be edited
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise RegistryError(f"The plug-in {path} failed: {type(error).__name__}: {error}") from error


def _module_name(path: Path) -> str:
    digest = hashlib.sha256(str(path).encode(errors="surrogateescape")).hexdigest()
    return f"{_PREFIX}{re.sub(r'[^a-zA-Z0-9]', '_', path.stem)}_{digest[:12]}"


class _PluginFinder(importlib.abc.MetaPathFinder):
    """Finder of the modules of plug-ins, in this process and in child processes."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith(_PREFIX):
            return None
        files = map(Path, filter(None, os.environ.get(PLUGINS, "").split("\n")))
        found = next((file for file in files if _module_name(file) == fullname), None)
        # The loader is explicit because the name of a plug-in's file need not end in .py.
        loader = importlib.machinery.SourceFileLoader(fullname, str(found)) if found else None
        return importlib.util.spec_from_file_location(fullname, found, loader=loader) if found else None


sys.meta_path.append(_PluginFinder())


def hyper_parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of a callable or class, which by convention are its hyper-parameters."""
    parameters = inspect.signature(target).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_signature(kind: str, name: str, target: Callable[..., Any], *, given: str) -> None:
    """Refuse hyper-parameters that are not keyword-only, which nobody could set.

    Args:
        kind: kind of plug-in, in words ("loss").
        given: name of the one positional argument ("pairs").

    Raises:
        RegistryError: with the signature to write.
    """
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    others = [p.name for p in positional[1:]]
    if others:
        raise RegistryError(
            f"The {kind} {name!r} ({_origin(target)}) takes {', '.join(others)} by position, where nobody can set it. "
            f"Hyper-parameters are keyword-only: write a * before them, ({given}, *, {others[0]}=...)."
        )
    if not positional and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
        raise RegistryError(f"The {kind} {name!r} ({_origin(target)}) takes no argument: it is called with {given}.")


def _origin(target: Any) -> str:
    if isinstance(target, str):
        return target
    try:
        return f"{inspect.getsourcefile(target)}:{inspect.getsourcelines(target)[1]}"
    except (TypeError, OSError):
        return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', repr(target))}"
