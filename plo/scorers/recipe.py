"""A recipe is a loss with the token scorer that a paper has for it, registered under the paper's name."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plo.configured import accepted
from plo.losses import LOSSES, Loss
from plo.registry import Registry
from plo.scorers.scorer import SCORERS, Scorer


@dataclass(frozen=True)
class RecipeFacts:
    """Facts that `register_recipe` declares of a recipe."""

    paper: str = ""


RECIPES = Registry("recipe", group="plo.recipes", facts=RecipeFacts)


@dataclass(frozen=True, eq=False)
class Recipe:
    """A loss with the scorer that makes its weights. It has the hyper-parameters of both; one that both have goes to both.

    Attributes:
        loss, scorer: registered names, looked up when the recipe is used.
        defaults: defaults of hyper-parameters that differ from those of loss and scorer.
    """

    loss: str
    scorer: str
    defaults: Mapping[str, Any]

    @property
    def __signature__(self) -> inspect.Signature:
        scorer, loss = (
            inspect.signature(target.load(), eval_str=True).parameters.values()
            for target in (SCORERS[self.scorer], LOSSES[self.loss])
        )
        own = {p.name: p for p in (*scorer, *loss) if p.kind is p.KEYWORD_ONLY}
        return inspect.Signature([p.replace(default=self.defaults.get(p.name, p.default)) for p in own.values()])

    def __call__(self, **params: Any) -> tuple[Loss, Scorer]:
        """Return the loss and the scorer, each with its part of the hyper-parameters."""
        loss, scorer = LOSSES[self.loss], SCORERS[self.scorer]
        return Loss(loss, accepted(loss.load(), params)), Scorer(scorer, accepted(scorer.load(), params))

    def __repr__(self) -> str:
        return f"{self.loss} + {self.scorer}"


def register_recipe(name: str, *, loss: str, scorer: str, paper: str, replace: bool = False, **defaults: Any) -> None:
    """Register a loss with its token scorer as a method of its own.

    Args:
        name: the name that experiments use.
        loss, scorer: their registered names.
        paper: arXiv number or citation.
        defaults: hyper-parameters of loss or scorer whose defaults differ.

    Raises:
        RegistryError: the name is taken.

    Example:
        >>> register_recipe("slow_decay", loss="twdpo", scorer="position_decay", paper="mine", gamma=0.999)
        >>> get_variant("slow_decay").scorer.name
        'position_decay(gamma=0.999)'
    """
    RECIPES.register(name, Recipe(loss, scorer, defaults), facts=RecipeFacts(paper), replace=replace)


register_recipe("d2po", loss="twdpo", scorer="position_decay", paper="2502.14340")
register_recipe("sampo", loss="twdpo", scorer="subsample", paper="2406.10957")
# The released default, token_level false, is this; its other variant adds a weighted KL(policy || reference).
register_recipe("tis_dpo", loss="twdpo", scorer="tis_rank", paper="2410.04350")
register_recipe("tgdpo", loss="twdpo", scorer="tgdpo", paper="2506.14574")
register_recipe("attention_po", loss="twdpo", scorer="attention_judge", paper="2605.21883", beta=0.005)
BUILT_IN = ("attention_po", "d2po", "sampo", "tgdpo", "tis_dpo")
