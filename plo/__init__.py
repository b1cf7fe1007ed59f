"""plo: the place where preference losses are compared."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plo.losses import Loss as Loss
    from plo.losses import register_generator as register_generator
    from plo.losses import register_loss as register_loss
    from plo.pairs import Pairs as Pairs
    from plo.pairs import Side as Side
    from plo.registry import Registry as Registry
    from plo.scorers import Variant as Variant
    from plo.scorers import get_loss as get_loss
    from plo.scorers import get_variant as get_variant

__version__ = "0.1.0"
# Module of each public name. Names are imported on first use: torch takes a second, which `plo --help` need not wait.
_HOMES = {
    "Loss": "losses",
    "Pairs": "pairs",
    "Registry": "registry",
    "Side": "pairs",
    "Variant": "scorers",
    "get_loss": "scorers",
    "get_variant": "scorers",
    "register_generator": "losses",
    "register_loss": "losses",
}
__all__ = list(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _HOMES.values():
        return import_module(f"plo.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'plo' has no attribute {name!r}")
    return getattr(import_module(f"plo.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
