"""plo: the place where preference losses are compared."""

from plo.losses import Loss, get_loss, register_generator, register_loss
from plo.pairs import Pairs, Side
from plo.registry import Registry

__version__ = "0.1.0"
__all__ = ["Loss", "Pairs", "Registry", "Side", "get_loss", "register_generator", "register_loss"]
