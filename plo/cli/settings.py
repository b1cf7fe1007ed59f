"""KEY=VALUE on the command line: split, read as YAML, and taken to what they name."""

from pathlib import Path
from typing import Any

import typer
import yaml


def split(arguments: list[str]) -> tuple[Path | None, dict[str, Any]]:
    """The one experiment file among the arguments, if there is one, and the settings."""
    paths = [a for a in arguments if "=" not in a]
    if len(paths) > 1:
        raise typer.BadParameter(f"one experiment file, not {len(paths)}: {', '.join(paths)}")
    pairs = (a.split("=", 1) for a in arguments if "=" in a)
    return (Path(paths[0]) if paths else None), {key: _scalar(value) for key, value in pairs}


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    try:  # YAML reads 1e-4 as text
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def sort_settings(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of the experiment, and the rest: hyper-parameters of its losses."""
    from plo.config import ConfigError, field_names

    names = field_names()
    short = {name.rsplit(".", 1)[-1]: name for name in names}  # lr for train.lr, where that is unambiguous
    leaves = [name.rsplit(".", 1)[-1] for name in names]
    known, hyper = {}, {}
    for key, value in settings.items():
        if key in names or key in ("data", "model") or key.split(".")[0] in ("data", "model", "train", "evaluation"):
            known[key] = value
        elif leaves.count(key) == 1:
            known[short[key]] = value
        elif key in leaves:
            several = " or ".join(name for name in names if name.endswith(f".{key}"))
            raise ConfigError(f"{key}={value} is ambiguous: {several}?")
        else:
            hyper[key] = value
    return known, hyper


def with_hyper_parameters(experiment, hyper: dict[str, Any]):
    """beta=0.2 goes to every loss that has it, dpo.beta=0.2 to `dpo` alone."""
    from plo.config import ConfigError
    from plo.losses import LOSSES, get_loss
    from plo.registry import hyper_parameters

    specs = list(experiment.losses)
    for key, value in hyper.items():
        name, _, parameter = key.rpartition(".")
        name = LOSSES[name].name if name in LOSSES else name  # an alias
        taken = False
        for i, loss in enumerate(map(get_loss, specs)):
            if loss.entry and parameter in hyper_parameters(loss.target) and name in ("", loss.entry.name, loss.name):
                changed = {k: v for k, v in loss.params.items() if v != hyper_parameters(loss.target)[k].default}
                specs[i] = {"name": loss.entry.name, **changed, parameter: value}
                taken = True
            elif not loss.entry and any(
                parameter in term.params and name in ("", term.entry.name) for _, term in loss.terms
            ):
                raise ConfigError(
                    f"{key}={value}: in the sum {loss.name!r} write it in its terms, 'dpo({parameter}={value})'."
                )
        if not taken:
            has = {loss.name: list(loss.params) for loss in map(get_loss, specs)}
            raise ConfigError(
                f"{key}={value}: neither a setting of the experiment nor a hyper-parameter of its losses; they have: "
                + "; ".join(f"{loss}: {', '.join(params) or 'none'}" for loss, params in has.items())
            )
    return experiment.model_copy(update={"losses": tuple(specs)})
