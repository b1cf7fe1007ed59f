import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from plo.data import DataError, Row, load_data, render, tokenize_prompt
from plo.data.rows import BadRow, to_chat
from plo.data.tokenize import tokenize_rows


def messages(text, role="assistant"):
    return [{"role": role, "content": text}]


PLAIN = [
    Row("The capital of France is", " Paris", " large"),
    Row("How do I b", "ake<|im_end|>", "aked"),  # the prompt's end merges with both responses
    Row("How do I b", "ake", " loaf"),  # and with one of them
    Row("Question:\n", "\nanswer", " other"),
    Row("EOS is there", " yes<|im_end|>", " no"),
    Row("a forged <|im_end|>\n<|im_start|>system", " turn <|im_start|>", " none"),
    Row("nul \x00 and \u2028 and 日本語 🙂", " é\r\n", " e\u0301\x00"),
    Row("long" * 30, " yes" * 50, " no" * 30),
    Row("exactly", " a b c d e f g h i j k l m n o p q r s t u v w x y z", " z"),
]
CHAT = [to_chat(row) for row in PLAIN[:1] + PLAIN[2:]] + [
    Row(
        [{"role": "system", "content": "Be kind."}, *messages("hi", "user")],
        messages("hello"),
        messages("no"),
    ),
    Row(messages("one", "user") + messages("two") + messages("three", "user"), messages("4"), messages("5 6")),
]


@pytest.fixture(scope="module")
def trl_rows(tmp_path_factory):
    """TRL's own preparation of rows: ids as its trainer feeds them."""

    def prepare(rows, tokenizer, max_length=None, truncation="keep_start"):
        config = LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1,
        )  # fmt: skip
        columns = {side: [getattr(row, side) for row in rows] for side in ("prompt", "chosen", "rejected")}
        trainer = DPOTrainer(
            model=LlamaForCausalLM(config),
            ref_model=LlamaForCausalLM(config),
            args=DPOConfig(
                output_dir=str(tmp_path_factory.mktemp("trl")), max_length=max_length, report_to="none",
                truncation_mode=truncation, use_cpu=True, bf16=False, gradient_checkpointing=False,
            ),
            train_dataset=Dataset.from_dict(columns),
            processing_class=tokenizer,
        )  # fmt: skip
        return list(trainer.train_dataset)

    return prepare


def collated(rows, max_length=None, truncation="keep_start"):
    """Per row and side: ids of the sequence, and which of them are the response, after TRL's truncation."""
    batch = DataCollatorForPreference(pad_token_id=0, max_length=max_length, truncation_mode=truncation)(rows)
    keep = batch["attention_mask"].bool()
    ids = [x[k].tolist() for x, k in zip(batch["input_ids"], keep, strict=True)]
    mask = [x[k].tolist() for x, k in zip(batch["completion_mask"], keep, strict=True)]
    return list(zip(ids[: len(rows)], mask[: len(rows)], ids[len(rows) :], mask[len(rows) :], strict=True))


def ours(pairs):
    out = []
    for pair in pairs:
        sides = []
        for response in (pair.chosen_ids, pair.rejected_ids):
            sides += [[*pair.prompt_ids, *response], [0] * len(pair.prompt_ids) + [1] * len(response)]
        out.append(tuple(sides))
    return out


def pairs_of(rows, tokenizer, max_length=10_000, truncation="keep_start"):
    return [pair for _, pair, _ in tokenize_rows(rows, tokenizer, max_length, truncation)]


@pytest.mark.parametrize("rows", [PLAIN, CHAT], ids=["plain", "chat"])
def test_ids_are_trls(rows, tokenizer, trl_rows):
    theirs = trl_rows(rows, tokenizer)
    assert len(theirs) == len(rows)
    for pair, their in zip(pairs_of(rows, tokenizer), theirs, strict=True):
        for name in ("prompt_ids", "chosen_ids", "rejected_ids"):
            assert list(getattr(pair, name)) == their[name], (name, pair.prompt)


@pytest.mark.parametrize("rows", [PLAIN, CHAT], ids=["plain", "chat"])
def test_keep_start_is_trls(rows, tokenizer, trl_rows):
    theirs = collated(trl_rows(rows, tokenizer, 40), 40)
    pairs = [pair for pair in pairs_of(rows, tokenizer, 40) if not isinstance(pair, str)]
    assert len(pairs) < len(rows)  # the row whose prompt alone is longer goes, in both
    assert ours(pairs) == theirs
    assert any(len(pair.prompt_ids + pair.chosen_ids) == 40 for pair in pairs)


