"""Every remedy that a message of `plo.data` names is applied here as the message says it, and the data are read."""

import json
import re

import pytest

from plo.config import load_experiment
from plo.data import DataError, load_data

PLAIN = [{"prompt": f"Question {i}?", "chosen": " yes", "rejected": " no"} for i in range(40)]
RENAMED = [{"prompt": row["prompt"], "best_chosen": row["chosen"], "rejected": row["rejected"]} for row in PLAIN]
OTHERS = [{"q": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in PLAIN]
CHAT = {
    "prompt": [{"role": "user", "content": "q"}],
    "chosen": [{"role": "assistant", "content": "a"}],
    "rejected": [{"role": "assistant", "content": "b"}],
}
LONG = [{"prompt": f"p{i}", "chosen": f"{i} " * 60 + "yes", "rejected": f"{i} " * 60 + "no"} for i in range(40)]
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


def split(rows, *names):
    return [{**row, "split": names[i % len(names)]} for i, row in enumerate(rows)]


def rows_with(**more):
    return [{**row, **more} for row in PLAIN]


def settings(**data):
    """As `plo compare` hands them on: what the command line refuses, no remedy may name."""
    return load_experiment(None, {"losses": ["dpo"], "data": {"eval_fraction": 0.3, **data}}).data.model_dump(
        exclude={"origin", "flip", "sample"}
    )


def load(tokenizer, **data):
    data = settings(**data)
    return load_data(data.pop("source"), data.pop("path"), tokenizer=tokenizer, **data)


# rows or text, its settings, what the message says must be changed, the changed settings
BY_SETTINGS = [
    (RENAMED, {}, "data.columns: {chosen: best_chosen}", {"columns": {"chosen": "best_chosen"}}),
    (OTHERS, {}, "data.columns: {prompt: NAME, chosen: NAME, rejected: NAME}",
     {"columns": {"prompt": "q", "chosen": "good", "rejected": "bad"}}),
    (rows_with(split="part two"), {}, "data.columns: {split: null}", {"columns": {"split": None}}),
    (rows_with(tools=[{"name": "f"}]), {}, "data.columns: {tools: null, chat_template_kwargs: null}",
     {"columns": {"tools": None, "chat_template_kwargs": None}}),
    ([{**CHAT, "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": f"q{i}"}], "system": "t"}
      for i in range(40)], {}, "data.columns: {system: null}", {"columns": {"system": None}}),
    ([*PLAIN, CHAT], {}, "data.options: {chat: true}", {"options": {"chat": True}}),
    (PLAIN, {"options": {"chat": "yes"}}, "Give true or false", {"options": {"chat": True}}),
    (PLAIN, {"eval_fraction": 0.001}, "Raise data.eval_fraction", {"eval_fraction": 0.5}),
    (PLAIN, {"eval_fraction": 0.9999}, "Lower data.eval_fraction", {"eval_fraction": 0.5}),
    (split(PLAIN, "train") + split(PLAIN, "eval"), {}, "data.columns: {split: null}", {"columns": {"split": None}}),
    (LONG, {"max_length": 20}, "raise data.max_length", {"max_length": 512}),
    (split(PLAIN, "train") + split(LONG[:2], "eval"), {"max_length": 40, "limit": None}, "raise data.max_length",
     {"max_length": 512}),
    ([*PLAIN, {**PLAIN[0], "chosen": ""}], {"strict": True}, "leave strict out", {"strict": False}),
    (PLAIN, {"max_length": 1}, "Give 2 or more", {"max_length": 200}),
    (PLAIN, {"options": {"subset": "x"}}, "it has: chat", {"options": {"chat": True}}),
    ([{"instruction": r["prompt"], "history": "?", "chosen": "a", "rejected": "b"} for r in PLAIN], {},
     "data.columns: {history: null}", {"columns": {"history": None}}),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "before", "remedy", "after"), BY_SETTINGS)
