"""Which dtype `model.dtype: auto` takes on a CPU."""

import pytest
import torch

from plo.backbone.load import _compute_dtype

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "used", "expected"),
    [
        ({"avx2": True}, "AVX2", None),
        ({"avx2": True, "avx512_f": True}, "AVX512", None),
        ({"avx512_bf16": True}, "AVX512", torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": True}, "AVX512", torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": True}, "AVX2", None),  # ATEN_CPU_CAPABILITY=avx2
        ({"avx512_bf16": True, "amx_bf16": True}, "DEFAULT", None),
        ({}, "DEFAULT", None),
    ],
)
def test_auto_takes_bfloat16_where_torch_has_products_for_it(capabilities, used, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: used)
    assert _compute_dtype("auto", CPU) is expected
    assert _compute_dtype("float32", CPU) is None
    assert _compute_dtype("bfloat16", CPU) is torch.bfloat16
