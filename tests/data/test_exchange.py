"""TRL's preference format: what plo writes `datasets` and TRL read back, and plo itself reads the same rows."""

import datasets
import pytest
from trl.data_utils import is_conversational, maybe_extract_prompt

from plo.data import DataError, DropReport, Row, read_rows
from plo.data.exchange import to_trl, write_records

PLAIN = Row("2 + 2 =", " 4\u2028or so", " 5 \U0001f600", {"margin": 1.5})
CHAT = Row(
    [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
    [{"role": "assistant", "content": "Hello!"}],
    [{"role": "assistant", "content": "What?"}],
)


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("row", [PLAIN, CHAT], ids=["plain", "conversational"])
def test_datasets_trl_and_plo_read_what_was_written(row, suffix, tmp_path):
    path = tmp_path / f"pairs{suffix}"
    assert write_records(path, [to_trl(row)] * 2) == 2
    kind = "json" if suffix == ".jsonl" else "parquet"
    loaded = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded[1] == to_trl(row) and is_conversational(loaded[0]) == row.conversational
    assert maybe_extract_prompt(dict(loaded[0])) == loaded[0]  # the prompt is explicit
    [again, _] = read_rows(str(path), None, {}, DropReport("x"))
    assert (again.prompt, again.chosen, again.rejected, again.columns) == (
        row.prompt,
        row.chosen,
        row.rejected,
        row.columns,
    )


def test_trls_implicit_prompt_becomes_explicit(tmp_path):
    implicit = {side: CHAT.prompt + getattr(CHAT, side) for side in ("chosen", "rejected")}
    write_records(tmp_path / "implicit.jsonl", [implicit])
    [row] = read_rows(str(tmp_path / "implicit.jsonl"), None, {}, DropReport("x"))
    assert to_trl(row) == to_trl(CHAT) == maybe_extract_prompt(dict(implicit))


@pytest.mark.parametrize(("name", "rows", "message"), [("x.csv", [{}], "not written"), ("x.jsonl", [], "no rows")])
def test_what_cannot_be_written_is_refused(name, rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        write_records(tmp_path / name, rows)