def test_keep_end_is_trls_but_for_one_prompt_a_pair(tokenizer, trl_rows):
    rows = [row for row in PLAIN if row.prompt != PLAIN[7].prompt]
    rows.append(Row("long" * 30, " yes yes", " no no"))
    pairs = pairs_of(rows, tokenizer, 30, "keep_end")
    theirs = collated(trl_rows(rows, tokenizer, 30, "keep_end"), 30, "keep_end")
    cut = 0
    for pair, (chosen, chosen_mask, rejected, rejected_mask) in zip(pairs, theirs, strict=True):
        if isinstance(pair, str):  # a response that alone fills max_length has no prompt left
            assert pair == "no prompt token before the response" and (all(chosen_mask) or all(rejected_mask))
            continue
        longer = max(sum(chosen_mask), sum(rejected_mask))
        assert len(pair.prompt_ids) <= 30 - longer
        for response, ids, mask in (
            (pair.chosen_ids, chosen, chosen_mask),
            (pair.rejected_ids, rejected, rejected_mask),
        ):
            assert len(response) == sum(mask)  # responses stay whole
            mine = [*pair.prompt_ids, *response]
            assert mine == ids[-len(mine) :]  # theirs may begin earlier, on the shorter side
            assert sum(mask) < longer or mine == ids
        cut += len(pair.prompt_ids) + longer == 30
    assert cut >= 1


def test_merges_end_the_prompt_before_them(tokenizer, tokenize_row):
    pair = tokenize_row(PLAIN[2], tokenizer)
    assert tokenizer.decode(pair.prompt_ids) == "How do" and pair.prompt == "How do I b"
    for side, text in ((pair.chosen_ids, "How do I bake"), (pair.rejected_ids, "How do I b loaf")):
        assert tokenizer.decode(pair.prompt_ids + side) == text + "<|im_end|>"
    _, _, counts = next(tokenize_rows([PLAIN[2]], tokenizer, 99, "keep_start"))
    assert counts["merged_boundaries"] == 1


def test_eos_once_on_plain_rows_and_the_templates_on_chat(tokenizer, tokenize_row):
    eos = tokenizer.eos_token_id
    pair = tokenize_row(PLAIN[4], tokenizer)
    assert pair.chosen_ids.count(eos) == pair.rejected_ids.count(eos) == 1
    chat = tokenize_row(to_chat(PLAIN[0]), tokenizer)
    assert chat.chosen_ids[-2:] == (
        eos,
        *tokenizer("\n")["input_ids"],
    )  # as the template writes it, as in TRL


def test_a_template_without_eos_is_counted_not_mended(make_tokenizer):
    template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{% endfor %}"
    bare = make_tokenizer(chat_template=template + "{% if add_generation_prompt %}[assistant] {% endif %}")
    _, pair, counts = next(tokenize_rows([to_chat(PLAIN[0])], bare, 99, "keep_start"))
    assert bare.eos_token_id not in pair.chosen_ids and counts["responses_without_eos"] == 2


def test_a_response_may_end_as_the_models_generation_settings_say(make_tokenizer, write, good_rows):
    """Gemma-it: EOS is one token, the template ends a turn with another one, which only `generation_config` names."""
    gemma = make_tokenizer(eos_token="<|endoftext|>")  # CHATML ends turns with <|im_end|>
    turn = gemma.convert_tokens_to_ids("<|im_end|>")
    options = {"tokenizer": gemma, "options": {"chat": True}}
    unknown = load_data("file", write(good_rows(30)), **options)
    known = load_data("file", write(good_rows(30)), **options, ends=[turn])
    assert unknown.stats["responses_without_eos"] == 2 * len(unknown.train + unknown.eval)
    assert known.stats["responses_without_eos"] == 0 and "without EOS" not in str(known.summary())
    assert known.digest == unknown.digest
    cut = load_data("file", write(good_rows(30)), **options, ends=[turn], max_length=len(known.train[0].prompt_ids) + 2)
    assert cut.stats["responses_without_eos"] > 0


def test_a_template_that_changes_the_prompts_end_is_no_merge(make_tokenizer, write, good_rows):
    """As Qwen3's: the generation prompt holds an empty thought, which the template leaves out where a response follows."""
    thought = "{% if add_generation_prompt %}<|im_start|>assistant\n<think></think>\n{% endif %}"
    changing = make_tokenizer(chat_template=make_tokenizer().chat_template.partition("{% if")[0] + thought)
    row = to_chat(Row("Which?", "Yes, this", "No, that"))
    _, pair, counts = next(tokenize_rows([row], changing, 99, "keep_start"))
    assert changing.decode(pair.prompt_ids).endswith("<|im_start|>assistant\n")
    taken_back = len(changing("<think></think>\n")["input_ids"])
    assert counts["merged_boundaries"] == 0 and counts["rewritten_prompts"] == 1
    assert counts["rewritten_tokens"] == taken_back > 1
    data = load_data("file", write(good_rows(30)), tokenizer=changing, options={"chat": True})
    rows = len(data.train + data.eval)
    said = str(data.summary())
    assert (
        f"{rows} prompts that the chat template ends differently once a response follows: {rows * taken_back} tokens"
        in said
    )
    assert "merges" not in said


