"""The pages of docs/methods: written from the registries, complete, and as they would be written now."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from plo.cli import app
from plo.cli.overrides import sort_settings, split
from plo.docstring import cell, markdown, read_docstring
from plo.losses import LOSSES, register_loss
from plo.pages import COMMAND, MARK, MEASURED, pages, write
from plo.registry import hyper_parameters
from plo.scorers import RECIPES, SCORERS, get_loss, get_scorer, register_recipe, register_scorer
from plo.scorers.recipe import BUILT_IN

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "methods"
PAGES = pages()
METHODS = [name for name in PAGES if name not in ("README.md", "generators.md")]


def sections(text):
    """Return the text below each heading; "" is the text below the title."""
    title, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    found = dict(part.split("\n", 1) for part in parts)
    return {"": title.split("\n", 3)[-1], **found}


def test_the_pages_in_the_repository_are_up_to_date(tmp_path):
    write(tmp_path)
    written = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.md")}
    there = {str(path.relative_to(FOLDER)): path.read_text() for path in FOLDER.rglob("*.md")}
    stale = sorted(name for name in {*written, *there} if written.get(name) != there.get(name))
    assert not stale, f"{', '.join(stale)}: not as the registry has it. Run `{COMMAND}` and commit docs/methods."


def test_the_command_writes_them_and_takes_away_what_is_gone(tmp_path):
    (tmp_path / "gone.md").write_text(f"{MARK}\n\n# gone\n")
    (tmp_path / "own.md").write_text("# mine\n")
    result = CliRunner().invoke(app, ["docs", "--out", str(tmp_path)])
    assert result.exit_code == 0 and f"{len(PAGES)} pages" in result.output
    assert (tmp_path / "dpo.md").is_file() and (tmp_path / "own.md").is_file() and not (tmp_path / "gone.md").exists()


def test_everything_built_in_has_a_page():
    losses = [
        entry
        for entry in [*LOSSES, *(RECIPES[name] for name in BUILT_IN)]
        if getattr(entry.load(), "__module__", "").startswith("plo.")
    ]
    assert len(losses) >= 37
    assert {f"{entry.name}.md" for entry in losses} <= PAGES.keys()
    assert {f"scorers/{name}.md" for name in ("uniform", "tis_rank", "attention_judge")} <= PAGES.keys()
    for entry in losses:
        assert f"[`{entry.name}`]({entry.name}.md)" in PAGES["README.md"]
        for alias in LOSSES.aliases(entry.name):
            assert f"`{alias}`" in PAGES[f"{entry.name}.md"] and f"= `{alias}`" in PAGES["README.md"]


@pytest.mark.parametrize("name", METHODS)
def test_a_page_is_complete(name):
    parts = sections(PAGES[name])
    common = ["", "Assumes", "Cost", "Hyper-parameters", "Disputes", "Use", "Source"]
    own = ["Weights", "What they sum to"] if name.startswith("scorers/") else ["Equation", "Needs", "Value and metrics"]
    assert sorted(parts) == sorted(common + own)
    assert all(len(text.strip()) > 3 for text in parts.values()), parts
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| (.*) \|$", parts["Hyper-parameters"], flags=re.MULTILINE)
    registry = SCORERS if name.startswith("scorers/") else RECIPES if Path(name).stem in RECIPES else LOSSES
    entry = registry[Path(name).stem]
    assert [row[0] for row in rows] == list(hyper_parameters(entry.load()))
    assert all(meaning.strip() for _, _, meaning in rows), "each hyper-parameter is described under Args"
    if paper := re.match(r"\d{4}\.\d{5}", entry.facts.paper):
        assert f"https://arxiv.org/abs/{paper[0]}" in parts["Source"]


def test_every_link_resolves():
    for name, text in PAGES.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if target.startswith("https://"):
                continue
            path, _, anchor = target.partition("#")
            file = (FOLDER / name).parent / path if path else FOLDER / name
            assert file.is_file(), f"{name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", file.read_text(), flags=re.MULTILINE)
                assert anchor in [heading.lower().replace(" ", "-") for heading in headings], f"{name}: {target}"


def commands():
    found = {}
    for name, text in PAGES.items():
        for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
            found |= dict.fromkeys(block.splitlines(), name)
    return found


@pytest.mark.parametrize("line", commands())
def test_every_command_can_be_run(line):
    program, command, *arguments = shlex.split(line)
    assert program == "plo"
    parser = typer.main.get_command(app).commands[command]
    values = parser.make_context(command, arguments).params  # raises for an option that there is not
    if command == "compare":
        assert [get_loss(spec) for spec in values["loss"]]
        path, settings = split(values["arguments"])
        assert path is None and sort_settings(settings)[1] == {}
    elif command == "scores":
        path, settings = split(values["arguments"])
        known, own = sort_settings(settings)
        assert (path, known) == (None, {}) and get_scorer(values["scorer"], **own)
    else:
        assert command == "verify" and (values["generator"] or get_loss(values["loss"]))


def test_tables_have_their_columns_and_no_bare_signs():
    for name, text in PAGES.items():
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for table in re.findall(r"(?:^\|.*\n)+", prose, flags=re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(widths) == 1, f"{name}: {table}"
        plain = re.sub(r"`[^`]*`|\]\([^)]*\)|<!--.*?-->", "", prose)
        assert not re.search(r"(?<!\\)[<$~]|(?<![\\\w])_\w|\w(?<!\\)_\w", plain), name


def test_no_page_for_a_plug_in():
    @register_loss("page_mine", needs=("ref_logps",))
    def mine(pairs):
        """h."""
        return pairs.log_ratio_margin()

    @register_scorer("page_scorer")
    def scorer(material):
        yield from ()

    register_recipe("page_recipe", loss="twdpo", scorer="position_decay", paper="mine", gamma=0.9)
    assert {"page_mine", "page_recipe"} <= {entry.name for entry in [*LOSSES, *RECIPES]}
    assert pages() == PAGES


def test_what_is_not_here_says_why():
    text = sections(PAGES["README.md"])["Not here"]
    assert "BNF" in text and "TI-DPO" in text
    assert "MaPO" in text and "`mappo`" in text and "RTO" in text and "PPO" in text
    assert text.count("\n- ") + text.startswith("- ") == 4  # once each, however many names lead there


def test_measured_factors_are_the_benchmarks_own():
    text = " ".join((ROOT / "benchmarks" / "README.md").read_text().split())
    steps = {(each["loss"], each["peft"]): each for each in json.loads(MEASURED.read_text())}
    for name in {loss for loss, _ in steps}:
        lora, full = steps[name, "lora"], steps[name, "full"]
        assert f"`{name}` {lora['ratio']:.2f} and {full['ratio']:.2f}" in text
        assert lora["command"] in PAGES[f"{name}.md"] and full["command"] == f"{lora['command']} --peft full"
        assert lora["hardware"] == full["hardware"]
    assert "--rows 16 --epochs 2 --against plo:tdpo2" in text


def test_the_benchmark_updates_the_file_of_measured_steps(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "benchmarks" / "backbone.py")
    spec.loader.exec_module(benchmark := importlib.util.module_from_spec(spec))
    file = tmp_path / "measured.json"
    monkeypatch.setattr("sys.argv", ["benchmarks/backbone.py", "--against", "plo:tdpo2", "--record", str(file)])
    for ratio in (1.2, 1.06):
        benchmark.record(file, [{"against": "plo:tdpo2", "peft": "lora", "step_ratio": ratio}])
    benchmark.record(file, [{"against": "plo:tdpo2", "peft": "full", "step_ratio": 1.0}])
    lora, full = json.loads(file.read_text())
    assert (lora["peft"], lora["ratio"], full["peft"], full["ratio"]) == ("lora", 1.06, "full", 1.0)
    assert lora["command"] == "python benchmarks/backbone.py --against plo:tdpo2"
    assert "torch" in lora["hardware"] and lora.keys() == json.loads(MEASURED.read_text())[0].keys()


def described():
    """a |b| = c_d < 1.

        x  |  1
        y  |  2

    Said of `f(x)` and **zero**; see arXiv 2305.18290.

    Idea: One line
        goes on: here. Then another.
    Assumes: nothing.

    Args:
        one: the first,
            Note: continued.
        two, three: both.

    Returns (forward):
        a thing; Metric: `m`.

    Source: none.
    """


def test_a_docstring_in_its_parts():
    doc = read_docstring(described)
    assert doc.formula == "a |b| = c_d < 1."
    assert doc.notes == ["    x  |  1\n    y  |  2", "Said of `f(x)` and **zero**; see arXiv 2305.18290."]
    assert doc.sections["Idea"] == "One line goes on: here. Then another."
    assert doc.sections["Returns"] == "a thing; Metric: `m`."
    assert doc.args == {"one": "the first, Note: continued.", "two": "both.", "three": "both."}
    assert (doc.sections["Assumes"], doc.sections["Source"]) == ("nothing.", "none.")


def sentence_first():
    """Fit the log-odds of preferences
    by a margin.

        a = b + c,
        b = 2

    A note.

    Idea: One.
    """


def test_a_docstring_that_begins_with_a_sentence():
    doc = read_docstring(sentence_first)
    assert (doc.summary, doc.formula) == ("Fit the log-odds of preferences by a margin.", "a = b + c,\nb = 2")
    assert doc.notes == ["A note."] and doc.sections == {"Idea": "One."}
    assert read_docstring(described).summary == ""
    short = read_docstring(type("Short", (), {"__doc__": "Generate h.\n\n        h = R\n    "}))
    assert (short.summary, short.formula, short.notes) == ("Generate h.", "h = R", [])


def test_prose_as_markdown():
    escaped = markdown("a_b * c < d, [x] `a_b|c` **zero** $1", lambda code: f"`{code}`")
    assert escaped == r"a\_b \* c \< d, \[x\] `a_b|c` **zero** \$1"
    assert markdown("(2309.06657)") == "([2309.06657](https://arxiv.org/abs/2309.06657))"
    assert cell(r"a \| b | c") == r"a \| b \| c"
