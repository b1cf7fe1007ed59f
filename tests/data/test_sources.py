import csv
import gzip
import json

import datasets
import pytest

from plo.data import SOURCES, DataError, DropReport, load_data, read_rows, register_source
from plo.data.rows import to_row
from plo.data.sources import SENTIMENT, read_source

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def read(source, path=None, **options):
    return list(read_source(source, path, options))


def fails(source, path=None, **options) -> str:
    with pytest.raises(DataError) as error:
        read(source, path, **options)
    return str(error.value)


def test_jsonl_with_bom_windows_line_ends_and_blank_lines(write):
    path = write(
        b"\xef\xbb\xbf" + b'{"prompt": "q", "chosen": "a\xe2\x80\xa8\\r\\n", "rejected": "b"}\r\n\r\n{"x": 1}\r\n'
    )
    first, second = read("file", path)
    assert first == {"prompt": "q", "chosen": "a\u2028\r\n", "rejected": "b", "where": f"{path}:1"}
    assert second["where"] == f"{path}:3"


def test_every_format_gives_the_same_rows(tmp_path, good_rows):
    rows = good_rows(7)
    text = "\n".join(json.dumps(row) for row in rows)
    (tmp_path / "a.jsonl").write_text(text)
    (tmp_path / "lines.json").write_text(text)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.json").write_text(json.dumps(rows, indent=1))
    with (tmp_path / "d.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\r\n")
        writer.writeheader()
        writer.writerows(rows)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "e.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in ("a.jsonl", "lines.json", "b.jsonl.gz", "c.json", "d.csv", "e.parquet", "saved"):
        got = read(str(tmp_path / name))  # a path is a source
        known = [{k: v for k, v in row.items() if k not in ("where", "split")} for row in got]
        assert known == rows, name
        assert str(tmp_path / name) in got[2]["where"]


def test_messages_survive_parquet_and_csv(tmp_path):
    chat = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    datasets.Dataset.from_list([{"chosen": chat, "rejected": chat}]).to_parquet(tmp_path / "e.parquet")
    assert read("file", tmp_path / "e.parquet")[0]["chosen"] == chat
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["chosen", "rejected"], [json.dumps(chat), "[{ not messages"]])
    row = read("file", tmp_path / "d.csv")[0]
    assert to_row({**row, "rejected": row["chosen"].replace('"a"', '"b"')}).chosen == chat[1:]
    assert row["rejected"] == "[{ not messages"


def test_csv_with_long_cells_newlines_and_nul(tmp_path):
    long = "x" * 300_000
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt", "chosen", "rejected"], ["007", "a\r\nb\x00", long]])
    row = read("file", tmp_path / "d.csv")[0]
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("007", "a\r\nb\x00", long)


