"""The imports of plo keep the contracts of pyproject.toml: arrows point down, and there is no circle."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_imports_keep_the_contracts():
    # In a process of its own, as import-linter disables all loggers that exist.
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True, no_logo=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_house_is_printed_with_the_ground_below():
    done = subprocess.run([sys.executable, ROOT / "docs/house.py"], capture_output=True, text=True, check=True)

    rooms = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert list(rooms)[-1] == "ground" and list(rooms).index("cli") < list(rooms).index("losses")
    assert rooms["ground"].endswith("-> nothing")
    assert rooms["losses"].split("->")[1].split()[::2] == ["ground"]