@pytest.mark.parametrize("row", [Row("Sampled:", "yes", "no"), PLAIN[2], *CHAT[-2:]])
def test_the_prompt_for_sampling_has_the_ids_of_training(row, tokenizer):
    _, pair, counts = next(tokenize_rows([row], tokenizer, 99, "keep_start"))
    ids = tokenize_prompt(row.prompt, tokenizer)
    assert ids[: len(pair.prompt_ids)] == pair.prompt_ids
    assert (ids == pair.prompt_ids) == (not counts["merged_boundaries"])
    assert counts["merged_boundaries"] == (row is PLAIN[2]) and render(row, tokenizer)[0] == pair.prompt


def test_batches_give_what_single_rows_give(tokenizer, tokenize_row):
    many = [Row(f"{row.prompt} {i}", row.chosen, row.rejected) for i in range(60) for row in PLAIN]
    assert pairs_of(many, tokenizer) == [tokenize_row(row, tokenizer, 10_000) for row in many]


@pytest.mark.parametrize(
    ("row", "settings", "reason"),
    [
        (Row("long" * 30, "a", "b"), {"max_length": 20}, "truncation leaves a response empty"),
        (
            Row("q", "same" * 9 + "a", "same" * 9 + "b"),
            {"max_length": 9},
            "truncation leaves identical responses",
        ),
        (Row("q", "a" * 99, "b"), {"max_length": 20, "truncation": "keep_end"}, "no prompt token"),
        (Row("", "a", "b"), {}, "no prompt token"),
        (Row("un", "happy", "happily"), {}, "no prompt token"),  # all of the prompt merges
        (Row("q", "<|im_end|>", "b"), {}, "empty response"),
        (Row("q", "b<|im_end|>", "b"), {}, "identical responses"),
    ],
)
def test_reasons(row, settings, reason, tokenizer, tokenize_row):
    with pytest.raises(BadRow, match=reason):
        tokenize_row(row, tokenizer, **settings)


def test_stats_count_what_happened_to_kept_pairs(tokenizer, write):
    rows = [{"prompt": f"Question {i}?", "chosen": " yes", "rejected": " no"} for i in range(60)]
    rows[0] |= {"chosen": " a b c d e f g h i j k l m n o p q r s t u v w"}
    rows[1] |= {"prompt": "Forged <|im_end|>"}
    rows[2] |= {"prompt": "x" * 99}
    data = load_data("file", write(rows), tokenizer=tokenizer, max_length=30)
    known = {"truncated_responses": 1, "responses_without_eos": 1, "rows_with_special_tokens": 1}
    assert {name: data.stats[name] for name in known} == known
    assert data.report.counts == {"truncation leaves a response empty": 1}
    for words in ("1 responses truncated", "1 rows whose text holds a special token", "pairs.jsonl:3"):
        assert words in str(data.summary())
    ids = [i for p in data.train for i in (*p.prompt_ids, *p.chosen_ids, *p.rejected_ids)]
    assert torch.tensor(ids).max() < len(tokenizer)


def test_lone_surrogates_and_long_lines_are_no_crash(tokenizer, write, good_rows):
    rows = [*good_rows(40), {"prompt": "q", "chosen": "\ud800", "rejected": "b"}]
    rows.append({"prompt": "q", "chosen": "x" * 100_000, "rejected": "\x00"})
    data = load_data("file", write(rows), tokenizer=tokenizer)
    assert data.report.counts == {"text is not valid Unicode": 1}
    assert max(len(p.prompt_ids + p.chosen_ids) for p in data.train + data.eval) == 512


@pytest.mark.parametrize(
    ("changes", "chat", "words"),
    [
        ({"eos_token": None}, False, ["no EOS token", "Set eos_token in its tokenizer_config"]),
        ({"eos_token": None}, True, ["no EOS token"]),
        ({"chat_template": None}, True, ["no chat template", "set chat_template in its tokenizer_config"]),
        ({"chat_template": {"tool_use": "x"}}, True, ["no chat template"]),
        (
            {"chat_template": "{{ raise_exception('no') }}"},
            True,
            ["pairs.jsonl:", "refuses the row", "no", "user"],
        ),
        ({"chat_template": "{{ nonsense("}, True, ["refuses the row", "TemplateSyntaxError"]),
    ],
)
def test_tokenizers_that_lack_what_is_needed(changes, chat, words, make_tokenizer, write, good_rows):
    with pytest.raises(DataError) as error:
        load_data("file", write(good_rows()), tokenizer=make_tokenizer(**changes), options={"chat": chat})
    assert all(word in str(error.value) for word in words), error.value


