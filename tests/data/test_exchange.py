"""TRL's preference format: what plo writes `datasets` and TRL read back, and plo itself reads the same rows."""

import json

import datasets
import pytest
from trl.data_utils import is_conversational, maybe_extract_prompt
from typer.testing import CliRunner

from plo.cli import app
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


def test_a_column_that_only_later_rows_have_is_written(tmp_path):
    rows = [to_trl(row) for row in (Row("p", "a", "b"), PLAIN)]
    assert write_records(tmp_path / "pairs.parquet", rows) == 2
    again = datasets.Dataset.from_parquet(str(tmp_path / "pairs.parquet"), cache_dir=str(tmp_path / "cache"))
    assert again["margin"] == [None, 1.5] and again["chosen"] == ["a", PLAIN.chosen]


def test_trls_implicit_prompt_becomes_explicit(tmp_path):
    implicit = {side: CHAT.prompt + getattr(CHAT, side) for side in ("chosen", "rejected")}
    write_records(tmp_path / "implicit.jsonl", [implicit])
    [row] = read_rows(str(tmp_path / "implicit.jsonl"), None, {}, DropReport("x"))
    assert to_trl(row) == to_trl(CHAT) == maybe_extract_prompt(dict(implicit))


@pytest.mark.parametrize(("name", "rows", "message"), [("x.csv", [{}], "not written"), ("x.jsonl", [], "no rows")])
def test_what_cannot_be_written_is_refused(name, rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        write_records(tmp_path / name, rows)


def test_an_import_names_columns_as_an_experiment_does(tmp_path):
    (tmp_path / "mine.csv").write_text(
        "question,good,bad,margin\nHow?, so, no,2\nWhy?, because,  ,1\n" + "Who?, me, you,3\n" * 30
    )
    names = ["data.columns.prompt=question", "data.columns.chosen=good", "data.columns.rejected=bad"]
    out = tmp_path / "pairs.jsonl"
    result = CliRunner().invoke(app, ["data", "import", str(tmp_path / "mine.csv"), *names, "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert json.loads(out.read_text().splitlines()[0]) == {
        "prompt": "How?", "chosen": " so", "rejected": " no", "margin": 2.0,
    }  # fmt: skip
    assert len(out.read_text().splitlines()) == 31  # the row with an empty response is left out
    refused = CliRunner().invoke(app, ["data", "import", "mine.csv", "data.limit=3", "--out", str(out)])
    assert refused.exit_code == 2 and "data.columns.prompt=question" in refused.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample", "--cell", "dpo seed 0"], "--cell has no effect with sample, which reads --out, --answers"),
        (["export", "--out", "a.jsonl", "--answers", "b.jsonl"], "--answers has no effect with export"),
        (["import", "a.jsonl", "--held-out", "b.jsonl"], "--held-out has no effect with import, which reads --out"),
    ],
)
def test_an_option_that_an_action_does_not_read_is_refused(arguments, message):
    refused = CliRunner().invoke(app, ["data", *arguments])
    assert refused.exit_code == 2 and message in " ".join(refused.output.replace("│", " ").split())


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_sampled(monkeypatch):
    monkeypatch.setattr("plo.cli.data._experiment", lambda *_: pytest.fail("read the experiment"))
    refused = CliRunner().invoke(app, ["data", "sample", "--out", "pairs.csv"])
    assert refused.exit_code == 2 and "'.csv' is not written" in " ".join(refused.output.split())
