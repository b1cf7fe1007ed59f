"""A group of settings, checked with errors that name the place and the remedy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from plo.errors import PloError
from plo.near import near
from plo.values import read_yaml, yaml_fault

EXAMPLES = {"losses": "; e.g. 'losses: [dpo, ipo]'"}  # of settings that are required
WORDS = {  # of pydantic's errors that name Python's types
    "model_type": "write settings by name, as in {setting: value}",
    "dict_type": "write settings by name, as in {setting: value}",
    "too_short": "write at least one",
    "tuple_type": "write a list, as in [1, 2]",
    "path_type": "write the path of a file or folder",
}


class ConfigError(PloError, ValueError):
    """An experiment cannot be run as it is written."""


class Section(BaseModel):
    """A group of settings.

    Attributes:
        first_defaults: first default of each field whose default was changed later; keys leave it out (`plo.identity`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True, use_attribute_docstrings=True)
    first_defaults: ClassVar[dict[str, Any]] = {}

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Self:
        """Check settings that a user gave.

        Args:
            where: origin of the settings, for the message, such as "The experiment of FILE".

        Raises:
            ConfigError: a setting is unknown or has a wrong value; the message names its place and what is possible.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "\n".join(f"  {problem(e, cls)}" for e in _once(error.errors()))
            raise ConfigError(f"{where} cannot be used:\n{problems}") from None


def fields(section: type[Section], prefix: str = "") -> dict[str, FieldInfo]:
    """Return every setting by its dotted name, as in `train.lr`: what an override can set."""
    found: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))  # of `Section | None` too
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        if not inner or field.default is None:  # a section that may be left out has a row of its own
            found[prefix + name] = field
        if inner:
            found |= fields(inner[0], f"{prefix}{name}.")
    return found


def read_settings(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of an experiment file, and the mapping that it holds.

    Raises:
        ConfigError: the file cannot be read, or is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
        raw = read_yaml(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text in UTF-8 ({error.reason}). Save it as one.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {yaml_fault(error)}.") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold a mapping with at least 'losses: [dpo, ...]'.")
    return text, raw


def _once(errors: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Remove errors that repeat another one: of further types that a value may have, and of lists without bad items."""
    found: dict[tuple, Mapping[str, Any]] = {}
    for error in errors:
        loc = tuple(part for part in error["loc"] if not str(part).startswith(("str", "dict[", "list[")))
        if error["type"] == "too_short" and any(other[: len(loc)] == loc for other in found):
            continue
        if not any(loc[: len(other)] == other for other in found):
            found[loc] = {**error, "loc": loc}
    return list(found.values())


def problem(error: Mapping[str, Any], section: type[Section]) -> str:
    """Return the sentence for an error that pydantic found in a section."""
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        names = list(fields(section))
        meant = near(place, names)
        hint = f"did you mean {' or '.join(meant)}?" if meant else f"known are: {', '.join(names)}"
        return f"{place}: there is no such setting; {hint}"
    if error["type"] == "missing":
        return f"{place}: is missing{EXAMPLES.get(place, '')}"
    message = WORDS.get(error["type"]) or error["msg"].removeprefix("Value error, ")
    value = error["input"]
    got = "" if isinstance(value, Mapping) else f" (got {value!r})"
    return f"{place}: {message}{got}" if place else message
