"""The reference store: right numbers, computed once, keyed by what they depend on, safe under several processes."""

import torch
from torch import multiprocessing

from plo.backbone import reference
from plo.backbone.batch import collate
from plo.backbone.model import Backbone
from plo.backbone.reference import ReferenceStore
from plo.config import ModelConfig


def _backbone(model, **config):
    return Backbone(model, ModelConfig(peft="full", **config))


def test_stored_equals_measured(tiny_llama, tiny_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "SHARD_PAIRS", 3)
    backbone, pairs = _backbone(tiny_llama()), tiny_pairs(8)
    stored = ReferenceStore(tmp_path).get(backbone, pairs, hidden=True).statistics([6, 1, 4])
    measured = backbone.measure(collate([pairs[i] for i in (6, 1, 4)]), ("logps",), hidden=True)
    torch.testing.assert_close(stored["ref_logps"], measured["logps"], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(stored["ref_hidden"], measured["hidden"], atol=1e-12, rtol=1e-12)


def test_computed_once_and_again_only_for_what_changed(tiny_llama, tiny_pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "SHARD_PAIRS", 4)
    computed = []
    compute = reference._compute
    monkeypatch.setattr(
        reference, "_compute", lambda b, shard, *a: computed.append(len(shard)) or compute(b, shard, *a)
    )
    store, pairs = ReferenceStore(tmp_path), tiny_pairs(10)
    store.get(_backbone(tiny_llama()), pairs)
    assert computed == [4, 4, 2]
    store.get(_backbone(tiny_llama()), pairs)  # another process would find it just so
    assert computed == [4, 4, 2]
    store.get(_backbone(tiny_llama()), pairs[:4] + tiny_pairs(4, seed=9))  # only the new shard
    assert computed[3:] == [4]
    store.get(_backbone(tiny_llama(seed=5)), pairs[:4])  # other weights
    store.get(_backbone(tiny_llama(attn_implementation="eager")), pairs[:4])  # other attention
    store.get(_backbone(tiny_llama(dtype=torch.float32)), pairs[:4])  # other dtype
    assert computed[4:] == [4, 4, 4]
    store.get(_backbone(tiny_llama()), pairs, hidden=True)  # hidden states were not stored before
    assert computed[7:] == [4, 4, 2]
    store.get(_backbone(tiny_llama()), pairs)  # and the larger file serves the smaller need
    assert len(computed) == 10


def test_a_torn_file_is_computed_again(tiny_llama, tiny_pairs, tmp_path):
    backbone, pairs = _backbone(tiny_llama()), tiny_pairs(3)
    before = ReferenceStore(tmp_path).get(backbone, pairs).statistics([0, 2])["ref_logps"]
    [path] = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    assert torch.equal(ReferenceStore(tmp_path).get(backbone, pairs).statistics([0, 2])["ref_logps"], before)


def test_beyond_the_disk_budget_hidden_states_are_left_out(tiny_llama, tiny_pairs, tmp_path):
    got = ReferenceStore(tmp_path, disk_gb=1e-9).get(_backbone(tiny_llama()), tiny_pairs(3), hidden=True)
    assert got.hidden is None and "ref_hidden" not in got.statistics([0])


def _fill(model, pairs, folder, queue):
    torch.set_num_threads(1)
    queue.put(ReferenceStore(folder).get(_backbone(model), pairs, hidden=True).statistics([0, 5])["ref_logps"].tolist())


def test_processes_that_fill_it_at_once_agree(tiny_llama, tiny_pairs, tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    work = [context.Process(target=_fill, args=(tiny_llama(), tiny_pairs(6), tmp_path, queue)) for _ in range(3)]
    for process in work:
        process.start()
    results = [queue.get(timeout=600) for _ in work]
    for process in work:
        process.join()
    assert results[0] == results[1] == results[2]
    assert len(list(tmp_path.glob("*.safetensors"))) == 1 and not list(tmp_path.glob("*.partial"))


def test_a_damaged_shard_is_computed_again(tiny_llama, tiny_pairs, tmp_path, harm, caplog):
    backbone, pairs = _backbone(tiny_llama()), tiny_pairs(6)
    whole = ReferenceStore(tmp_path).get(backbone, pairs, hidden=True).statistics(range(6))
    whole = {name: values.clone() for name, values in whole.items()}
    [path] = tmp_path.glob("*.safetensors")
    harm(path)
    again = ReferenceStore(tmp_path).get(backbone, pairs, hidden=True).statistics(range(6))
    assert all(torch.equal(again[name], values) for name, values in whole.items())
    [line] = caplog.messages
    assert str(path) in line and "damaged" in line and "made anew" in line
