"""Coherence, alignment, and the lengths of codes."""

import math

import pytest
import torch

from saelab.activation_functions import AbsTopK, ReLU
from saelab.errors import ShapeError
from saelab.geometry import alignment, coherence, matched_support
from saelab.norm_geometry import length_gap_bound, norm_geometry
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes


def test_random_directions_are_as_coherent_as_random_directions():
    found = coherence(torch.randn(400, 64), n_null=3)
    assert found.mean.value == pytest.approx(math.sqrt(2 / (math.pi * 64)), rel=0.02)
    assert abs(found.nearest.excess) < 0.02
    assert found.largest.value > found.welch


def test_duplicates_and_a_frame_at_the_welch_bound():
    twice = torch.linalg.qr(torch.randn(16, 16)).Q.repeat(2, 1)
    assert coherence(twice).nearest.value == pytest.approx(1, abs=1e-5)
    angle = torch.arange(3) * 2 * math.pi / 3
    tight = coherence(torch.stack([angle.cos(), angle.sin()], 1))
    assert tight.largest.value == pytest.approx(0.5, abs=1e-6)
    assert tight.welch == pytest.approx(0.5)


def test_flips_scales_rotations_and_order_change_no_coherence():
    directions = torch.randn(120, 20)
    rotation = torch.linalg.qr(torch.randn(20, 20)).Q
    flips = torch.where(torch.rand(120, 1) < 0.5, -2.0, 3.0)
    moved = coherence((flips * directions @ rotation)[torch.randperm(120)])
    one = coherence(directions)
    for name in ("largest", "mean", "nearest"):
        assert getattr(one, name).value == pytest.approx(getattr(moved, name).value, abs=1e-5)


def test_a_tied_encoder_is_aligned_and_a_random_one_is_not():
    sae = SAE(24, 60, ReLU())
    with torch.no_grad():
        sae.W_enc.copy_(3 * sae.W_dec.T)
    tied = alignment(sae)
    assert tied.median.value == pytest.approx(1, abs=1e-5)
    assert abs(tied.median.mean) < 0.2
    with torch.no_grad():
        sae.W_enc.copy_(torch.randn(24, 60))
    assert abs(alignment(sae).median.excess) < 0.2
    with pytest.raises(ShapeError, match="reads width 6 and writes width 4"):
        alignment(SAE(6, 20, ReLU(), d_out=4))


def test_with_orthonormal_directions_lengths_give_the_true_support():
    directions = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    values = torch.zeros(50, 30, dtype=torch.float64)
    support = torch.randint(1, 8, (50,))
    for token, k in enumerate(support.tolist()):
        at = torch.randperm(30)[:k]
        values[token, at] = (1 + torch.rand(k).double()) * torch.where(
            torch.rand(k) < 0.5, -1.0, 1.0
        )
    x = values @ directions
    codes = SparseCodes.from_dense(values)
    assert torch.equal(matched_support(codes, directions, x.norm(dim=1)), support)
    # False positives after the true latents are what the lengths leave out.
    more = values + 1e-3 * (values == 0)
    found = matched_support(SparseCodes.from_dense(more), directions, x.norm(dim=1))
    assert torch.equal(found, support)


def test_the_support_is_kept_when_length_moves_between_latents_and_directions():
    values, directions = torch.randn(20, 12) * (torch.rand(20, 12) < 0.5), torch.randn(12, 9)
    lengths = 3 * torch.rand(20)
    t = 0.5 + torch.rand(12)
    one = matched_support(SparseCodes.from_dense(values), directions, lengths)
    other = matched_support(SparseCodes.from_dense(values / t), directions * t[:, None], lengths)
    flipped = matched_support(SparseCodes.from_dense(-values), -directions, lengths)
    assert torch.equal(one, other)
    assert torch.equal(one, flipped)
    for token in range(20):
        parts = (values[token] * directions.norm(dim=1)).square()
        running = parts[parts > 0].sort(descending=True).values.cumsum(0).sqrt()
        best = int((running - lengths[token]).abs().argmin()) + 1 if len(running) else 0
        assert int(one[token]) == best


def test_an_empty_token_keeps_nothing():
    codes = SparseCodes.from_dense(torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 0.0]]))
    assert matched_support(codes, torch.eye(2), torch.ones(3)).tolist() == [0, 1, 0]
    nothing = SparseCodes.from_dense(torch.zeros(2, 2))
    assert matched_support(nothing, torch.eye(2), torch.ones(2)).tolist() == [0, 0]
    with pytest.raises(ShapeError, match="with 1 lengths"):
        matched_support(codes, torch.eye(2), torch.ones(1))


def test_the_length_of_a_code_is_within_its_bound():
    # |sum f_i d_i|^2 against sum f_i^2 |d_i|^2, on 2000 sparse codes of 256 directions.
    directions = torch.nn.functional.normalize(torch.randn(256, 64), dim=1)
    values = torch.randn(2000, 256) * (torch.rand(2000, 256) < 0.02)
    gap = (values @ directions).double().square().sum(1) - values.double().square().sum(1)
    assert bool((gap.abs() <= length_gap_bound(values, directions) + 1e-6).all())


def test_an_orthonormal_dictionary_has_epsilon_zero():
    sae = SAE(12, 12, AbsTopK(12))
    basis = torch.linalg.qr(torch.randn(12, 12)).Q
    with torch.no_grad():
        sae.W_dec.copy_(basis)
        sae.W_enc.copy_(basis.T)
    found = norm_geometry(sae, torch.randn(40, 12))
    torch.testing.assert_close(found.code_norms, found.input_norms, atol=1e-5, rtol=0)
    assert float(found.epsilon_active.max()) < 1e-5
