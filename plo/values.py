"""Values as users write them: YAML, numbers such as 1e-4, and lists separated by commas."""

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