def test_folder_splits_by_file_names(write):
    write([PAIR], "d/train_clean.jsonl")
    write([PAIR], "d/eval_clean.jsonl")
    write("not data", "d/README.md")
    write("{", "d/.cache/x.jsonl")
    path = write([{**PAIR, "split": "train"}], "d/other.jsonl")
    assert [row["split"] for row in read("file", path.parent)] == ["eval", "train", "train"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"prompt": "q"}\n{"prompt": "q", \n', ["a.jsonl:2", "malformed JSON", "Mend"]),
        ("a.jsonl", "[1]\n", ["a.jsonl[0]", "a row is int", "Write an object"]),
        ("a.jsonl", "[1]\n[2]\n", ["a.jsonl:1", "a row is list", "Write an object"]),
        ("a.jsonl", b'{"prompt": "\xff"}', ["a.jsonl:1", "not UTF-8"]),
        ("a.jsonl", '{"prompt": "q"}'.encode("utf-16"), ["a.jsonl:1", "not UTF-8", "Save"]),
        ("a.jsonl", "[" * 100_000, ["a.jsonl", "unreadable JSON"]),
        ("a.jsonl", "", ["a.jsonl", "no rows"]),
        ("a.jsonl", b"\xef\xbb\xbf\r\n", ["no rows"]),
        ("a.jsonl.gz", b"not gzip", ["a.jsonl.gz", "cannot be read", "Copy"]),
        ("b.jsonl.gz", gzip.compress(b'{"prompt": "q"}\n' * 9000)[:-20], ["cannot be read after row"]),
        ("a.json", '{"prompt": \n nonsense}', ["a.json", "line 2", "nonsense"]),
        ("a.json", "3", ["a.json", "one int", "list of rows"]),
        ("a.json", "[3]", ["a.json[0]", "a row is int"]),
        ("a.json", "  ", ["no rows"]),
        ("a.csv", "prompt,chosen\n", ["a.csv", "no rows"]),
        ("a.csv", "", ["a.csv", "no rows"]),
        ("a.csv", "prompt,prompt\n1,2\n", ["a.csv:1", "twice", "Rename"]),
        ("a.csv", "prompt,chosen\n1,2,3\n", ["a.csv:2", "2 cells", "Quote"]),
        ("a.csv", "prompt,chosen\n1\n", ["a.csv:2", "2 cells"]),
        ("a.csv", 'prompt,chosen\n1,2\n"1"x,2\n', ["a.csv:3", "malformed CSV"]),
        ("a.csv", b"prompt,chosen\n\xff,2\n", ["a.csv", "not UTF-8"]),
        ("a.parquet", b"PAR1 nonsense", ["a.parquet", "malformed Parquet"]),
        ("a.parquet", b"", ["a.parquet", "malformed Parquet"]),
        ("a.txt", "hello", ["'.txt' is not read", ".jsonl, .json"]),
    ],
)
def test_malformed_files(name, content, words, write):
    message = fails("file", write(content, name))
    assert all(word in message for word in words), message


def test_nothing_found(tmp_path):
    assert f"nothing at {tmp_path / 'x'}" in fails("file", tmp_path / "x")
    (tmp_path / "README.md").write_text("x")
    assert "no data file" in fails("file", tmp_path)
    assert "needs a path" in fails("file")


def test_unknown_source_names_near_ones():
    message = fails("ultrafedback")
    assert "Did you mean 'ultrafeedback'" in message and "org/name" in message
    assert "no data source 'missing.jsonl'" in fails("missing.jsonl")
    assert "'a/missing.jsonl'" in fails("a/missing.jsonl")
    assert "no option 'subst'; it has: chat, subset" in fails("hh", "x", subst="y")
    assert "needs the option 'name'" in fails("hub")
    assert "takes no path" in fails("hub", "x", name="org/name")


def test_hub_offline_says_what_to_do():
    message = fails("nobody-plo/nothing")
    assert all(word in message for word in ("'nobody-plo/nothing'", "HF_HUB_OFFLINE", "data.source")), message


def test_a_source_of_ones_own(tokenizer, good_rows):
    @register_source("my_rows", replace=True)
    def my_rows(path, *, count=30):
        for i, row in enumerate(good_rows(count)):
            yield {**row, "where": f"my_rows[{i}]"}

    try:
        data = load_data("my_rows", tokenizer=tokenizer, options={"count": 25})
        assert len(data.train) + len(data.eval) == 25 and data.train[0].columns.keys() == {"margin"}
        with pytest.raises(DataError, match="gave no rows"):
            load_data("my_rows", tokenizer=tokenizer, options={"count": 0})
    finally:
        del SOURCES._entries["my_rows"]


def dialogue(question, answer):
    return f"\n\nHuman: {question}\n\nAssistant:{answer}"


def test_hh_cuts_at_the_last_assistant(write):
    one = dialogue("a", " b" + dialogue("c", " yes\n\nbut"))
    row = read("hh", write([{"chosen": one, "rejected": one.replace("yes", "no")}]))[0]
    assert row["chosen_prompt"] == row["rejected_prompt"] == dialogue("a", " b" + dialogue("c", ""))
    assert (row["chosen"], row["rejected"]) == (" yes\n\nbut", " no\n\nbut")
    assert "'rejected' is missing; there are 'chosen'" in fails("hh", write([{"chosen": "x"}]))
    assert "'chosen' is list" in fails("hh", write([{"chosen": [], "rejected": []}]))


