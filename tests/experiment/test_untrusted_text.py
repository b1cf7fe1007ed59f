"""Names and paths that would be obeyed: as folders by the file system, as markup by rich, as control by the terminal."""

import io
import logging
import shutil
from pathlib import Path

from plo.cli.progress import TerminalProgress
from plo.experiment.matrix import compare
from plo.paths import slug
from plo.terminal import Terminal, TerminalHandler


def test_a_comparison_stays_in_its_folder_and_says_names_as_they_are(tiny, tmp_path, caplog):
    bad = "[/red]\x1b]0;x\x07"
    data = tmp_path / f"{bad}.jsonl"
    data.parent.mkdir()
    shutil.copy(tmp_path / "pairs.jsonl", data)
    model = tmp_path / f"tiny{bad}"
    shutil.copytree(tmp_path / "tiny", model)
    before = set(tmp_path.parent.iterdir())
    experiment = tiny(
        name="../../../evil\x1b[2J",
        out=f"out{bad}",
        model={"name": str(model)},
        data={"source": str(data), "eval_fraction": 0.3},
    )
    screen = io.StringIO()
    handler = TerminalHandler(Terminal(file=screen, width=300))
    caplog.set_level("INFO", "plo")
    logging.getLogger("plo").addHandler(handler)
    try:
        assert not compare(experiment, TerminalProgress(handler.console)).failed
    finally:
        logging.getLogger("plo").removeHandler(handler)
    assert "\x1b" not in screen.getvalue() and "[/red]" in screen.getvalue()
    assert [path.name[:4] for path in Path(f"out{bad}").iterdir()] == ["evil"]
    assert set(tmp_path.parent.iterdir()) == before


def test_a_folder_s_name_has_no_way_out():
    assert slug("../../evil") == "evil"
    assert slug("/etc/passwd") == "etc-passwd"
    assert slug("..") == slug("") == slug("\x1b") == "unnamed"
    assert slug("dpo + 0.2*sft(a='b')") == "dpo-+-0.2-sft-a-b"
    assert len(slug("x" * 300)) == 100
    assert slug("hh-first") == "hh-first" and slug("token_level.2") == "token_level.2"