def test_a_tokenizer_without_template_serves_plain_rows(make_tokenizer, write, good_rows):
    data = load_data("file", write(good_rows()), tokenizer=make_tokenizer(chat_template=None))
    assert data.fingerprints["template"] and data.train


def test_a_dated_template_is_told(make_tokenizer, tokenizer, write, good_rows):
    dated = make_tokenizer(chat_template="{{ strftime_now('%Y') }}" + tokenizer.chat_template)
    data = load_data("file", write(good_rows()), tokenizer=dated, options={"chat": True})
    assert "from day to day" in str(data.summary())


def test_a_row_that_the_tokenizer_refuses_is_named(tokenizer):
    rows = [Row("fine", "a", "b", where="f:1"), Row("\ud800", "a", "b", where="f:2")]
    with pytest.raises(DataError, match=r"f:2: the tokenizer .* cannot tokenise"):
        pairs_of(rows, tokenizer)


def test_mixed_rows_are_an_error_and_chat_mends_it(tokenizer, write, good_rows):
    chat = {"prompt": messages("q", "user"), "chosen": messages("a"), "rejected": messages("b")}
    path = write([*good_rows(), chat])
    with pytest.raises(DataError, match=r"mixed: .*:1 and .*:41.*chat: true"):
        load_data("file", path, tokenizer=tokenizer)
    assert load_data("file", path, tokenizer=tokenizer, options={"chat": True}).stats["rows"] == 41


def test_a_row_made_by_hand_of_text_and_messages_is_an_error(tokenizer):
    with pytest.raises(DataError, match="neither all text nor all messages"):
        render(Row(messages("hi", "user"), "yes", "no"), tokenizer)


def test_real_rows_have_trls_ids_with_the_embedded_tokenizer(shared_data, trl_rows):
    """HH as text and as chat, and UltraFeedback, on the embedded model's tokenizer, truncation included."""
    embedded = pytest.importorskip("plo.embedded")
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(embedded.embedded_model())
    except embedded.EmbeddedModelError as error:
        pytest.skip(str(error))
    for source, chat in (("hh", False), ("hh", True), ("ultrafeedback", True)):
        from plo.data.rows import check, to_row
        from plo.data.sources import read_source

        rows = []
        for raw in read_source(source, shared_data / source, {}):
            try:
                row = to_row(raw)
            except BadRow:
                continue
            if check(row) is None:
                rows.append(to_chat(row) if chat else row)
            if len(rows) == 80:
                break
        theirs = collated(trl_rows(rows, tokenizer, 256), 256)
        pairs = [pair for pair in pairs_of(rows, tokenizer, 256) if not isinstance(pair, str)]
        assert ours(pairs) == theirs, source


def test_long_texts_are_tokenised_once_on_a_machine(tmp_path, monkeypatch, harm):
    from transformers import AutoTokenizer

    from plo import caches
    from plo.data import token_cache
    from plo.pocket.model import pocket_model
    from plo.pocket.words import WORDS

    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(token_cache, "LONG", 15)
    tokenizer, called = AutoTokenizer.from_pretrained(pocket_model()), []
    texts = [" ".join(WORDS[1:9]), WORDS[5], " ".join(WORDS[6:15])]
    expected = [tokenizer(text)["input_ids"] for text in texts]

    def ids(texts, tokenizer=tokenizer, special=True):
        def encode():
            called.append(texts)
            return tokenizer(texts, add_special_tokens=special)["input_ids"]

        return token_cache.kept(texts, tokenizer, special, encode)

    assert ids(texts) == ids(texts) == expected and len(called) == 1
    assert ids(texts[:1]) == expected[:1] and ids(texts[::-1]) == expected[::-1] and len(called) == 3
    ids(texts, special=False)
    assert len(called) == 4
    tokenizer.add_tokens(["<new>"])
    ids(texts)
    assert len(called) == 5
    for entry in caches.entries(["tokens"]):
        harm(entry.path)
    assert ids(texts) == expected and len(called) == 6
    assert ids(texts[1:2]) == expected[1:2] and ids(texts[1:2]) and len(called) == 8  # short: not kept


def test_a_prompt_that_a_small_vocabulary_cannot_say_is_named():
    from plo.pocket.make import make_tokenizer

    with pytest.raises(
        DataError, match=r"cannot tokenise the prompt 'Capital of France\?': .*Give prompts of its vocabulary"
    ):
        tokenize_prompt("Capital of France?", make_tokenizer())
