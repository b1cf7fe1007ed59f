"""The settings of an experiment: `settings`."""

from collections.abc import Iterator, Mapping
from textwrap import wrap
from typing import Annotated, Any

import typer
import yaml
from rich.padding import Padding

from plo.cli.parameters import Json
from plo.cli.shared import console
from plo.cli.tables import print_rows
from plo.errors import PloError
from plo.terminal import line, plain, say

KINDS = {"string": "text", "boolean": "true or false", "array": "list", "object": "mapping"}
BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


class NoSuchSetting(PloError, LookupError):
    """A pattern that no setting matches."""


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
    import fnmatch

    from plo.near import near

    rows = list(describe())
    names = [row["setting"] for row in rows]
    rows = [row for row in rows if fnmatch.fnmatchcase(row["setting"], pattern)]
    if not rows:
        meant = near(pattern.strip("*"), names)
        hint = f"Did you mean {' or '.join(meant)}?" if meant else "plo settings lists all."
        raise NoSuchSetting(f"No setting matches {pattern!r}. {hint}")
    if as_yaml:
        print(plain("\n".join(_file(rows))))
    elif as_json:
        print_rows(rows, as_json=True)
    else:
        for row in rows:
            _print(row)


def describe() -> Iterator[dict[str, Any]]:
    """Describe each setting: its dotted name, type, default, allowed values and description."""
    from plo.config import Experiment, fields

    schema = Experiment.model_json_schema()
    for name, field in fields().items():
        section, own = schema, name
        while "." in own:
            head, own = own.split(".", 1)
            section = schema["$defs"][section["properties"][head]["$ref"].rsplit("/", 1)[1]]
        facts = section["properties"][own]
        kinds, allowed = zip(*(_values(each) for each in facts.get("anyOf", [facts])), strict=True)
        yield {
            "setting": name,
            "type": " or ".join(dict.fromkeys(kinds)),
            "default": None if field.is_required() else facts.get("default", {}),
            "required": field.is_required(),
            "allowed": ", ".join(filter(None, allowed)),
            "description": field.description,
        }


def _values(schema: Mapping[str, Any]) -> tuple[str, str]:
    """Return the type that a JSON schema describes, in words, and the values that it allows."""
    if "enum" in schema or "const" in schema:
        return "text", ", ".join(map(str, schema.get("enum") or [schema["const"]]))
    kind = str(KINDS.get(schema["type"], schema["type"]))
    bounds = ", ".join(f"{sign} {schema[key]}" for key, sign in BOUNDS.items() if key in schema)
    if kind == "list" and (items := schema.get("items")):
        kinds, allowed = zip(*(_values(each) for each in items.get("anyOf", [items])), strict=True)
        return f"list of {' or '.join(dict.fromkeys(kinds))}", ", ".join(filter(None, allowed))
    return kind, bounds


def _print(row: Mapping[str, Any]) -> None:
    default = "" if row["required"] else f" = {_flow(row['default'])}"
    values = ", ".join(filter(None, ("required" * row["required"], row["type"], row["allowed"])))
    say(console, (row["setting"], "bold"), default, (f"  ({values})", "dim"))
    description = Padding(line(row["description"]), (0, 0, 0, 4))
    console.print(description)


def _flow(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")


def _file(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Write an experiment file, line by line: what is required with an example, everything else in comments."""
    current = ""
    for row in rows:
        section, _, name = row["setting"].rpartition(".")
        if section != current and section:
            yield f"{section}:"
        current = section
        indent = "  " if section else ""
        yield from (f"{indent}# {text}" for text in wrap(row["description"], 100))
        yield f"{indent}losses: [dpo, ipo]" if row["required"] else f"{indent}# {name}: {_flow(row['default'])}"
