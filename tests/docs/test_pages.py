"""README keeps its size, every link of README and docs leads somewhere, and the site is built without a warning."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from plo.losses import LOSSES
from plo.scorers import RECIPES

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    p.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md")
    for p in ROOT.glob(pattern)
)
GENERATED = {"docs/reference/cli.md", "docs/reference/settings.md"}  # by docs/hooks.py, when the site is built
CODE = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)


def prose(page):
    return CODE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def anchors(page):
    """Return the anchors of a page's headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_readme_fits_its_frame():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 100] == []


def test_readme_counts_the_losses():
    entries = [entry for registry in (LOSSES, RECIPES) for entry in registry]
    built_in = [entry for entry in entries if getattr(entry.load(), "__module__", "").startswith("plo.")]
    built_in = [entry for entry in built_in if not getattr(entry.facts, "ceiling", False)]  # no method
    assert f"**{len(built_in)} losses**" in prose("README.md")
    assert f"| {len(built_in)}, TRL's among them |" in prose("README.md")


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    text = prose(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[\w+\]: (\S+)$", text, re.MULTILINE)
    for target in targets:
        if target.startswith(("http:", "https:")):
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        name = found.resolve().relative_to(ROOT).as_posix()
        assert found.exists() or name in GENERATED, f"{page} links to {target}"
        if anchor and name.endswith(".md"):
            assert anchor in anchors(name), f"{page} links to {target}, and {name} has no such heading"


@pytest.mark.parametrize("page", PAGES)
def test_every_path_of_the_repository_exists(page):
    folders = "benchmarks|docs|evals|examples|leaderboards|losses|plo|tests"
    paths = re.findall(rf"(?<![\w/.:-])(?:{folders})/[\w/.-]*\.\w+", (ROOT / page).read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_citation_names_the_version():
    import plo

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == plo.__version__
    assert citation["authors"] == [{"name": "The plo authors"}] and "doi" not in citation


@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="the extra docs is not installed")
def test_site_is_built_and_loads_nothing_from_the_network(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="?(https?:[^">\s]+)', page.read_text())
        loaded += re.findall(
            r'<link[^>]*rel="?(?:stylesheet|preload|preconnect)"?[^>]*href="?(https?:[^">\s]+)', page.read_text()
        )
        assert not loaded, f"{page.relative_to(tmp_path)} loads {loaded}"
    assert "hinge2" in (tmp_path / "search" / "search_index.json").read_text()
    assert "train.batch_size" in (tmp_path / "reference" / "settings.html").read_text()
