"""The compiled CPU kernels against the plain ones, and how one or the other is chosen."""

import importlib.util
import subprocess
import sys

import pytest
import torch

from saelab.errors import ConfigError
from saelab.kernels import (
    Pairs,
    above,
    backend_name,
    backends,
    entries,
    pair_products,
    sum_rows,
    top_k,
    top_k_pairs,
    use_backend,
)
from saelab.kernels.numba_backend import group_count
from saelab.kernels.pairs import sum_columns
from tests.test_kernels import Problem, random_pairs

needs_numba = pytest.mark.skipif(
    importlib.util.find_spec("numba") is None, reason="numba is optional"
)


@pytest.fixture(autouse=True)
def no_silent_fallback():
    """The reference would pass every test here; only the compiled kernels may."""
    yield
    assert not backends._failed


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_is_top_k(x, k, values, columns):
    """The values of a full sort, each at its own column."""
    expected = x.nan_to_num(-torch.inf, torch.inf, -torch.inf).topk(k, dim=1).values
    found = values.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    assert torch.equal(found.sort(1, descending=True).values, expected)
    assert torch.equal(x.gather(1, columns).nan_to_num(7.0), values.nan_to_num(7.0))
    assert all(len(set(row.tolist())) == k for row in columns)


@needs_numba
@pytest.mark.parametrize(
    ("columns", "k"),
    [(1, 1), (8, 3), (100, 100), (2048, 1), (4608, 32), (9216, 32), (3001, 7), (300, 256)],
)
def test_compiled_top_k_is_exact(columns, k, threads):  # noqa: ARG001
    x = normal(13, columns, seed=k)
    with use_backend("numba"):
        values, places = top_k(x, k)
    assert_is_top_k(x, k, values, places)


@needs_numba
@pytest.mark.parametrize("k", [1, 5, 32])
def test_compiled_top_k_is_exact_on_rows_made_to_mislead_it(k):
    groups = group_count(4608, k)
    x = torch.zeros(9, 4608)
    x[0, 5::groups] = torch.arange(1.0, len(x[0, 5::groups]) + 1)  # all large ones in one group
    x[1] = -3.0  # ties, and nothing positive
    x[2] = torch.arange(4608.0)
    x[3] = -torch.arange(4608.0)
    x[4] = normal(4608).exp().exp()  # a huge range, infinities
    x[5] = normal(4608) * 1e-42  # denormals
    x[6, ::2] = -0.0
    x[7] = -torch.inf
    x[8] = normal(4608).round()  # many equal values at the border
    with use_backend("numba"):
        values, places = top_k(x, k)
        again = top_k(x.flip(0), k)
    assert_is_top_k(x, k, values, places)
    # What the rows before left behind must not matter, not even for which equals are kept.
    assert torch.equal(again[1].flip(0), places)


@needs_numba
def test_nan_never_wins_and_a_row_of_nan_still_gives_k_columns():
    x = normal(3, 4608)
    x[0] = torch.nan
    x[1, 100:200] = -torch.nan
    x[2, 3:] = torch.nan
    with use_backend("numba"):
        values, places = top_k(x, 32)
    assert_is_top_k(x, 32, values, places)
    assert not values[1].isnan().any() and values[2].isnan().sum() == 29


@needs_numba
@pytest.mark.parametrize("signed", [False, True])
def test_fewer_than_k_positive_entries_give_fewer_pairs(signed):
    x = -normal(4, 300).abs()
    x[0, :2] = torch.tensor([1.0, 2.0])
    x[3] = 0.0
    expected = top_k_pairs(x, 5, signed)
    with use_backend("numba"):
        found = top_k_pairs(x, 5, signed)
    assert found[0].tolist() == expected[0].tolist()
    assert torch.equal(x[found[0], found[1]], found[2])
    assert sorted(found[2].tolist()) == sorted(expected[2].tolist())
    assert len(found[0]) == (15 if signed else 2)


