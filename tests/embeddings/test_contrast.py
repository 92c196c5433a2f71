"""The three contrasts: their limits, and what leaves them as they are."""

import math

import pytest
import torch

from saelab.embeddings import label_contrast, pairing, repulsion
from saelab.errors import DataError


def test_repulsion_goes_from_orthogonal_to_equal_codes() -> None:
    orthogonal, equal = torch.eye(64), torch.ones(64, 8)
    assert repulsion(orthogonal).item() == pytest.approx(math.log(1 + 2 * 63 * math.exp(-5)))
    assert repulsion(equal).item() == pytest.approx(math.log(1 + 2 * 63), rel=1e-5)
    # at the authors' batch of 4,096 these are 4.03 and 9.01
    assert math.log(1 + 2 * 4095 * math.exp(-5)) == pytest.approx(4.03, abs=0.005)
    assert math.log(1 + 2 * 4095) == pytest.approx(9.01, abs=0.005)


def test_repulsion_is_the_two_view_loss_of_one_deterministic_network() -> None:
    """InfoNCE of 2 B rows whose views are equal, as the authors' code computes it."""
    z = torch.nn.functional.normalize(torch.randn(12, 5), dim=1)
    views = torch.cat([z, z])
    similar = views @ views.T / 0.2
    similar.fill_diagonal_(-torch.inf)
    partner = torch.arange(24).roll(12)
    wanted = torch.nn.functional.cross_entropy(similar, partner)
    assert repulsion(z).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_the_length_of_codes_does_not_matter() -> None:
    z, labels = torch.randn(10, 6), torch.arange(10) % 3
    scaled = z * torch.rand(10, 1).add(0.1)
    for loss in (repulsion, lambda x: label_contrast(x, labels), lambda x: pairing(x, z)):
        assert loss(z).item() == pytest.approx(loss(scaled).item(), rel=1e-5)


def test_names_and_order_of_labels_do_not_matter() -> None:
    z, labels = torch.randn(12, 6), torch.arange(12) % 3
    wanted = label_contrast(z, labels).item()
    assert label_contrast(z, (labels + 1) % 3).item() == pytest.approx(wanted)
    order = torch.randperm(12)
    assert label_contrast(z[order], labels[order]).item() == pytest.approx(wanted, rel=1e-5)


def test_the_sum_over_positives_is_inside_the_logarithm() -> None:
    z = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    labels = torch.tensor([0, 0, 0, 1, 1, 2])  # the last is alone: no anchor, but an opposite
    s = torch.exp(z @ z.T / 0.2)
    wanted = []
    for i in range(5):
        same = [j for j in range(6) if j != i and labels[j] == labels[i]]
        every = [j for j in range(6) if j != i]
        wanted.append(-math.log(sum(float(s[i, j]) for j in same) /
                                sum(float(s[i, j]) for j in every)))  # fmt: skip
    assert label_contrast(z, labels).item() == pytest.approx(sum(wanted) / 5, rel=1e-5)
    with pytest.raises(DataError, match="share a label"):
        label_contrast(z, torch.arange(6))


def test_pairs_that_match_are_told_apart() -> None:
    z = torch.eye(8)
    assert pairing(z, z).item() == pytest.approx(math.log(1 + 7 * math.exp(-5)), rel=1e-5)
    assert pairing(z, z.roll(1, 0)).item() == pytest.approx(5 + math.log(1 + 7 * math.exp(-5)))
    assert pairing(z, torch.ones(8, 8)).item() == pytest.approx(math.log(8), rel=1e-5)


def test_a_code_of_nothing_has_a_gradient_that_is_a_number() -> None:
    z = torch.zeros(4, 5)
    z[:3, 0] = 1.0
    z.requires_grad_()
    (repulsion(z) + label_contrast(z, torch.tensor([0, 0, 1, 1]))).backward()
    assert z.grad is not None and torch.isfinite(z.grad).all()