def test_settings_that_a_message_names(rows, before, remedy, after, write, tokenizer):
    source = str(write(rows))
    with pytest.raises(DataError) as error:
        load(tokenizer, source=source, **before)
    assert remedy in str(error.value), error.value
    assert load(tokenizer, source=source, **{**before, **after}).train


def test_the_remedy_for_a_held_out_part_is_one_that_the_configuration_takes(write, tokenizer):
    """`eval_fraction=0` was named, and refused by the configuration: a comparison has to hold out something."""
    with pytest.raises(DataError) as error:
        load(tokenizer, source=str(write(PLAIN)), eval_fraction=0.001)
    assert not re.search(r"eval_fraction=0\b", str(error.value))
    assert load(tokenizer, source=str(write(PLAIN)), eval_fraction=0.3).eval


# source, settings, what the message says, the changed settings; {} is the file
BY_SOURCE = [
    ({"source": "hub", "path": "{}", "options": {"name": "org/name"}}, "itself as data.source", {"source": "{}"}),
    ({"source": "file"}, "itself as data.source", {"source": "{}"}),
    ({"source": "hub"}, "Set data.options: {name: ...}", {"source": "{}"}),
    ({"source": "nobody-plo/nothing"}, "a local copy as data.source", {"source": "{}"}),
    ({"source": "hub", "options": {"name": "nobody-plo/nothing"}}, "a local copy as data.source", {"source": "{}"}),
    ({"source": "tldr"}, "a local copy as data.path", {"source": "tldr", "path": "{}"}),
    ({"source": "missing.jsonl"}, "give an existing file", {"source": "{}"}),
]


@pytest.mark.parametrize(("before", "remedy", "after"), BY_SOURCE)
def test_sources_that_a_message_names(before, remedy, after, write, tokenizer):
    path = str(write(PLAIN))
    place = {k: path if v == "{}" else v for k, v in before.items()}
    with pytest.raises(DataError) as error:
        load(tokenizer, **place)
    assert remedy in str(error.value), error.value
    assert load(tokenizer, **{k: path if v == "{}" else v for k, v in after.items()}).train


def test_columns_that_a_registered_source_lacks_are_named_for_the_file_itself(write, tokenizer):
    path = str(write(RENAMED))
    with pytest.raises(DataError, match=r"itself as data.source.*data.columns: \{prompt"):
        load(tokenizer, source="hh", path=path)
    assert load(tokenizer, source=path, columns={"chosen": "best_chosen"}).train
    sides = ("chosen", "rejected")
    lists = str(
        write([{side: [{"role": "user", "content": row["prompt"]}, *CHAT[side]] for side in sides} for row in PLAIN])
    )
    with pytest.raises(DataError, match="file or folder itself as data.source"):
        load(tokenizer, source="hh", path=lists)
    assert load(tokenizer, source=lists).train


def text_of(rows):
    return "\n".join(map(json.dumps, rows))


