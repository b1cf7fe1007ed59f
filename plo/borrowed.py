"""Private and undocumented names of other libraries, checked when plo is imported.

A package that uses such names lists them in a module `borrowed`, the only one to use them. If a new version of a library
renames one, importing that module fails with a sentence.
"""

import importlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pkgutil import resolve_name
from types import CodeType, FunctionType
from typing import Any

from plo.errors import PloError


class BorrowedError(PloError, ImportError):
    """A library lacks a private name that plo uses. The message names library, version, name and remedy."""


@dataclass(frozen=True)
class Library:
    """A library some of whose private or undocumented names are used.

    Args:
        name: of its distribution, as pip installs it.
        tried: the versions that plo's tests passed with, oldest first.

    Attributes:
        required: (owner, name) pairs that `require` checked.

    Example:
        >>> python = Library("pip", tried=("25.0",))
        >>> python.require("json:JSONEncoder", "default(o)").__name__
        'JSONEncoder'
    """

    name: str
    tried: tuple[str, ...]
    required: list[tuple[str, str]] = field(default_factory=list, compare=False, repr=False)

    def require(self, owner: str, *names: str) -> Any:
        """Return the module or class `owner`, having checked that it has each of `names`.

        Args:
            owner: "package.module", or "package.module:Class".
            names: an attribute each; "method(a, b)", where the method must accept the parameters `a` and `b`; or
                ".attribute", one that instances have, which some method of the class must read or write.

        Raises:
            BorrowedError: a name or a parameter is gone.
        """
        self.required.extend((owner, name) for name in names)
        found = self._owner(owner)
        for name in names:
            self._check(owner, found, name)
        return found

    def require_text(self, owner: str, *texts: str) -> None:
        """Check that the source of `owner` has each of `texts`: a message that is read, or a name that only instances have.

        Args:
            owner: "package.module", or "package.module:Class.method".

        Raises:
            BorrowedError: a text is gone.
        """
        source = inspect.getsource(self._owner(owner))
        for text in texts:
            if text not in source:
                raise self.error(f"{text!r} is gone from {_dotted(owner)}")

    def get(self, instance: Any, name: str) -> Any:
        """Return an attribute that only instances have, such as one set in `__init__`.

        Raises:
            BorrowedError: the instance lacks it.
        """
        try:
            return getattr(instance, name)
        except AttributeError:
            raise self.error(f"{type(instance).__module__}.{type(instance).__qualname__}.{name} is gone") from None

    def error(self, what: str) -> BorrowedError:
        """Return the error for something that changed in the library; `what` is a clause, such as "torch.f is gone"."""
        return BorrowedError(
            f"{self.name} {self._installed()} cannot be used: {what}, which plo relies on (tried with {self.name} "
            f"{', '.join(self.tried)}). Install one that was tried: pip install '{self.name}=={self.tried[-1]}'."
        )

    def _owner(self, owner: str) -> Any:
        try:
            return resolve_name(owner) if ":" in owner else importlib.import_module(owner)
        except (ImportError, AttributeError) as error:
            raise self.error(f"{_dotted(owner)} is gone") from error

    def _check(self, owner: str, found: Any, name: str) -> None:
        instances, (name, *parameters) = name.startswith("."), re.findall(r"\w+", name)
        if instances:
            if not any(name in _names_in(method.__code__) for method in _methods(found)):
                raise self.error(f"no method of {_dotted(owner)} knows the attribute {name} any more")
            return
        try:
            attribute = inspect.getattr_static(found, name) if inspect.isclass(found) else getattr(found, name)
        except AttributeError:
            raise self.error(f"{_dotted(owner)}.{name} is gone") from None
        if parameters:
            accepted = inspect.signature(getattr(attribute, "__func__", attribute)).parameters
            any_name = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
            for parameter in parameters:
                if parameter not in accepted and not any_name:
                    raise self.error(f"{_dotted(owner)}.{name} no longer accepts {parameter!r}")

    def _installed(self) -> str:
        try:
            return version(self.name)
        except PackageNotFoundError:
            return "(not installed)"


TORCH = Library("torch", tried=("2.13.0",))


def _dotted(owner: str) -> str:
    return owner.replace(":", ".")


def _methods(kind: type) -> Iterator[FunctionType]:
    for base in kind.__mro__:
        for attribute in vars(base).values():
            function = inspect.unwrap(getattr(attribute, "fget", None) or getattr(attribute, "__func__", attribute))
            if isinstance(function, FunctionType):
                yield function


def _names_in(code: CodeType) -> set[str]:
    """Return the names that code, functions inside included, reads or writes; strings too, which `getattr` takes."""
    inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    strings = {constant for constant in code.co_consts if isinstance(constant, str)}
    return strings.union(code.co_names, *map(_names_in, inner))
