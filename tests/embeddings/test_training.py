"""Sparse heads: the loss against plain autograd, annealing, and what training is for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from saelab.embeddings import (
    SparseHeadConfig,
    codes_at,
    dense_neighbors,
    head_loss,
    label_contrast,
    pairing,
    repulsion,
    sparse_head,
    sparse_neighbors,
    train_sparse_head,
    truncated,
)
from saelab.errors import ConfigError, DataError
from saelab.sae import SAE

SMALL = SparseHeadConfig(k=3, d_sae=48, aux_k=4, contrast=0.3)


def _embeddings(n: int = 60, d: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(n, d, generator=generator) + 0.5, dim=1)


def _clusters(n: int = 400, d: int = 24, classes: int = 20, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Classes in a rotated space, so that no coordinate knows of them."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(classes, d, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % classes
    return centers[labels] + 0.6 * torch.randn(n, d, generator=generator), labels


@pytest.mark.parametrize("way", ["repulsion", "labels", "partners"])
def test_the_loss_and_its_gradients_are_those_of_dense_autograd(way: str) -> None:
    x = _embeddings()
    sae = sparse_head(x, 48, 3)
    inputs = x[:20] * sae.normalization.scale_in
    partners = (x[20:40] * sae.normalization.scale_in) if way == "partners" else None
    labels = torch.arange(20) % 4 if way == "labels" else None
    dead = torch.zeros(48, dtype=torch.bool)
    dead[10:25] = True
    variance = 7.0
    terms = head_loss(sae, inputs, SMALL, 3, variance, dead, labels=labels, partners=partners)
    terms["loss"].backward()
    assert sae.W_dec.grad is not None and sae.W_enc.grad is not None
    found = {
        "W": sae.W_dec.grad + sae.W_enc.grad.T,
        "b_enc": sae.b_enc.grad,
        "b_dec": sae.b_dec.grad,
    }
    W = sae.W_dec.detach().clone().requires_grad_()
    b, b_pre = (one.detach().clone().requires_grad_() for one in (sae.b_enc, sae.b_dec))

    def latents(rows: Tensor, k: int) -> Tensor:
        z = (rows - b_pre) @ W.T + b
        values, at = z.topk(k, dim=1)
        return torch.zeros_like(z).scatter(1, at, values.relu())

    few = latents(inputs, 3)
    error = (few @ W + b_pre - inputs).square().sum() / (variance * 20)
    wide = (latents(inputs, 12) @ W + b_pre - inputs).square().sum() / (variance * 20)
    missed = (inputs - few @ W - b_pre).detach()
    z = ((inputs - b_pre) @ W.T + b)[:, dead]
    values, at = z.topk(4, dim=1)
    helping = torch.zeros_like(z).scatter(1, at, values.relu()) @ W[dead]
    aux = (helping - missed).square().sum() / (missed - missed.mean(0)).square().sum()
    if way == "repulsion":
        contrast = repulsion(few)
    elif labels is not None:
        contrast = label_contrast(few, labels)
    else:
        assert partners is not None
        contrast = pairing(few, latents(partners, 3))
    loss = error + wide / 8 + aux / 32 + 0.3 * contrast
    loss.backward()
    assert terms["loss"].item() == pytest.approx(loss.item(), rel=1e-5)
    for name, one in (("W", W), ("b_enc", b), ("b_dec", b_pre)):
        assert one.grad is not None and found[name] is not None
        assert torch.allclose(found[name], one.grad, atol=2e-6, rtol=1e-4), name
    assert int(terms["chosen"].sum()) == int((few > 0).sum())


def test_k_comes_down_linearly_and_stays() -> None:
    config = SparseHeadConfig(k=2, first_k=64, steps=100)
    ks = [config.k_at(step) for step in range(100)]
    assert ks[0] == 64 and ks[35] == 33 and ks[70:] == [2] * 30
    assert ks == sorted(ks, reverse=True)
    assert {SparseHeadConfig(k=5).k_at(step) for step in (0, 300, 599)} == {5}


def test_a_head_finds_classes_that_few_coordinates_do_not() -> None:
    x, labels = _clusters()
    others, theirs = _clusters(seed=1)
    sae = train_sparse_head(x, SparseHeadConfig(k=2, steps=60, batch_size=64, lr=3e-3)).sae
    found = sparse_neighbors(codes_at(sae, x, 2), codes_at(sae, others, 2))
    plain = dense_neighbors(truncated(x, 2), truncated(others, 2))
    assert found.accuracy(labels, theirs) > plain.accuracy(labels, theirs) + 0.2


def test_labels_bring_their_texts_together() -> None:
    x, labels = _clusters(classes=8)
    others, theirs = _clusters(classes=8, seed=1)
    x, others = (torch.cat([e, 4 * torch.randn(len(e), 24)], 1) for e in (x, others))
    right = {}
    for name, given in (("without", None), ("with", labels)):
        config = SparseHeadConfig(k=2, steps=60, batch_size=64, lr=3e-3, contrast=1.0)
        sae = train_sparse_head(x, config, labels=given).sae
        found = sparse_neighbors(codes_at(sae, x, 2), codes_at(sae, others, 2))
        right[name] = found.accuracy(labels, theirs)
    assert right["with"] > right["without"] + 0.1


def test_annealing_leaves_fewer_latents_dead() -> None:
    x, _ = _clusters(classes=60, n=600)
    dead = {
        first: train_sparse_head(
            x, SparseHeadConfig(k=1, first_k=first, steps=80, batch_size=64, aux=0, contrast=0)
        ).dead
        for first in (None, 16)
    }
    assert dead[16] < dead[None]


def test_the_same_seed_gives_the_same_head_and_files_keep_it(tmp_path: Path) -> None:
    x = _embeddings()
    config = SparseHeadConfig(k=3, d_sae=48, steps=5, batch_size=32)
    one, other = (train_sparse_head(x, config).sae for _ in range(2))
    assert torch.equal(one.W_dec, other.W_dec) and torch.equal(one.W_enc, one.W_dec.T)
    one.save(tmp_path / "head")
    again = SAE.load(tmp_path / "head")
    for k in (1, 3, 12):
        assert torch.equal(codes_at(one, x, k).dense(), codes_at(again, x, k).dense())
    assert torch.equal(again.encode(x).dense(), codes_at(one, x, 3).dense())


def test_what_cannot_be_trained_is_refused() -> None:
    x = _embeddings()
    with pytest.raises(ConfigError, match="four times as many"):
        train_sparse_head(x, SparseHeadConfig(k=3, first_k=13, d_sae=48))
    with pytest.raises(ConfigError, match="annealed down"):
        SparseHeadConfig(k=8, first_k=4)
    with pytest.raises(ConfigError, match="not both"):
        train_sparse_head(x, SMALL, labels=torch.zeros(60).long(), partners=x)
    x[3, 3] = torch.nan
    with pytest.raises(DataError, match="finite"):
        train_sparse_head(x, SMALL)
    with pytest.raises(ConfigError, match="k=49"):
        codes_at(sparse_head(_embeddings(), 48, 3), _embeddings(), 49)