@needs_numba
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("kind", ["one", "tensor", "one a latent"])
def test_compiled_threshold_collection_equals_nonzero(kind, signed, threads):  # noqa: ARG001
    x = normal(37, 530)
    x[5] = 9.0  # a full row: the buffer has to grow
    x[6] = -9.0
    x[7] = torch.nan
    threshold = {"one": 1.5, "tensor": torch.tensor(1.5), "one a latent": normal(530).abs()}[kind]
    expected = above(x, threshold, signed)
    with use_backend("numba"):
        found = above(x, threshold, signed)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_numba
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 1.0])
def test_compiled_entries_equal_nonzero(share, threads):  # noqa: ARG001
    x = normal(37, 530)
    mask = torch.rand(37, 530, generator=torch.Generator().manual_seed(0)) < share
    expected = entries(x, mask)
    with use_backend("numba"):
        found = entries(x, mask)
    assert len(found[0]) == int(mask.sum())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_numba
@pytest.mark.parametrize("shape", [(7, 11, 4), (200, 64, 37), (3, 500, 1)])
@pytest.mark.parametrize("accumulate", [False, True])
def test_compiled_products_equal_the_plain_ones(shape, accumulate, threads):  # noqa: ARG001
    n_tokens, n_latents, width = shape
    pairs, _ = random_pairs(n_tokens, n_latents)
    values, rows = normal(pairs.n_pairs), normal(n_latents, width, seed=2)
    tokens = normal(n_tokens, width, seed=3)

    def everything():
        fresh = Pairs(pairs.offsets, pairs.indices, n_latents)
        out = torch.ones(n_latents, width)
        sum_columns(fresh, values, tokens, out, accumulate)
        products = pair_products(fresh, tokens, rows)
        return [sum_rows(fresh, values, rows), products, out, *fresh.by_latent()]

    expected = everything()
    with use_backend("numba"):
        found = everything()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(found[3:], expected[3:], strict=True))


@needs_numba
def test_no_bit_depends_on_the_number_of_threads():
    pairs, _ = random_pairs(300, 90)
    values, rows, tokens = normal(pairs.n_pairs), normal(90, 33, seed=2), normal(300, 33, seed=3)
    results = []
    before = torch.get_num_threads()
    for number in (1, 2, 5):
        torch.set_num_threads(number)
        out = torch.empty(90, 33)
        with use_backend("numba"):
            sum_columns(pairs, values, tokens, out, accumulate=False)
            found = (sum_rows(pairs, values, rows), pair_products(pairs, tokens, rows), out)
            results.append((*found, *top_k(tokens, 8), *above(tokens, 0.5)))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@needs_numba
def test_compiled_kernels_handle_patterns_without_pairs_or_tokens():
    for n_tokens in (0, 3):
        offsets = torch.zeros(n_tokens + 1, dtype=torch.int64)
        pairs = Pairs(offsets, torch.empty(0, dtype=torch.int64), 5)
        out = torch.ones(5, 2)
        with use_backend("numba"):
            assert torch.equal(
                sum_rows(pairs, torch.empty(0), torch.ones(5, 2)), torch.zeros(n_tokens, 2)
            )
            assert pair_products(pairs, torch.ones(n_tokens, 2), torch.ones(5, 2)).shape == (0,)
            sum_columns(pairs, torch.empty(0), torch.ones(n_tokens, 2), out, accumulate=False)
            assert top_k(torch.ones(n_tokens, 5), 2)[0].shape == (n_tokens, 2)
            assert len(above(torch.ones(n_tokens, 5), 2.0)[0]) == 0
        assert not out.any()


@needs_numba
def test_non_contiguous_inputs_are_read_as_what_they_are():
    pairs, _ = random_pairs()
    values, rows, x = normal(pairs.n_pairs), normal(4, 11).T, normal(300, 7).T
    expected = (sum_rows(pairs, values, rows.contiguous()), x.topk(3).values)
    with use_backend("numba"):
        torch.testing.assert_close(sum_rows(pairs, values, rows), expected[0])
        assert torch.equal(top_k(x, 3)[0].sort(1, descending=True).values, expected[1])


