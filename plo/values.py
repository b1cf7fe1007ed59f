"""Values as users write them: YAML, numbers such as 1e-4, and lists separated by commas."""

import re
from collections.abc import Mapping
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_yaml(text: str) -> Any:
    """Read YAML; a tag that would run code is an error, and a date is a text.

    Raises:
        yaml.YAMLError: `text` is not YAML.

    Example:
        >>> read_yaml("{name: 2026-11-29, seeds: [0, 1]}")
        {'name': '2026-11-29', 'seeds': [0, 1]}
    """
    return yaml.load(text, Loader=_Loader)


def yaml_fault(error: yaml.YAMLError) -> str:
    """Return the line of a fault that `read_yaml` found, and what is wrong there, on one line.

    Example:
        >>> try:
        ...     read_yaml("losses:\\n\\t- dpo")
        ... except yaml.YAMLError as error:
        ...     yaml_fault(error)
        "line 2: found character '\\\\t' that cannot start any token; indent with spaces"
    """
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark, what = error.problem_mark or error.context_mark, error.problem or error.context or "it cannot be read"
    remedy = "; indent with spaces" if "'\\t'" in what else ""
    return f"line {mark.line + 1}: {what}{remedy}" if mark else f"{what}{remedy}"


def read_value(text: str) -> Any:
    """Read a value as YAML; numbers that YAML reads as texts (1e-4) are numbers, also in lists and mappings."""
    try:
        return _numbers(read_yaml(text))
    except yaml.YAMLError:
        return text


def _numbers(value: Any) -> Any:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def without_credentials(text: str) -> str:
    """Return a text without the names and passwords in its addresses.

    Example:
        >>> without_credentials("store: https://me:secret@host/mlflow")
        'store: https://host/mlflow'
    """
    return re.sub(r"(?<=://)[^\s/@]+@", "", text)


LOCAL = "<local>/"  # stands for the folder of a file that only the machine of a record has
_NAME = r"""[^\s/\\"'<>|,;:()\[\]{}`]+"""
_PATH = re.compile(
    rf"(?<![\w./~<])(?:file://)?(?:~\w*(?:/{_NAME})+|(?:/{_NAME}){{2,}}|[A-Za-z]:(?:\\{{1,2}}{_NAME})+)[/\\]?"
)


def without_paths(text: str) -> str:
    """Return a text with each absolute path in it as `<local>/` and the path's last name, such as for publication.

    Paths with spaces are recognised where the whole text is one. Relative paths, addresses and names of the hub stay.

    Example:
        >>> without_paths("judge: hf:/home/me/models/judge(repeats=3), data: org/name, from https://host/a/b")
        'judge: hf:<local>/judge(repeats=3), data: org/name, from https://host/a/b'
    """
    if re.fullmatch(rf"(~\w*|/{_NAME})/[^\n:]+", text):
        return LOCAL + text.rstrip("/").rpartition("/")[2]
    return _PATH.sub(lambda found: LOCAL + re.split(r"[/\\]", found[0].rstrip("/\\"))[-1], text)


def read_list(text: str) -> list[Any]:
    """Read a list such as "0, 1": commas separate values, except inside brackets and quotes.

    Example:
        >>> read_list("dpo, bpo(lam=0.5, s=2)")
        ['dpo', 'bpo(lam=0.5, s=2)']
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += character
    return [read_value(part.strip()) for part in parts if part.strip()]


def as_list(value: Any) -> Any:
    """Return a list for its short forms: `losses: dpo`, `seeds: 0,1`, `eval_at: 0.5`, or a mapping of losses."""
    if isinstance(value, Mapping):
        return [{name: params} for name, params in value.items()]
    if isinstance(value, str):
        return read_list(value)
    if value is None:  # `losses=` on a command line
        return []
    return value if isinstance(value, list | tuple) else [value]


def read_duration(text: str) -> float:
    """Return the seconds of a text such as "90", "45m", "2h", "1.5h", "1d" or "1h30m"; a number alone is minutes.

    Raises:
        ValueError: the text is not a duration.

    Example:
        >>> read_duration("1h30m"), read_duration("90"), read_duration("1.5h")
        (5400.0, 5400.0, 5400.0)
    """
    units = {"d": 86_400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "": 60.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[dhms]?)", text)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*(min|[dhms]?)", "", text).strip():
        raise ValueError(f"{text!r} is not a duration: write 2h, 45m or 1h30m.")
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if seconds <= 0:
        raise ValueError(f"{text!r} is no time at all: write 2h, 45m or 1h30m.")
    return seconds
