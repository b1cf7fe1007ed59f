"""What is checked of the losses before anything is trained: needs, gradients, and columns of the data."""

import difflib
from collections.abc import Iterable, Sequence

from plo.backbone.token_statistics import STATISTICS
from plo.config import ConfigError, Experiment
from plo.data import Pair
from plo.losses import Loss, get_loss
from plo.scorers import Scorer, Variant, get_variant
from plo.verify.trainable import check_trainable

OTHER_NEEDS = ("ref_logps", "hidden", "weights")  # what the backbone computes without a registered statistic
COLUMN = "column:"


def configured_variants(experiment: Experiment) -> list[Variant]:
    """Return the variants of an experiment, `sft` (on chosen) first: every table has it."""
    variants = [get_variant(spec) for spec in experiment.losses]
    if all(variant.name != "sft" for variant in variants):
        variants.insert(0, get_variant("sft"))
    names = [variant.name for variant in variants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"losses: {', '.join(sorted(twice))} stands there twice; each variant once.")
    return variants


def losses_with_stages(variants: Sequence[Variant]) -> list[Loss]:
    """Return the losses of variants and of the stages that their token scorers train first, each name once."""
    scorers = [variant.scorer for variant in variants if variant.scorer is not None]
    losses = [variant.loss for variant in variants] + [loss for scorer in scorers for loss in losses_of_stages(scorer)]
    return list({loss.name: loss for loss in losses}.values())


def losses_of_stages(scorer: Scorer) -> list[Loss]:
    """What a token scorer's models are trained by."""
    return [get_loss(stage.loss) for stage in scorer.stages.values()]


def check_losses(losses: Iterable[Loss]) -> None:
    """Refuse a loss that needs what nobody computes, or that has no gradient.

    Raises:
        ConfigError, LossError: with the remedy.
    """
    for loss in losses:
        for _, term in loss.terms:
            for need in term.needs:
                _check_need(term, need)
            check_trainable(term)


def check_columns(losses: Iterable[Loss], pairs: Sequence[Pair]) -> None:
    """Refuse a loss that needs a numeric column which a training pair lacks.

    Raises:
        ConfigError: how many rows lack it, the first of them, and the columns there are.
    """
    for loss in losses:
        for name in (need.removeprefix(COLUMN) for need in loss.needs if need.startswith(COLUMN)):
            lacking = [pair for pair in pairs if name not in pair.columns]
            if not lacking:
                continue
            known = sorted({column for pair in pairs for column in pair.columns})
            if len(lacking) == len(pairs):
                near = difflib.get_close_matches(name, known, n=1)
                hint = f" Did you mean 'column:{near[0]}'?" if near else ""
                raise ConfigError(
                    f"The loss {loss.name!r} needs the numeric column {name!r}, which no row of the data has; there are: "
                    f"{', '.join(known) or 'none'}.{hint} Add the column to the data, or name another one in the loss's needs."
                )
            raise ConfigError(
                f"The loss {loss.name!r} needs the numeric column {name!r}, which {len(lacking)} of {len(pairs)} training "
                f"rows lack (no value, or none that is a finite number), the first at {lacking[0].where}. Fill it in, or "
                f"leave these rows out."
            )


def _check_need(loss: Loss, need: str) -> None:
    if need in STATISTICS or need in OTHER_NEEDS or (need.startswith(COLUMN) and need != COLUMN):
        return
    known = [*OTHER_NEEDS, *(entry.name for entry in STATISTICS if entry.name != "logps")]
    near = difflib.get_close_matches(need, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(sorted(known))}."
    raise ConfigError(
        f"The loss {loss.name!r} ({loss.origin}) needs {need!r}, which nobody computes. {hint} A number of the data "
        f"set's row is 'column:NAME'; a statistic of your own is made by register_statistic."
    )
