"""Token scorers, which compute per-token weights once before training, and variants, which join them to losses."""

from plo.scorers import attention, contrastive, end_attention, oracle, pocket, simple  # noqa: F401  (registers them)
from plo.scorers.recipe import RECIPES, register_recipe
from plo.scorers.scorer import SCORERS, Material, Scorer, ScorerError, Scores, Stage, get_scorer, register_scorer
from plo.scorers.variant import Variant, get_loss, get_variant

__all__ = [
    "RECIPES",
    "SCORERS",
    "Material",
    "Scorer",
    "ScorerError",
    "Scores",
    "Stage",
    "Variant",
    "get_loss",
    "get_scorer",
    "get_variant",
    "register_recipe",
    "register_scorer",
]
