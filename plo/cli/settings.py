"""The settings of an experiment: `settings`."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from textwrap import wrap
from typing import Annotated, Any

import typer
import yaml
from rich.padding import Padding

from plo.cli.parameters import Json
from plo.cli.shared import console
from plo.cli.tables import print_rows
from plo.near import near
from plo.terminal import line, plain, say

KINDS = {"string": "text", "boolean": "true or false", "object": "mapping"}
BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def settings(
    pattern: Annotated[
        str, typer.Argument(metavar="PATTERN", help="Settings to list, with wildcards: 'train.*', '*judge*'.")
    ] = "*",
    as_json: Json = False,
    as_yaml: Annotated[
        bool, typer.Option("--yaml", help="Print an experiment file with every default in a comment.")
    ] = False,
):
    """List every setting of an experiment, with its type, default, allowed values and meaning.

    Examples:
        plo settings 'train.*'
        plo settings --yaml > experiment.yaml
    """
    from plo.config import ConfigError, Experiment
    from plo.section import fields

    rows = [row for row in describe() if fnmatchcase(row["setting"], pattern)]
    if not rows:
        meant = near(pattern.strip("*"), fields(Experiment))
        hint = f"Did you mean {' or '.join(meant)}?" if meant else "plo settings lists all."
        raise ConfigError(f"No setting matches {pattern!r}. {hint}")
    if as_yaml:
        print(plain("\n".join(_file(rows))))
    elif as_json:
        print_rows(rows, as_json=True)
    else:
        for row in rows:
            _print(row)


def describe() -> Iterator[dict[str, Any]]:
    """Describe each setting: its dotted name, type, default, allowed values and description."""
    from pydantic import TypeAdapter

    from plo.config import Experiment
    from plo.section import fields

    for name, field in fields(Experiment).items():
        adapter, required = TypeAdapter(field.rebuild_annotation()), field.is_required()
        kind, allowed = _values(adapter.json_schema())
        default = None if required else adapter.dump_python(field.get_default(call_default_factory=True), mode="json")
        facts = {"setting": name, "type": kind, "default": default, "required": required, "allowed": allowed}
        yield facts | {"description": field.description}


def _values(schema: Mapping[str, Any]) -> tuple[str, str]:
    """Return the type that a JSON schema describes, in words, and the values that it allows."""
    if "anyOf" in schema:
        kinds, allowed = zip(*map(_values, schema["anyOf"]), strict=True)
        return " or ".join(dict.fromkeys(kinds)), ", ".join(filter(None, allowed))
    if "$ref" in schema:
        return "mapping", ""
    if "enum" in schema or "const" in schema:
        return "choice", ", ".join(map(str, schema.get("enum") or [schema["const"]]))
    if schema["type"] == "array":
        kind, allowed = _values(schema["items"])
        return f"list of {kind}", allowed
    bounds = ", ".join(f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema)
    return str(KINDS.get(schema["type"], schema["type"])), bounds


def _print(row: Mapping[str, Any]) -> None:
    default = "" if row["required"] else f" = {_flow(row['default'])}"
    values = f"{'required, ' * row['required']}{': '.join(filter(None, (row['type'], row['allowed'])))}"
    say(console, (row["setting"], "bold"), default, (f"  ({values})", "dim"))
    description = Padding.indent(line(row["description"]), 4)
    console.print(description)


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _file(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Write an experiment file, line by line: what is required with an example, everything else in comments."""
    current = ""
    sections = {row["setting"].rpartition(".")[0] for row in rows}
    for row in rows:
        section, _, name = row["setting"].rpartition(".")
        if section != current and section:
            yield f"{'  ' * section.count('.')}{section.rpartition('.')[2]}:"
        current = section
        indent = "  " * (section.count(".") + 1) if section else ""
        yield from (f"{indent}# {text}" for text in wrap(row["description"], 100))
        if row["setting"] in sections:  # its name follows, as the head of its settings
            continue
        yield f"{indent}losses: [dpo, ipo]" if row["required"] else f"{indent}# {name}: {_flow(row['default'])}"
