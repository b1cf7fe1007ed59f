"""Checks of the losses before anything is trained: their needs, their gradients, and the columns of the data."""

import difflib
from collections.abc import Iterable, Sequence

from plo.backbone.token_statistics import STATISTICS, function_of, statistic_of
from plo.config import ConfigError, Experiment
from plo.configured import HyperParameterError
from plo.data import Pair
from plo.data.completions import PROVIDERS, check_completion, provider_of
from plo.experiment.keys import train_settings
from plo.experiment.reports import check_installed
from plo.losses import Loss, get_loss
from plo.registry import load_plugin
from plo.scorers import Scorer, Variant, get_variant
from plo.verify.trainable import check_trainable

OTHER_NEEDS = ("ref_logps", "hidden", "weights")  # what the backbone computes without a registered statistic
COLUMN = "column:"


def checked_variants(experiment: Experiment) -> tuple[list[Variant], list[Loss]]:
    """Run an experiment's plug-ins, and return its variants and all losses that will be trained, which are checked."""
    check_installed(experiment.report_to)
    for plugin in experiment.plugins:
        load_plugin(plugin)
    variants = configured_variants(experiment)
    losses = losses_with_stages(variants)
    check_losses(losses)
    return variants, losses


def configured_variants(experiment: Experiment) -> list[Variant]:
    """Return the variants of an experiment, `sft` (on chosen) first: every table has it."""
    variants = [get_variant(spec) for spec in experiment.losses]
    if all(variant.name != "sft" for variant in variants):
        variants.insert(0, get_variant("sft"))
    names = [variant.name for variant in variants]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"`losses` lists {', '.join(sorted(twice))} twice; list each variant once.")
    variants = on_every_origin(experiment, variants)
    for variant in variants:
        train_settings(experiment, variant)
    # Tuning chooses settings, which are part of a variant's name: only the loss's own name stays.
    bases = [
        one.name
        for one in variants
        if experiment.baseline in ((one.row,) if experiment.tuning else (one.name, one.row))
    ]
    if experiment.baseline not in (None, "reference") and len(bases) != 1:
        raise ConfigError(
            f"baseline={experiment.baseline} is the name of {' and of '.join(bases) or 'no loss in this comparison'}: name "
            f"one of {', '.join(one.row if experiment.tuning else one.name for one in variants)}."
        )
    return variants


def on_every_origin(experiment: Experiment, variants: Sequence[Variant]) -> list[Variant]:
    """Return each variant with training pairs of every origin of `data.origin` and `data.flip`, unless it names its own.

    A later round of iterated pairs is preceded by the rounds that it needs, which are rows of the table too.
    """
    found = [
        variant.on(origin)
        for variant in variants
        for origin in (variant.origin.rounds if variant.origin.settings else experiment.data.origins)
    ]
    return list({variant.name: variant for variant in found}.values())


def check_source_columns(variants: Sequence[Variant], pairs: Sequence[Pair]) -> None:
    """Refuse losses that are trained on the data source's pairs and need a column that these lack (ConfigError)."""
    check_columns(losses_with_stages([variant for variant in variants if not variant.origin.round]), pairs)


def losses_with_stages(variants: Sequence[Variant]) -> list[Loss]:
    """Return the losses of variants and of the stages that their token scorers train first, each name once."""
    losses = [variant.loss for variant in variants]
    losses += [loss for variant in variants if variant.scorer for loss in losses_of_stages(variant.scorer)]
    return list({loss.name: loss for loss in losses}.values())


def losses_of_stages(scorer: Scorer) -> list[Loss]:
    """Return the losses that train the models of a token scorer."""
    return [get_loss(stage.loss) for stage in scorer.stages.values()]


def check_losses(losses: Iterable[Loss]) -> None:
    """Refuse losses with unknown needs or without a gradient (ConfigError, LossError)."""
    for loss in losses:
        for _, term in loss.terms:
            for need in term.needs:
                _check_need(term, need)
            check_trainable(term)


def check_columns(losses: Iterable[Loss], pairs: Sequence[Pair]) -> None:
    """Refuse losses that need a numeric column which some training pair lacks (ConfigError)."""
    for loss in losses:
        for name in (need.removeprefix(COLUMN) for need in loss.needs if need.startswith(COLUMN)):
            lacking = [pair for pair in pairs if name not in pair.columns]
            if not lacking:
                continue
            problem = f"The loss {loss.name!r} needs the numeric column {name!r}, which"
            if len(lacking) < len(pairs):
                raise ConfigError(
                    f"{problem} {len(lacking)} of {len(pairs)} training rows lack (no value, or not a finite number), the "
                    f"first at {lacking[0].where}. Fill it in, or remove these rows."
                )
            known = sorted({column for pair in pairs for column in pair.columns})
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean 'column:{near[0]}'?" if near else ""
            raise ConfigError(
                f"{problem} no row of the data has. Existing columns: {', '.join(known) or 'none'}.{hint} Add the column to "
                f"the data, or name another one in the loss's needs."
            )


def _check_need(loss: Loss, need: str) -> None:
    if need in OTHER_NEEDS or (need.startswith(COLUMN) and need != COLUMN):
        return
    try:
        if statistic_of(need) is not None:
            function_of(need)
            return
        if provider_of(need) is not None:
            check_completion(need)
            return
    except HyperParameterError as error:
        raise ConfigError(f"The loss {loss.name!r} ({loss.origin}) needs {need!r}. {error}") from None
    known = [*OTHER_NEEDS, *(entry.name for entry in STATISTICS if entry.name != "logps")]
    known += [f"completion:{entry.name}" for entry in PROVIDERS]
    near = difflib.get_close_matches(need, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(sorted(known))}."
    raise ConfigError(
        f"The loss {loss.name!r} ({loss.origin}) needs {need!r}, which is unknown. {hint} A numeric column of the data set is "
        f"'column:NAME'; register_statistic adds a statistic."
    )
