"""The Triton kernels against the plain ones, in Triton's interpreter, in a process of its own."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is optional"
)
ROOT = Path(__file__).parent.parent

PROGRAM = """
import torch
from saelab.kernels import Pairs, backend_name, backends, pair_products, sum_rows, use_backend
from saelab.kernels import encode_pairs, sparse_decode, sparse_pre_activations, top_k
from saelab.kernels.pairs import sum_columns

assert backend_name() != "triton"
generator = torch.Generator().manual_seed(0)
def normal(*shape):
    return torch.randn(*shape, generator=generator)

for n_tokens, n_latents, width in ((7, 11, 5), (20, 40, 130), (3, 9, 128)):
    mask = torch.rand(n_tokens, n_latents, generator=generator) < 0.3
    mask[2] = False
    mask[:, 5] = False
    tokens, indices = mask.nonzero(as_tuple=True)
    offsets = torch.zeros(n_tokens + 1, dtype=torch.int64)
    torch.cumsum(mask.sum(1), 0, out=offsets[1:])
    values, rows, left = normal(len(indices)), normal(n_latents, width), normal(n_tokens, width)
    def everything():
        pairs = Pairs(offsets, indices, n_latents)
        found = [sum_rows(pairs, values, rows), pair_products(pairs, left, rows)]
        for accumulate in (False, True):
            out = torch.ones(n_latents, width)
            sum_columns(pairs, values, left, out, accumulate)
            found.append(out)
        return found
    expected = everything()
    with use_backend("triton"):
        assert backend_name() == "triton"
        assert backends.compiled("sum_rows", 1, rows).__module__.endswith("triton_backend")
        assert backends.compiled("top_k", 1, rows) is None
        found = everything()
        again = everything()
    for one, other, same in zip(found, expected, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
        assert torch.equal(one, same)

with use_backend("triton"):
    empty = Pairs(torch.zeros(4, dtype=torch.int64), torch.empty(0, dtype=torch.int64), 5)
    assert torch.equal(sum_rows(empty, torch.empty(0), torch.ones(5, 2)), torch.zeros(3, 2))
    assert pair_products(empty, torch.ones(3, 2), torch.ones(5, 2)).shape == (0,)

x, rows, bias = normal(6, 5), normal(9, 5), normal(9)
def positive(z):
    row, latent = (z > 0).nonzero(as_tuple=True)
    return row, latent, z[row, latent]
def gradients():
    W_enc, W_dec = rows.clone().T.requires_grad_(), rows.clone().requires_grad_()
    b_enc, b_dec = bias.clone().requires_grad_(), torch.zeros(5, requires_grad=True)
    ((pairs, values),) = encode_pairs(x, rows, bias, [positive])
    z = sparse_pre_activations(values, x, W_enc, b_enc, b_dec, pairs)
    loss = (sparse_decode(z, W_dec, b_dec, pairs) - x).square().sum()
    return torch.autograd.grad(loss, [W_enc, b_enc, W_dec, b_dec])
expected = gradients()
with use_backend("triton"):
    found = gradients()
for one, other in zip(found, expected, strict=True):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
assert not backends._failed, backends._failed
"""


def test_triton_kernels_equal_the_plain_ones_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_without_a_gpu_or_the_interpreter_triton_is_not_used(monkeypatch) -> None:
    from saelab.kernels import backend_name, use_backend

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use_backend("triton"):
        assert backend_name("cpu") == "torch"
        assert backend_name("cuda") == "triton"