def test_tldr_local_form(write):
    given = {"input_text": "post", "candidate_0": " zero", "candidate_1": " one", "choice": 1, "worker": 3}
    (row,) = read_rows("tldr", write([given]), {}, DropReport())
    assert (row.prompt, row.chosen, row.rejected, row.columns) == ("post", " one", " zero", {"worker": 3.0})
    with pytest.raises(DataError, match="'choice' is 2"):
        read_rows("tldr", write([{**given, "choice": 2}]), {}, DropReport())
    with pytest.raises(DataError, match="'rejected' is missing; there are 'input_text', 'chosen'"):
        read_rows("tldr", write([{"input_text": "p", "chosen": "x"}]), {}, DropReport())


@pytest.fixture
def hub_folder(tmp_path, monkeypatch, write):
    """A working folder in which hub names are folders, so that the real `load_dataset` reads them."""
    hh = {"chosen": dialogue("q", " yes"), "rejected": dialogue("q", " no")}
    write([hh] * 3, "Anthropic/hh-rlhf/harmless-base/train.jsonl")
    write([hh] * 2, "Anthropic/hh-rlhf/harmless-base/test.jsonl")
    write([PAIR] * 3, "trl-lib/tldr-preference/train.jsonl")
    write([PAIR] * 2, "trl-lib/tldr-preference/validation.jsonl")
    chat = {
        "prompt": "q",
        "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
        "messages": [{"role": "user", "content": "q"}],
        "score_chosen": 8.0,
    }
    h4 = "HuggingFaceH4/ultrafeedback_binarized"
    splits = ("train_prefs", "test_prefs", "train_sft")
    config = "configs:\n- config_name: default\n  data_files:\n" + "".join(
        f"  - split: {name}\n    path: data/{name}-*\n" for name in splits
    )
    write(f"---\n{config}---\n", f"{h4}/README.md")
    for name in splits:
        (tmp_path / h4 / "data").mkdir(exist_ok=True)
        datasets.Dataset.from_list([chat]).to_parquet(tmp_path / h4 / f"data/{name}-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_hub_names_through_the_real_load_dataset(hub_folder):
    hh = read("hh", subset="harmless-base")
    assert [row["where"] for row in hh][2:4] == ["Anthropic/hh-rlhf[train][2]", "Anthropic/hh-rlhf[test][0]"]
    assert [row["split"] for row in hh] == ["train"] * 3 + ["eval"] * 2 and hh[0]["chosen"] == " yes"
    tldr = read("tldr")
    assert [row["split"] for row in tldr] == ["train"] * 3 + ["eval"] * 2
    both = [
        read("ultrafeedback"),
        read("ultrafeedback", hub_folder / "HuggingFaceH4/ultrafeedback_binarized"),
    ]
    for rows in both:  # the SFT split is left out
        assert sorted(row["split"] for row in rows) == ["eval", "train"]
        assert rows[0]["score_chosen"] == 8.0 and rows[0]["chosen"][1]["content"] == "a"


def test_any_hub_data_set(hub_folder):
    assert len(read("hub", name="trl-lib/tldr-preference")) == 5
    one = read("hub", name="trl-lib/tldr-preference", split="validation")
    assert (one[0]["split"], one[0]["where"]) == (
        None,
        "trl-lib/tldr-preference[validation][0]",
    )
    message = fails("hub", name="trl-lib/tldr-preference", split="nonsense")
    assert "trl-lib/tldr-preference" in message and "nonsense" in message


def test_a_hub_name_goes_to_load_dataset(hub_folder, monkeypatch):
    asked = {}

    def load_dataset(path, **arguments):
        asked.update(arguments, hub=path)
        return datasets.DatasetDict(train=datasets.Dataset.from_list([PAIR]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    row = read("org/name", config="small", revision="abc")[0]
    assert asked == {"hub": "org/name", "name": "small", "revision": "abc"} and row["split"] == "train"
    assert "has no split 'validation'; it has: train" in fails("tldr")


@pytest.mark.skipif(not SENTIMENT.exists(), reason="the embedded pairs are not made yet")
def test_sentiment_is_embedded(tokenizer):
    data = load_data("sentiment", tokenizer=tokenizer, strict=True)
    with SENTIMENT.open() as file:
        rows = [json.loads(line) for line in file]
    assert len(data.train) == sum(row["split"] == "train" for row in rows)
    assert len(data.eval) == sum(row["split"] == "eval" for row in rows)
    assert {"chosen_reward", "rejected_reward"} <= data.train[0].columns.keys()
    assert SOURCES["sentiment"].facts.gold == "sentiment"
    with pytest.raises(DataError, match="nothing at"):
        load_data("sentiment", "/nowhere", tokenizer=tokenizer)


# The real data: what each holds that is bad, by a reckoning of its own.


def lines(path):
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in file]


def test_real_hh(shared_data, tokenizer):
    rows = lines(shared_data / "hh/harmless-base_test.jsonl.gz")
    mark = "\n\nAssistant:"
    empty = differ = 0
    for row in rows:
        *before, chosen = row["chosen"].split(mark)
        *before2, rejected = row["rejected"].split(mark)
        differ += before != before2
        empty += before == before2 and (chosen.isspace() or rejected.isspace())
    assert (len(rows), empty, differ) == (2312, 4, 5)
    data = load_data("hh", shared_data / "hh", tokenizer=tokenizer, max_length=20_000)
    assert data.report.counts == {"empty response": 4, "prompts differ between the sides": 5}
    assert data.stats["rows"] == 2312 and len(data.train) + len(data.eval) == 2312 - 9
    chat = load_data("hh", shared_data / "hh", tokenizer=tokenizer, max_length=20_000, options={"chat": True})
    assert chat.report.counts == data.report.counts
    assert {pair.where for pair in chat.eval} == {pair.where for pair in data.eval}
    with pytest.raises(DataError, match=r"harmless-base_test.jsonl.gz:87[\s\S]*leave strict out"):
        load_data("hh", shared_data / "hh", tokenizer=tokenizer, strict=True)


def test_real_tldr(shared_data, tokenizer):
    rows = lines(shared_data / "tldr/comparisons.jsonl")
    empty = sum(not (row["candidate_0"].strip() and row["candidate_1"].strip()) for row in rows)
    same = sum(row["candidate_0"].strip() == row["candidate_1"].strip() for row in rows)
    assert (len(rows), empty, same) == (929, 1, 0)
    data = load_data("tldr", shared_data / "tldr", tokenizer=tokenizer, max_length=20_000)
    assert data.report.counts == {"empty response": 1} and len(data.train) + len(data.eval) == 928
    best = {row["input_text"] + row[f"candidate_{row['choice']}"] for row in rows}
    for pair in data.eval:
        text = tokenizer.decode(pair.prompt_ids + pair.chosen_ids[:-1])
        assert text in best


def test_real_ultrafeedback(shared_data, tokenizer):
    kept, dropped = {}, {"empty response": 0, "identical responses": 0}
    for split in ("train", "eval"):
        rows = lines(shared_data / f"ultrafeedback/{split}_clean.jsonl")
        empty = sum(not row["chosen"].strip() or not row["rejected"].strip() for row in rows)
        same = sum(row["chosen"].strip() == row["rejected"].strip() != "" for row in rows)
        dropped["empty response"] += empty
        dropped["identical responses"] += same
        kept[split] = len(rows) - empty - same
    assert dropped == {"empty response": 2, "identical responses": 5}
    data = load_data("ultrafeedback", shared_data / "ultrafeedback", tokenizer=tokenizer, max_length=100_000)
    assert data.report.counts == dropped
    assert {"train": len(data.train), "eval": len(data.eval)} == kept  # the files fix the split
    assert data.train[0].columns.keys() == {"source_index"}
