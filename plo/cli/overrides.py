"""KEY=VALUE on the command line: settings of the experiment and hyper-parameters of its losses."""

from pathlib import Path
from typing import Any

import typer

from plo.near import near
from plo.values import read_value

SECTIONS = ("data", "model", "train", "evaluation")


def split(arguments: list[str]) -> tuple[Path | None, dict[str, Any]]:
    """Split arguments into the experiment file, None if there is none, and the values of KEY=VALUE."""
    paths = [a for a in arguments if "=" not in a]
    if len(paths) > 1:
        raise typer.BadParameter(f"give one experiment file rather than {len(paths)}: {', '.join(paths)}")
    pairs = (a.split("=", 1) for a in arguments if "=" in a)
    return (Path(paths[0]) if paths else None), {key: read_value(value) for key, value in pairs}


def sort_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split values into settings of the experiment and the rest, which are hyper-parameters of its losses."""
    from plo.config import ConfigError, fields

    names = list(fields())
    short = {name.rsplit(".", 1)[-1]: name for name in names}  # lr for train.lr, where that is unambiguous
    leaves = [name.rsplit(".", 1)[-1] for name in names]
    known, hyper = {}, {}
    for key, value in settings.items():
        # `sft.lr` and `data.options.chat` are inside a setting that is a mapping
        if key in (*names, *SECTIONS) or key.startswith(tuple(f"{name}." for name in (*names, *SECTIONS))):
            known[key] = value
        elif leaves.count(key) == 1:
            known[short[key]] = value
        elif key in leaves:
            several = " or ".join(name for name in names if name.endswith(f".{key}"))
            raise ConfigError(f"{key}={value} is ambiguous: {several}?")
        else:
            hyper[key] = value
    return known, hyper


def check_losses_given(settings: dict[str, Any], others: dict[str, Any]) -> None:
    """Refuse a comparison without losses.

    Args:
        settings: settings of the experiment.
        others: values that are no setting; one of them may be a misspelt setting.

    Raises:
        ConfigError: there are no losses. The message suggests settings.
    """
    from plo.config import ConfigError, fields

    if "losses" in settings:
        return
    meant = {key: near(key, fields()) for key in others}
    hints = [
        f" {key}: there is no such setting; did you mean {' or '.join(names)}?" for key, names in meant.items() if names
    ]
    raise ConfigError(
        f"There are no losses to compare: give --loss dpo, losses=dpo,ipo or an experiment file.{''.join(hints)}"
    )


def with_hyper_parameters(experiment, hyper: dict[str, Any]):
    """Set hyper-parameters of an experiment's variants: `beta=0.2` of every loss that has it, `dpo.beta=0.2` of dpo alone.

    The terms of a sum are losses like any other, and `scorer.gamma=0.5` is a hyper-parameter of a loss's scorer. A
    value that names its loss takes precedence.

    Raises:
        ConfigError: no variant has such a hyper-parameter. The message suggests names.
    """
    from plo.config import ConfigError, fields
    from plo.losses import LOSSES
    from plo.scorers import get_variant

    used = set()

    def with_preset(term):
        presets = [key for key in ("preset", *(f"{name}.preset" for name in names_of(term))) if key in hyper]
        if not presets or not getattr(term.entry.facts, "presets", None):
            return with_settings(term)
        used.update(presets)
        return get_variant(term.entry.name, **term.given, preset=hyper[presets[-1]]).each_term(with_settings)

    def names_of(term):
        return {term.entry.name, term.name, *LOSSES.aliases(term.entry.name)}

    def with_settings(term):
        names = names_of(term)
        for scorers in (True, False):  # another scorer first: it has hyper-parameters of its own
            addressed = {f"{name}.{parameter}": parameter for name in names for parameter in term.settings}
            parameters = {key: key for key in hyper if key in term.settings}
            parameters |= {key: addressed[key] for key in hyper if key in addressed}
            changes = {key: parameter for key, parameter in parameters.items() if (parameter == "scorer") == scorers}
            if changes:
                used.update(changes)
                term = term.with_params({parameter: hyper[key] for key, parameter in changes.items()})
        return term

    before = [get_variant(spec) for spec in experiment.losses]
    after = [variant.each_term(with_preset) for variant in before]
    if unknown := [key for key in hyper if key not in used]:
        terms = {term.name: list(term.settings) for variant in before for _, term in variant.terms}
        has = "; ".join(f"{name}: {', '.join(parameters) or 'none'}" for name, parameters in terms.items())
        meant = near(unknown[0], [*fields(), *(p for parameters in terms.values() for p in parameters)])
        hint = f" Did you mean {' or '.join(meant)}?" if meant else ""
        raise ConfigError(
            f"{unknown[0]}={hyper[unknown[0]]}: neither a setting of the experiment nor a hyper-parameter of its losses.{hint} "
            f"They have: {has}."
        )
    specs = tuple(
        new.name if new.name != old.name else spec
        for spec, old, new in zip(experiment.losses, before, after, strict=True)
    )
    return experiment.model_copy(update={"losses": specs})
