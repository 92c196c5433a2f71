"""Interchange on a toy model that reads each attribute from a subspace of its own."""

import pytest
import torch

from saelab.activation_functions import AbsTopK
from saelab.errors import ConfigError, DataError
from saelab.probing.interchange import (
    InterchangeConfig,
    Pairs,
    exchanged,
    learn_mask,
    measure_mask,
)
from saelab.sae import SAE

D, N_ENTITIES, N_VALUES = 16, 40, 4
QUICK = InterchangeConfig(n_epochs=12, lr=0.05, batch_size=128)


def _basis(seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(D, D, generator=torch.Generator().manual_seed(seed)))[0]


def _sae(rows: torch.Tensor, bias: float = 0.0) -> SAE:
    sae = SAE(D, D, AbsTopK(D), pre_bias=False)
    with torch.no_grad():
        sae.W_enc.copy_(rows.T)
        sae.W_dec.copy_(rows)
        sae.b_dec.fill_(bias)
    return sae


def _entities() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activations, attribute A (directions 0 to 3) and attribute B (directions 4 to 7)."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randint(N_VALUES, (N_ENTITIES,), generator=generator)
    b = torch.randint(N_VALUES, (N_ENTITIES,), generator=generator)
    latents = 0.1 * torch.randn(N_ENTITIES, D, generator=generator)
    latents[torch.arange(N_ENTITIES), a] += 2
    latents[torch.arange(N_ENTITIES), 4 + b] += 2
    return latents @ _basis(), a, b


def _pairs(n: int = 900) -> tuple[Pairs, torch.Tensor]:
    """Pairs in which both attributes differ; cause pairs ask for A, isolation pairs for B."""
    x, a, b = _entities()
    generator = torch.Generator().manual_seed(2)
    base, source = torch.randint(N_ENTITIES, (2, n), generator=generator)
    kept = (a[base] != a[source]) & (b[base] != b[source])
    base, source = base[kept], source[kept]
    cause = torch.arange(len(base)) % 2 == 0
    pairs = Pairs(
        base=x[base],
        source=x[source],
        answer=torch.where(cause, a[source], b[base]),
        cause=cause,
        base_entity=base,
        source_entity=source,
    )
    return pairs, cause


def _readout(pairs: Pairs):
    basis = _basis()

    def read(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        latents = 5 * x @ basis.T
        return torch.where(pairs.cause[rows][:, None], latents[:, :4], latents[:, 4:8])

    return read


def test_oracle_latents_are_disentangled_on_entities_not_seen() -> None:
    pairs, _ = _pairs()
    train, test = pairs.divided()
    seen = set(pairs.base_entity[train].tolist()) | set(pairs.source_entity[train].tolist())
    held = set(pairs.base_entity[test].tolist()) | set(pairs.source_entity[test].tolist())
    assert not seen & held
    sae, read = _sae(_basis()), _readout(pairs)
    mask = learn_mask(sae, pairs, train, read, QUICK)
    assert set(range(4)) <= set(mask.nonzero().flatten().tolist())
    assert not set(range(4, 8)) & set(mask.nonzero().flatten().tolist())
    found = measure_mask(sae, pairs, test, read, mask)
    assert found.disentanglement == 1.0 and found.n_pairs == len(test)


def test_latents_that_mix_both_attributes_are_not() -> None:
    pairs, _ = _pairs()
    train, test = pairs.divided()
    rows = _basis().clone()
    mixed = (rows[:4] + rows[4:8]) / 2**0.5, (rows[:4] - rows[4:8]) / 2**0.5
    rows[:4] = mixed[0]  # A and B in one latent, and nothing that takes them apart
    rows[4:8] = _basis(7)[:4] * 1e-3
    sae, read = _sae(rows), _readout(pairs)
    mask = learn_mask(sae, pairs, train, read, QUICK)
    assert measure_mask(sae, pairs, test, read, mask).disentanglement < 0.7


@pytest.mark.parametrize("keep_error", [True, False])
def test_exchanging_everything_or_nothing_is_chance(keep_error: bool) -> None:
    pairs, _ = _pairs()
    _, test = pairs.divided()
    sae, read = _sae(_basis()), _readout(pairs)
    every, none = torch.ones(D, dtype=torch.bool), torch.zeros(D, dtype=torch.bool)
    all_of_them = measure_mask(sae, pairs, test, read, every, keep_error=keep_error)
    nothing = measure_mask(sae, pairs, test, read, none, keep_error=keep_error)
    assert (all_of_them.cause, all_of_them.isolation) == (1, 0)
    assert (nothing.cause, nothing.isolation) == (0, 1)
    assert all_of_them.disentanglement == nothing.disentanglement == 0.5


def test_exchanging_nothing_with_the_error_kept_changes_no_bit() -> None:
    pairs, _ = _pairs(50)
    sae = SAE(D, 8, AbsTopK(2))
    same = exchanged(sae, pairs.base, pairs.source, torch.zeros(8))
    assert torch.equal(same, pairs.base)
    recons = exchanged(sae, pairs.base, pairs.source, torch.zeros(8), keep_error=False)
    assert torch.allclose(recons, sae(pairs.base).detach(), atol=1e-5)
    other = exchanged(sae, pairs.base, pairs.source, torch.ones(8), keep_error=False)
    assert torch.allclose(other, sae(pairs.source).detach(), atol=1e-5)


def test_sides_without_a_kind_of_pair_are_refused() -> None:
    pairs, cause = _pairs()
    one_kind = Pairs(**{**vars(pairs), "cause": torch.ones_like(cause)})
    with pytest.raises(DataError, match="lacks cause or isolation"):
        one_kind.divided()
    with pytest.raises(DataError, match="cause pairs and isolation"):
        rows = torch.arange(4)
        measure_mask(
            _sae(_basis()), one_kind, rows, _readout(pairs), torch.ones(D, dtype=torch.bool)
        )
    with pytest.raises(ConfigError, match="positive numbers"):
        InterchangeConfig(n_epochs=0)


@pytest.mark.parametrize("keep_error", [True, False])
def test_turning_signed_latents_around_exchanges_the_same(keep_error: bool) -> None:
    pairs, _ = _pairs(50)
    sign = torch.where(torch.arange(12) % 2 == 0, -1.0, 1.0)
    mask = (torch.arange(12) < 7).float()
    found = []
    for turn in (torch.ones(12), sign):
        sae = SAE(D, 12, AbsTopK(4), seed=3)
        with torch.no_grad():
            sae.W_dec.mul_(turn[:, None])
            sae.W_enc.mul_(turn)
        found.append(exchanged(sae, pairs.base, pairs.source, mask, keep_error=keep_error))
    assert torch.allclose(found[0], found[1], atol=1e-5)
    assert not torch.allclose(found[0], pairs.base, atol=1e-2)
