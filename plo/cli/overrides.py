"""KEY=VALUE on the command line: settings of the experiment and hyper-parameters of its losses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from plo.cli.shared import load_plugins
from plo.near import near
from plo.values import read_value

WITHOUT_SHORT_NAMES = ("tuning.", "data.sample.", "data.origin", "data.flip")
SECTIONS = ("data", "model", "train", "evaluation")


def read_experiment(arguments: list[str], flags: Mapping[str, Any]):
    """Return the experiment of a command's arguments and flags, with its plug-ins loaded.

    Args:
        arguments: an experiment file, settings and hyper-parameters.
        flags: settings from options of the command; empty ones do not count.

    Raises:
        ConfigError: there are no losses, or a setting is unknown or has a wrong value.
    """
    from plo.config import load_experiment

    path, settings = split(arguments)
    known, hyper = sort_settings(settings)
    known = {name: value for name, value in flags.items() if value} | known
    if path is None:
        check_losses_given(known, hyper)
    experiment = load_experiment(path, known)
    load_plugins(experiment.plugins)
    return with_hyper_parameters(experiment, hyper)


def split(arguments: list[str]) -> tuple[Path | None, dict[str, Any]]:
    """Split arguments into the experiment file, None if there is none, and the values of KEY=VALUE."""
    paths = [a for a in arguments if "=" not in a]
    if len(paths) > 1:
        raise typer.BadParameter(f"give one experiment file rather than {len(paths)}: {', '.join(paths)}")
    pairs = (a.split("=", 1) for a in arguments if "=" in a)
    return (Path(paths[0]) if paths else None), {key: read_value(value) for key, value in pairs}


def split_files(losses: list[str]) -> tuple[list[str], list[Path]]:
    """Split losses such as "my_loss.py:hinge2(beta=0.2)" into losses and the files that register them."""
    found = [loss.rpartition(".py:") for loss in losses]
    return [loss for _, _, loss in found], [Path(f"{stem}.py") for stem, colon, _ in found if colon]


def sort_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split values into settings of the experiment and the rest, which are hyper-parameters of its losses."""
    from plo.config import ConfigError, Experiment
    from plo.section import fields

    names = fields(Experiment)
    known, hyper = {}, {}
    for key, value in settings.items():
        # lr is short for train.lr; settings of tuning and of sampled pairs have no short names, as trials, share and k may
        # be hyper-parameters, and temperature is the evaluation's
        alike = [name for name in names if name.endswith(f".{key}") and not name.startswith(WITHOUT_SHORT_NAMES)]
        # `sft.lr` and `data.options.chat` are inside a setting that is a mapping
        if f"{key}.".startswith(tuple(f"{name}." for name in (*names, *SECTIONS))):
            known[key] = value
        elif len(alike) > 1:
            raise ConfigError(f"{key}={value} is ambiguous: {' or '.join(alike)}?")
        elif alike:
            known[alike[0]] = value
        else:
            hyper[key] = value
    return known, hyper


def check_losses_given(settings: dict[str, Any], others: dict[str, Any]) -> None:
    """Refuse a comparison without losses; of `others`, which are no settings, one may be a misspelt setting."""
    from plo.config import ConfigError, Experiment
    from plo.section import fields

    if "losses" in settings:
        return
    meant = {key: names for key in others if (names := near(key, fields(Experiment)))}
    hints = [f" {key}: there is no such setting; did you mean {' or '.join(names)}?" for key, names in meant.items()]
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
    from plo.config import ConfigError, Experiment
    from plo.losses import LOSSES
    from plo.scorers import get_variant
    from plo.section import fields

    used = set()

    def given(term, parameters):
        names = (term.entry.name, term.name, *LOSSES.aliases(term.entry.name))
        keys = {f"{loss}{parameter}": parameter for loss in ("", *(f"{n}." for n in names)) for parameter in parameters}
        chosen = [key for key in keys if key in hyper]
        used.update(chosen)
        return {keys[key]: hyper[key] for key in chosen}

    def with_preset(term):
        preset = given(term, ["preset"]) if getattr(term.entry.facts, "presets", None) else {}
        return get_variant(term.entry.name, **term.given, **preset) if preset else term

    def with_settings(term):
        if scorer := given(term, {"scorer"} & term.settings.keys()):  # first: it has hyper-parameters of its own
            term = term.with_params(scorer)
        others = given(term, [parameter for parameter in term.settings if parameter != "scorer"])
        return term.with_params(others) if others else term

    before = [get_variant(spec) for spec in experiment.losses]
    after = [variant.each_term(with_preset).each_term(with_settings) for variant in before]
    if unknown := [key for key in hyper if key not in used]:
        terms = {term.name: list(term.settings) for variant in before for _, term in variant.terms}
        has = "; ".join(f"{name}: {', '.join(parameters) or 'none'}" for name, parameters in terms.items())
        meant = near(unknown[0], [*fields(Experiment), *(p for parameters in terms.values() for p in parameters)])
        hint = f" Did you mean {' or '.join(meant)}?" if meant else ""
        raise ConfigError(
            f"{unknown[0]}={hyper[unknown[0]]}: neither a setting of the experiment nor a hyper-parameter of its losses.{hint} "
            f"They have: {has}."
        )
    changes = zip(experiment.losses, before, after, strict=True)
    specs = tuple(new.name if new.name != old.name else spec for spec, old, new in changes)
    return experiment.model_copy(update={"losses": specs})
