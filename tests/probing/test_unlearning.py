"""Unlearning on two synthetic domains, one latent each, and the edit in a running model."""

from collections.abc import Sequence

import pytest
import torch

from saelab.activation_functions import AbsTopK, ReLU, TopK
from saelab.errors import ConfigError, ShapeError
from saelab.probing.unlearning import (
    UnlearningConfig,
    forgetting,
    held_down,
    latents_to_forget,
    measure_unlearning,
)
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from tests.tiny_models import tiny_language_model

D = 12
QUICK = UnlearningConfig(retain_densities=(0.05,), n_latents=(1, 3), strengths=(2.0, 20.0))


def _basis() -> torch.Tensor:
    return torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(0)))[0]


def _oracle(activation: object, sign: float = 1.0) -> SAE:
    sae = SAE(D, D, activation, pre_bias=False)  # type: ignore[arg-type]
    with torch.no_grad():
        sae.W_enc.copy_(sign * _basis().T)
        sae.W_dec.copy_(sign * _basis())
    return sae


def _domain(which: int, n: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Activations of a domain, and the right one of two answers.

    The domain's latent fires on every token, and the answer is read from it and from a latent
    that both domains share.
    """
    generator = torch.Generator().manual_seed(which)
    latents = 0.2 * torch.rand(n, D, generator=generator)
    latents[:, :2] = 0
    latents[:, which] = 2.0
    answer = torch.arange(n) % 2
    latents[:, 2] = answer.float()
    return latents @ _basis(), answer


def _answers(x: torch.Tensor, which: int) -> torch.Tensor:
    latents = x @ _basis().T
    knows = latents[:, which] > 0  # without its domain's latent the toy model always says 0
    return torch.where(knows, (latents[:, 2] > 0.5).long(), 0)


def _accuracies(sae: SAE, seen: list[tuple[tuple[int, ...], float]]):
    def measure(latents: Sequence[int], strength: float) -> tuple[float, float]:
        seen.append((tuple(latents), strength))
        found = []
        for which in (0, 1):
            x, answer = _domain(which)
            edited = held_down(sae, x, latents, strength) if latents else x
            found.append(float((_answers(edited, which) == answer).float().mean()))
        return found[0], found[1]

    return measure


def test_one_domain_is_forgotten_and_the_other_is_not_touched() -> None:
    sae, seen = _oracle(ReLU()), []
    with torch.no_grad():
        sae.b_enc.fill_(-0.05)  # no latent fires on a rounding error
    codes = [sae.encode(_domain(which)[0]) for which in (0, 1)]
    found = measure_unlearning(codes[0], codes[1], _accuracies(sae, seen), QUICK)
    assert seen[0] == ((), 0.0)
    assert (found.forget_before, found.retain_before) == (1.0, 1.0)
    assert found.best is not None and found.best.latents == (0,)
    assert (found.best.forget, found.best.retain) == (0.5, 1.0)
    assert found.score == 0.5


def test_the_constraint_is_enforced_before_the_minimum_is_taken() -> None:
    codes = SparseCodes.from_dense(torch.ones(4, 3))
    nothing = SparseCodes.from_dense(torch.zeros(4, 3))
    config = UnlearningConfig(retain_densities=(0.5,), n_latents=(1,), strengths=(1.0, 2.0, 3.0))
    table = {0.0: (0.9, 0.8), 1.0: (0.7, 0.795), 2.0: (0.0, 0.5), 3.0: (0.6, 0.79)}
    found = measure_unlearning(codes, nothing, lambda _, m: table[m], config)
    # 0.99 * 0.8 = 0.792: strength 1 is allowed; 2 forgets all and breaks the rest; 3 just misses
    assert [one.allowed for one in found.settings] == [True, False, False]
    assert found.best is not None and found.best.strength == 1.0
    assert found.score == pytest.approx(0.3)


def test_a_dictionary_that_can_do_nothing_scores_what_the_model_does_not_know() -> None:
    codes = SparseCodes.from_dense(torch.ones(4, 3))
    found = measure_unlearning(codes, codes, lambda *_: (0.8, 0.9))
    assert found.best is None and found.settings == []
    assert found.score == pytest.approx(0.2)


def test_latents_are_chosen_by_density_whatever_their_sign() -> None:
    forget = torch.zeros(10, 4)
    forget[:8, 0], forget[:9, 1], forget[:3, 2] = -1.0, 1.0, 1.0
    retain = torch.zeros(10, 4)
    retain[:5, 1] = -1.0
    codes = SparseCodes.from_dense(forget), SparseCodes.from_dense(retain)
    assert latents_to_forget(*codes, n=4, retain_density=0.1) == [0, 2]  # 3 never fires
    assert latents_to_forget(*codes, n=1, retain_density=0.6) == [1]
    assert latents_to_forget(*codes, n=4, retain_density=0.5) == [0, 2]  # below, not at


def test_latents_are_held_below_zero_where_they_fire_and_nowhere_else() -> None:
    sae, (x, _) = _oracle(AbsTopK(6)), _domain(0, 20)
    x = x + 0.01 * torch.randn(20, D)
    before = sae.encode(x).dense()
    after = held_down(sae, x, [0, 5], 3.0) @ _basis().T
    clean = x @ _basis().T
    for latent in range(D):
        fires = before[:, latent] != 0
        moved = fires if latent in (0, 5) else torch.zeros_like(fires)
        target = torch.where(moved, -3.0 * before[:, latent].sign(), clean[:, latent])
        assert torch.allclose(after[:, latent], target, atol=1e-4)
    assert 0 < (before[:, 5] != 0).sum() < 20


def test_turning_a_signed_latent_around_holds_it_down_the_same_way() -> None:
    x, _ = _domain(0, 20)
    one = held_down(_oracle(AbsTopK(6)), x, [0, 2, 5], 4.0)
    other = held_down(_oracle(AbsTopK(6), sign=-1.0), x, [0, 2, 5], 4.0)
    assert torch.allclose(one, other, atol=1e-4)


def test_in_a_model_position_0_stays_and_the_rest_is_edited() -> None:
    model = tiny_language_model()
    hook = "blocks.1.hook_resid_post"
    sae = SAE(32, 64, TopK(4), hook=hook)
    tokens = torch.arange(1, 13)[None]
    clean = model.activations(tokens, [hook])[hook]
    fires = sae.encode(clean[0, 1:]).firing_counts().nonzero().flatten().tolist()
    with forgetting(model, sae, fires, 5.0):
        edited = model.activations(tokens, [hook])[hook]
    assert torch.equal(edited[:, 0], clean[:, 0])
    assert torch.allclose(edited[0, 1:], held_down(sae, clean[0, 1:], fires, 5.0), atol=1e-5)
    assert (edited[0, 1:] - clean[0, 1:]).norm(dim=1).min() > 1
    with forgetting(model, sae, [], 5.0):
        assert torch.equal(model.activations(tokens, [hook])[hook], clean)
    assert torch.equal(model.activations(tokens, [hook])[hook], clean)


def test_two_dictionaries_and_no_hook_point_are_refused() -> None:
    one, two = SparseCodes.from_dense(torch.ones(2, 3)), SparseCodes.from_dense(torch.ones(2, 4))
    with pytest.raises(ShapeError, match="3 and 4"):
        latents_to_forget(one, two, 1, 0.1)
    with (
        pytest.raises(ConfigError, match="hook point"),
        forgetting(tiny_language_model(), SAE(32, 8, ReLU()), [0], 1.0),
    ):
        pass