# a broken file, what the message says, the mended file
BY_FILE = [
    ("a.csv", "prompt,chosen,rejected\nq,a,b,c\n", "Quote cells that hold a comma", 'prompt,chosen,rejected\nq,"a,b",c\n'),
    ("a.csv", "prompt;chosen;rejected\nq;a;b;c\n", "hold a semicolon", 'prompt;chosen;rejected\nq;"a;b";c\n'),
    ("a.csv", "prompt,prompt\nq,a\n", "Rename one of them", "prompt,chosen,rejected\nq,a,b\n"),
    ("a.csv", b"prompt,chosen,rejected\nq,\xe9,b\n", "Save it as UTF-8", "prompt,chosen,rejected\nq,é,b\n"),
    ("a.jsonl", '{"prompt": "q"', "Mend it", text_of(PLAIN)),
    ("a.jsonl", '{"prompt": "q"}'.encode("utf-16"), "Save the file as UTF-8", text_of(PLAIN)),
    ("a.jsonl", "", "Fill it", text_of(PLAIN)),
    ("a.json", "3", "Write [{...}, ...]", json.dumps(PLAIN)),
    ("a.json", "[3]", 'Write an object {"prompt": ...}', json.dumps(PLAIN)),
    ("a.jsonl", text_of(rows_with(chosen=3)), "Give text, or a list of messages", text_of(PLAIN)),
    ("a.jsonl", text_of(rows_with(chosen=CHAT["chosen"])), "Give both in one form",
     text_of(rows_with(chosen=CHAT["chosen"], rejected=CHAT["rejected"]))),
    ("a.jsonl", text_of(rows_with(chosen=["x"])), '{"role": text, "content": text}',
     text_of(rows_with(chosen=CHAT["chosen"], rejected=CHAT["rejected"]))),
    ("a.jsonl", text_of(rows_with(chosen=["x"])), '{"from": "human", "gpt" or "system", "value": text}',
     text_of(rows_with(chosen=[{"from": "gpt", "value": "a"}], rejected=CHAT["rejected"]))),
    ("a.jsonl", text_of(rows_with(chosen="['a']", rejected='["b"]')), "without brackets and quotes", text_of(PLAIN)),
    ("a.jsonl", text_of(rows_with(chosen="['a', 'c']", rejected='["b"]')), "Write the text itself", text_of(PLAIN)),
    ("a.jsonl", text_of(rows_with(prompt="['q']")), "the prompts are lists of texts", text_of(PLAIN)),
    ("a.jsonl", text_of(rows_with(split="x")), "Write 'train' or 'eval'", text_of(rows_with(split="train"))),
    ("a.jsonl", text_of(rows_with(rejected="")), "Mend or remove these rows", text_of(PLAIN)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "broken", "remedy", "mended"), BY_FILE)
def test_changes_of_the_file_that_a_message_names(name, broken, remedy, mended, write, tokenizer):
    with pytest.raises(DataError) as error:
        load(tokenizer, source=str(write(broken, name)))
    assert remedy in str(error.value), error.value
    path = write(mended, name)
    assert load_data("file", path, tokenizer=tokenizer, eval_fraction=0).train


def test_readers_that_a_message_names(write, tokenizer):
    from plo.data import SOURCES, register_source

    path = write([{"a": 1}])
    with pytest.raises(DataError, match="plo.data.register_source"):
        load(tokenizer, source=str(path))

    @register_source("a_reader_of_my_own")
    def reader(path):
        for number, row in enumerate(PLAIN):
            yield {**row, "where": f"{path}:{number}"}

    try:
        assert load(tokenizer, source="a_reader_of_my_own", path=str(path)).train
    finally:
        del SOURCES._entries["a_reader_of_my_own"]


def test_tokenizers_that_a_message_names(make_tokenizer, tmp_path, write):
    from transformers import AutoTokenizer

    def changed(**settings):
        make_tokenizer(eos_token=None, chat_template=None).save_pretrained(tmp_path / "t")
        config = tmp_path / "t" / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | settings))
        return AutoTokenizer.from_pretrained(tmp_path / "t")

    plain, chat = str(write(PLAIN)), str(write([CHAT | {"prompt": r["prompt"]} for r in PLAIN], "chat.jsonl"))
    with pytest.raises(DataError, match="Set eos_token in its tokenizer_config.json"):
        load(changed(), source=plain)
    assert load(changed(eos_token="<|im_end|>"), source=plain).train
    with pytest.raises(DataError, match="set chat_template in its tokenizer_config.json"):
        load(changed(eos_token="<|im_end|>"), source=chat)
    assert load(changed(eos_token="<|im_end|>", chat_template=NO_SYSTEM), source=chat).train
    with_system = str(write([CHAT | {"prompt": r["prompt"], "system": "s"} for r in PLAIN], "system.jsonl"))
    with pytest.raises(DataError, match=r"data.columns: \{system: null\}"):
        load(make_tokenizer(chat_template=NO_SYSTEM), source=with_system)
    assert load(make_tokenizer(chat_template=NO_SYSTEM), source=with_system, columns={"system": None}).train