class Problem32(Problem):
    """The same problem in float32, which the compiled kernels take."""

    def __init__(self):
        super().__init__()
        self.x = self.x.float()
        self.W_enc = self.W_enc.detach().T.contiguous().float().T.requires_grad_()
        self.b_enc, self.W_dec, self.b_dec = (
            p.detach().float().requires_grad_() for p in (self.b_enc, self.W_dec, self.b_dec)
        )
        self.parameters = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]


@needs_numba
def test_compiled_gradients_equal_dense_autograd_in_double_precision():
    double = Problem()
    expected = torch.autograd.grad(double.dense(), double.parameters)
    problem = Problem32()
    with use_backend("numba"):
        found = torch.autograd.grad(problem.sparse(), problem.parameters)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@needs_numba
def test_double_precision_and_differentiable_calls_use_the_reference():
    pairs, _ = random_pairs()
    with use_backend("numba"):
        assert backends.compiled("top_k", 1 << 30, torch.zeros(1)) is not None
        assert backends.compiled("top_k", 1 << 30, torch.zeros(1, dtype=torch.float64)) is None
        rows = normal(11, 4).requires_grad_()
        sum_rows(pairs, normal(pairs.n_pairs), rows).sum().backward()
    assert rows.grad is not None and rows.grad.abs().sum() > 0


def test_small_work_uses_the_reference_unless_a_backend_is_asked_for(monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    assert backends.compiled("top_k", backends.WORTH_IT - 1, torch.zeros(1)) is None


def test_the_environment_and_the_context_choose(monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT, "torch")
    assert backend_name() == "torch" and "asked for 'torch'" in backends.describe()
    assert backends.compiled("top_k", 1 << 30, torch.zeros(1)) is None
    with use_backend("numba"):
        assert backend_name() == (
            "numba" if importlib.util.find_spec("numba") is not None else "torch"
        )
        with use_backend("torch"):
            assert backend_name() == "torch"
    assert backend_name("cuda") == "torch"
    monkeypatch.setenv(backends.ENVIRONMENT, "fast")
    with pytest.raises(ConfigError, match=r"SAELAB_KERNELS asks for kernels 'fast'; there are"):
        backend_name()
    with pytest.raises(ConfigError, match=r"use_backend asks for kernels 'C'"), use_backend("C"):
        pass


def test_a_compiler_that_fails_is_replaced_by_the_reference(monkeypatch):
    monkeypatch.delenv(backends.ENVIRONMENT, raising=False)
    monkeypatch.setattr(backends, "_failed", {})
    # numba 0 in place of the package: importing it raises, as a broken installation does.
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.setattr(backends, "_installed", lambda name: name == "numba")
    from saelab.kernels import numba_backend

    numba_backend._jit.cache_clear()
    try:
        with use_backend("numba"):
            values, _ = top_k(torch.tensor([[1.0, 3.0, 2.0]]), 2)
            assert sorted(values[0].tolist()) == [2.0, 3.0]
            assert backend_name() == "torch"
        assert "numba failed: " in backends.describe()
    finally:
        numba_backend._jit.cache_clear()


def test_importing_saelab_and_small_work_load_no_compiler():
    program = (
        "import sys, torch, saelab; from saelab.kernels import top_k;"
        "top_k(torch.zeros(4, 3000), 3); assert 'numba' not in sys.modules;"
        "assert 'triton' not in sys.modules or torch.cuda.is_available()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@needs_numba
def test_a_child_process_made_by_fork_can_use_the_kernels():
    program = """
import os, torch
from saelab.kernels import top_k, use_backend
torch.set_num_threads(2)
x = torch.randn(64, 300)
with use_backend("numba"):
    top_k(x, 3)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(2)
        os._exit(0 if top_k(x, 3)[0].shape == (64, 3) else 1)
    assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
