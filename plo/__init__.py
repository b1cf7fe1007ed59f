"""plo: the place where preference losses are compared."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plo.losses import Loss, get_loss, register_generator, register_loss
    from plo.pairs import Pairs, Side
    from plo.registry import Registry

__version__ = "0.1.0"
__all__ = ["Loss", "Pairs", "Registry", "Side", "get_loss", "register_generator", "register_loss"]


def __getattr__(name: str) -> Any:
    """What is named above, loaded when it is asked for: torch takes a second, which `plo --help` need not wait."""
    if name in ("losses", "pairs", "registry"):
        return import_module(f"plo.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'plo' has no attribute {name!r}")
    home = {"Pairs": "pairs", "Side": "pairs", "Registry": "registry"}.get(name, "losses")
    return getattr(import_module(f"plo.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
