"""TPP and SCR on planted concepts, where both have exact answers."""

import numpy as np
import pytest
import torch

from saelab.activation_functions import AbsTopK, ReLU, TopK
from saelab.errors import ConfigError, DataError
from saelab.probing.ablated_texts import PooledTexts, pooled_texts
from saelab.probing.concept_removal import spurious_removal, targeted_perturbation
from saelab.probing.splitting import divide
from saelab.sae import SAE

D = 32


def _basis() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0]


def _oracle(
    activation: object = None, sign: torch.Tensor | None = None, basis: torch.Tensor | None = None
) -> SAE:
    """One latent a basis direction; signed with AbsTopK."""
    sae = SAE(D, D, activation or ReLU(), pre_bias=False)  # type: ignore[arg-type]
    rows = _basis() if basis is None else basis
    rows = rows if sign is None else rows * sign[:, None]
    with torch.no_grad():
        sae.W_enc.copy_(rows.T)
        sae.W_dec.copy_(rows)
    return sae


def _exclusive(n: int = 400, length: int = 3) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Four classes, a direction each, on every token; other directions at random."""
    generator = torch.Generator().manual_seed(1)
    classes = torch.arange(n) % 4
    latents = 0.3 * torch.rand(n, length, D, generator=generator)
    latents[..., :4] = 0
    latents[torch.arange(n), :, classes] = 2 + torch.rand(n, length, generator=generator)
    x = (latents @ _basis()).flatten(0, 1)
    return x, torch.arange(n).repeat_interleave(length), classes.numpy()


def test_ablating_the_one_latent_of_a_class_costs_its_probe_half_and_others_nothing() -> None:
    x, example, classes = _exclusive()
    texts = pooled_texts(_oracle(), x, example)
    (found,) = targeted_perturbation(texts, classes, divide(classes), n_latents=[1])
    assert found.clean_accuracy == 1.0
    assert found.ablated == {c: (c,) for c in range(4)}
    assert found.on_target == pytest.approx(0.5, abs=0.02)
    assert abs(found.on_others) < 0.02
    assert found.score == pytest.approx(0.5, abs=0.02)
    assert abs(found.random_score) < 0.1


def test_a_dictionary_of_mixed_directions_has_a_lower_score() -> None:
    x, example, classes = _exclusive()
    mixed = SAE(D, D, TopK(4), seed=3)
    texts = pooled_texts(mixed, x, example)
    (found,) = targeted_perturbation(texts, classes, divide(classes), n_latents=[4])
    assert found.score < 0.4


def test_only_latents_of_positive_effect_are_ablated() -> None:
    x, example, classes = _exclusive()
    texts = pooled_texts(_oracle(), x, example)
    (found,) = targeted_perturbation(texts, classes, divide(classes), n_latents=[D])
    for c, latents in found.ablated.items():
        assert c in latents
        assert not set(latents) & (set(range(4)) - {c})  # the other classes' have a negative effect
        assert len(latents) < D


def test_what_the_dictionary_does_not_explain_stays() -> None:
    x, example, _ = _exclusive()
    x = x + 7.0
    texts = pooled_texts(SAE(D, 8, TopK(2), seed=1), x, example)
    means = torch.stack([part.mean(0) for part in x.split(3)])
    assert torch.allclose(texts.without([]), means, atol=1e-5)
    tokens = x.clone()
    sae = SAE(D, 8, TopK(2), seed=1)
    tokens -= sae.encode(x).dense()[:, [3]] @ sae.W_dec.detach()[[3]]
    wanted = torch.stack([part.mean(0) for part in tokens.split(3)])
    assert torch.allclose(texts.without([3]), wanted, atol=1e-4)


def test_the_two_tails_of_a_signed_latent_are_ablated_apart() -> None:
    # one latent: positive on class 1, negative on class 0
    n = 200
    generator = torch.Generator().manual_seed(2)
    classes = torch.arange(n) % 2
    latents = 0.1 * torch.randn(n, D, generator=generator)
    latents[:, 5] = torch.where(classes == 1, 2.0, -2.0)
    x, example = latents @ _basis(), torch.arange(n)
    results = []
    for sign in (torch.ones(D), torch.where(torch.arange(D) % 2 == 1, -1.0, 1.0)):
        texts = pooled_texts(_oracle(AbsTopK(D), sign), x, example)
        results.append(
            targeted_perturbation(texts, classes.numpy(), divide(classes.numpy()), n_latents=[1])[0]
        )
    assert results[0].ablated == {0: (5 + D,), 1: (5,)}
    assert results[1].ablated == {0: (5,), 1: (5 + D,)}
    assert results[0].score == pytest.approx(results[1].score, abs=1e-6)


def _correlated(n: int = 800) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """x = +-3 d_g + p d_p + noise: the spurious g is the louder of the two, and its mean is 0."""
    generator = torch.Generator().manual_seed(3)
    g, p = torch.arange(n) % 2, (torch.arange(n) // 2) % 2
    latents = 0.5 * torch.rand(n, D, generator=generator)
    latents[:, 0] = 6.0 * g - 3.0
    latents[:, 1] = 2.0 * p + 0.3 * torch.rand(n, generator=generator)
    return latents, p.numpy(), g.numpy()


def test_ablating_the_spurious_latent_removes_all_of_the_bias() -> None:
    x, wanted, spurious = _correlated()
    texts = pooled_texts(_oracle(AbsTopK(D), basis=torch.eye(D)), x, torch.arange(len(x)))
    division = divide(2 * wanted + spurious)
    found = spurious_removal(texts, wanted, spurious, division, n_latents=[2])[0]
    assert sorted(found.ablated) == [0, D]  # both tails of the one latent
    assert found.biased < 0.9 and found.clean > 0.99
    assert found.score is not None and found.score > 0.9
    assert found.random_score is not None and abs(found.random_score) < 0.1


def test_a_probe_that_was_not_biased_has_no_score() -> None:
    # the wanted direction is everything there is: nothing spurious to remove
    n = 200
    wanted, spurious = np.arange(n) % 2, (np.arange(n) // 2) % 2
    latents = torch.zeros(n, D)
    latents[:, 1] = torch.from_numpy(wanted) * 5.0
    texts = pooled_texts(_oracle(), latents @ _basis(), torch.arange(n))
    division = divide(2 * wanted + spurious)
    (found,) = spurious_removal(texts, wanted, spurious, division, n_latents=[2])
    assert found.biased == found.clean == 1.0
    assert found.score is None and found.random_score is None


def test_missing_classes_and_transcoders_are_refused() -> None:
    x, example, classes = _exclusive(40)
    texts = pooled_texts(_oracle(), x, example)
    assert isinstance(texts, PooledTexts)
    with pytest.raises(DataError, match="only one"):
        targeted_perturbation(texts, np.zeros(40, int), divide(classes))
    with pytest.raises(DataError, match="all four combinations"):
        spurious_removal(texts, classes % 2, classes % 2, divide(classes))
    with pytest.raises(ConfigError, match="writes where it reads"):
        pooled_texts(SAE(D, 8, ReLU(), hook="a", hook_out="b"), x, example)


def test_turning_signed_latents_around_removes_the_same() -> None:
    x, wanted, spurious = _correlated()
    division, found = divide(2 * wanted + spurious), []
    for sign in (torch.ones(D), torch.where(torch.arange(D) % 2 == 0, -1.0, 1.0)):
        sae = _oracle(AbsTopK(D), sign, torch.eye(D))
        texts = pooled_texts(sae, x, torch.arange(len(x)))
        found += spurious_removal(texts, wanted, spurious, division, n_latents=[2, 6])
    assert [one.score for one in found[:2]] == pytest.approx([one.score for one in found[2:]])
    assert found[0].score is not None and found[0].score > 0.9
