"""Build the pages of the documentation site that come from the code, and redirect links that leave docs/."""

import json
import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
COPIED = {
    "benchmarks/README.md": "benchmarks.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "leaderboards/published/credit/FINDINGS.md": "gallery/credit-findings.md",
    "leaderboards/published/credit/page.html": "gallery/credit.html",
}
LINK = re.compile(r"(\]\()([^)\s:#]+)(#[^)\s]*)?\)")
SOURCE = "---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n```{language}\n{text}\n```\n"


def on_config(config):
    """Fill the navigation of the methods from the pages that `plo docs` wrote."""
    methods = [path.relative_to(ROOT / "docs").as_posix() for path in sorted((ROOT / "docs/methods").rglob("*.md"))]
    scorers = [path for path in methods if "/scorers/" in path]
    others = [path for path in methods if path not in scorers and not path.endswith("README.md")]
    pages = ["methods/README.md", *({Path(path).stem: path} for path in others)]
    pages.append({"Token scorers": [{Path(path).stem: path} for path in scorers]})
    next(entry for entry in config.nav if "Methods" in entry)["Methods"] = pages


def on_files(files, config):
    """Add the pages that are not files of docs/: the command line, the settings, copies, and linked source files."""
    pages = {page: (ROOT / path).read_text(encoding="utf-8") for path, page in COPIED.items()}
    linked = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    linked += [(path, pages[page]) for path, page in COPIED.items() if page.endswith(".md")]
    for path, text in linked:
        for _, target, _ in LINK.findall(text):
            found = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
            ours = found.startswith("docs/") or found.endswith(".md") or found in COPIED
            if (ROOT / found).is_file() and not ours:
                language = "python" if found.endswith(".py") else "text"
                text = (ROOT / found).read_text(encoding="utf-8")
                pages[f"source/{found}.md"] = SOURCE.format(path=found, language=language, text=text)
    pages |= {"reference/cli.md": _command_line(), "reference/settings.md": _settings()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Redirect the links of a page from files of the repository to pages of the site."""
    uri = page.file.src_uri
    path = next((path for path, copy in COPIED.items() if copy == uri), f"docs/{uri}")

    def redirect(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[2]))
        if target == "README.md":
            new = "index.md"
        elif target in COPIED:
            new = COPIED[target]
        elif target.startswith("docs/"):
            new = target.removeprefix("docs/")
        elif (ROOT / target).is_file():
            new = f"source/{target}.md"
        else:
            return match[0]
        return f"{match[1]}{posixpath.relpath(new, posixpath.dirname(uri))}{match[3] or ''})"

    return markdown if uri.startswith("source/") else LINK.sub(redirect, markdown)


def _command_line():
    """Return the page of the commands: help, usage, examples, arguments and options."""
    from typer import Context
    from typer.main import get_command

    from plo.cli import app

    group = get_command(app)
    parts = ["# Command line", group.help, group.epilog]
    for name, command in group.commands.items():
        if command.hidden:
            continue
        context = Context(command, info_name=f"plo {name}")
        usage = command.get_usage(context).removeprefix("Usage: ")
        examples = [line.strip().replace("\\[", "[") for line in (command.epilog or "").splitlines()[2:]]
        rows = [_parameter(parameter, context) for parameter in command.params]
        parts += [f"## plo {name}", command.help, "```sh\n" + "\n".join([f"{usage}\n", *examples]) + "\n```"]
        parts.append(_table(("argument or option", "default", "meaning"), rows))
    return "\n\n".join(parts) + "\n"


def _parameter(parameter, context):
    default = parameter.get_default(context)
    named = ", ".join([*parameter.opts, *parameter.secondary_opts])
    named = parameter.metavar or named.upper() if parameter.param_type_name == "argument" else named
    return f"`{named}`", "" if default in (None, (), [], False, "") else f"`{default}`", parameter.help or ""


def _settings():
    """Return the page of the settings of an experiment."""
    from plo.cli.settings import describe

    rows = [
        (
            f"`{row['setting']}`",
            "required" if row["required"] else f"`{json.dumps(row['default'])}`",
            ", ".join(filter(None, (row["type"], row["allowed"]))),
            row["description"],
        )
        for row in describe()
    ]
    head = "# Settings\n\nAn experiment file has these settings, and `plo compare` takes them as `KEY=VALUE`. `plo settings` lists them in a terminal.\n\n"
    return head + _table(("setting", "default", "values", "description"), rows) + "\n"


def _table(head, rows):
    lines = [head, ["---"] * len(head), *(map(_cell, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text):
    parts = text.replace("|", "\\|").replace("\n", " ").split("`")  # every second part is code
    return "`".join(part if place % 2 else re.sub(r"([*_\[<])", r"\\\1", part) for place, part in enumerate(parts))


class Examples(griffe.Extension):
    """Read the section "Example:" of a docstring as "Examples:", the name that mkdocstrings knows."""

    def on_instance(self, *, obj, **_):
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
