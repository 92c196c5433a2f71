import pytest
import torch

from saelab.activation_functions import ReLU, TopK
from saelab.errors import ConfigError
from saelab.kernels import GradientBuffers
from saelab.objectives import L1, Reconstruction, Step
from saelab.planted import PlantedAtoms, recovery
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig
from saelab.training.optimizers import Adam
from saelab.training.resampling import Resampling

DEAD = [2, 5, 11]


def dead_mask(d_sae=16):
    mask = torch.zeros(d_sae, dtype=torch.bool)
    mask[DEAD] = True
    return mask


def moved_dictionary(**settings):
    """A dictionary, its optimizer after three steps, and a batch."""
    sae = SAE(6, 16, ReLU(), **settings)
    optimizer = Adam({n: p for n, p in sae.named_parameters() if not (sae.tied and n == "W_enc")})
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 6, generator=generator)
    buffers = GradientBuffers(list(sae.parameters()))
    for _ in range(3):
        buffers.begin()
        forward = sae.forward_pairs(x, training=True, buffers=buffers)
        step = Step(sae, forward, x, 1.0, buffers)
        Reconstruction()(step).backward()
        buffers.finish()
        optimizer.step({n: buffers.of(p) for n, p in sae.named_parameters()}, 1e-2)
    return sae, optimizer, step  # pyright: ignore[reportPossiblyUnbound, reportPossiblyUnboundVariable]


def snapshot(sae):
    return {name: p.detach().clone() for name, p in sae.named_parameters()}


def test_dead_latents_are_really_replaced_and_adam_forgets_them():
    sae, optimizer, step = moved_dictionary()
    before = snapshot(sae)
    said = Resampling(1000).after_step(step, optimizer, dead_mask(), 1000)
    assert said == "3 dead latents were given new directions."
    live = ~dead_mask()
    # Chained indexing would have written to a copy, and nothing here would have changed.
    assert (sae.W_dec[DEAD] != before["W_dec"][DEAD]).any(dim=1).all()
    torch.testing.assert_close(
        sae.W_dec.norm(dim=1)[DEAD], sae.W_dec[live].norm(dim=1).mean().expand(3)
    )
    encoders = sae.W_enc.T
    cosines = torch.nn.functional.cosine_similarity(encoders[DEAD], sae.W_dec[DEAD])
    torch.testing.assert_close(cosines, torch.ones(3))
    short = 0.2 * encoders[live].norm(dim=1).mean()
    torch.testing.assert_close(encoders[DEAD].norm(dim=1), short.expand(3))
    assert not sae.b_enc[DEAD].any()
    for name in ("W_dec", "b_enc"):
        assert torch.equal(getattr(sae, name)[live], before[name][live])
    assert torch.equal(sae.W_enc[:, live], before["W_enc"][:, live])
    assert torch.equal(sae.b_dec, before["b_dec"])
    state = optimizer.state()
    for name in ("W_enc", "b_enc", "W_dec"):
        for moment in ("first", "second"):
            kept = state[f"{moment}.{name}"]
            assert not kept[DEAD].any() and kept[live].any()


def test_new_directions_point_at_tokens_and_those_with_a_large_loss_most_often():
    sae, optimizer, step = moved_dictionary()
    loss = (step.targets - step.forward.recons).square().sum(1)
    drawn = []
    for seed in range(200):
        Resampling(1000, seed=seed).after_step(step, optimizer, dead_mask(), 1000)
        toward = torch.nn.functional.normalize(step.targets - sae.b_dec, dim=1)
        similarity, token = (torch.nn.functional.normalize(sae.W_dec[DEAD], dim=1) @ toward.T).max(
            1
        )
        torch.testing.assert_close(similarity, torch.ones(3))
        assert len(token.unique()) == 3  # none twice
        drawn.append(token)
    share = torch.bincount(torch.cat(drawn), minlength=64)[loss.argsort()[-16:]].sum() / 600
    expected = loss.square().sort().values[-16:].sum() / loss.square().sum()
    assert expected > 0.5 and abs(share - expected) < 0.1


def test_the_same_step_draws_the_same_tokens():
    results = []
    for _ in range(2):
        sae, optimizer, step = moved_dictionary()
        Resampling(1000, seed=3).after_step(step, optimizer, dead_mask(), 1000)
        results.append(sae.W_dec.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("tokens_done", "mask", "happens"),
    [
        (999, dead_mask(), False),
        (1063, dead_mask(), True),  # a batch of 64 crossed 1000
        (1064, dead_mask(), False),
        (2000, dead_mask(), True),
        (3000, dead_mask(), False),  # twice is all that was asked for
        (1000, torch.zeros(16, dtype=torch.bool), False),
        (1000, torch.ones(16, dtype=torch.bool), False),
    ],
)
def test_it_happens_on_its_occasions_only(tokens_done, mask, happens):
    sae, optimizer, step = moved_dictionary()
    before = snapshot(sae)
    said = Resampling(1000, times=2).after_step(step, optimizer, mask, tokens_done)
    assert (said is not None) == happens
    assert torch.equal(sae.W_dec, before["W_dec"]) != happens


def test_more_dead_latents_than_tokens_leaves_some_as_they_are():
    sae, optimizer, step = moved_dictionary()
    few = Step(sae, sae.forward_pairs(step.targets[:2]), step.targets[:2], 1.0, None)
    assert Resampling(10).after_step(few, optimizer, dead_mask(), 10) == (
        "2 dead latents were given new directions."
    )


def test_tied_weights_stay_tied():
    sae, optimizer, step = moved_dictionary(tied=True)
    with torch.no_grad():
        sae.W_enc.copy_(sae.W_dec.T)
    Resampling(10).after_step(step, optimizer, dead_mask(), 10)
    assert torch.equal(sae.W_enc, sae.W_dec.T)


def test_a_transcoder_is_refused():
    sae = SAE(6, 16, ReLU(), d_out=4)
    x = torch.randn(8, 6)
    step = Step(sae, sae.forward_pairs(x), torch.randn(8, 4), 1.0, None)
    with pytest.raises(ConfigError, match="needs an autoencoder"):
        Resampling(10).after_step(step, Adam(dict(sae.named_parameters())), dead_mask(), 10)
    with pytest.raises(ConfigError, match="all must be positive"):
        Resampling(0)


def planted_run(upkeep):
    """A ReLU dictionary half of whose latents start so far below zero that they never fire."""
    planted = PlantedAtoms(d=16, n_atoms=20, l0=1.5, seed=11)
    sae = SAE(16, 32, ReLU())
    with torch.no_grad():
        sae.b_enc[:24] = -100.0
    config = TrainConfig(
        tokens=128 * 600, batch_size=128, lr=3e-3, warmup=0.0, dead_after_tokens=2560
    )
    store = ActivationStore.from_tensor(planted.sample(20_000, seed=1))
    terms = [Reconstruction(), L1(coefficient=1.0)]
    result = train(sae, store, config, terms=terms, upkeep=upkeep)
    return recovery(planted.atoms, sae.W_dec.detach()), result


@pytest.mark.filterwarnings("ignore:.*of the latents fired on none")
def test_it_brings_back_what_is_dead():
    without, _ = planted_run([])
    with_it, result = planted_run([Resampling(128 * 100, times=3)])
    assert without < 0.5
    assert with_it > 0.9
    assert [event["kind"] for event in result.events].count("resampling") >= 1
    assert result.metrics[-1]["dead_share"] < 0.2


def test_topk_dictionaries_can_be_resampled_too():
    sae = SAE(6, 16, TopK(2))
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    step = Step(sae, sae.forward_pairs(x), x, 1.0, None)
    said = Resampling(32).after_step(step, Adam(dict(sae.named_parameters())), dead_mask(), 32)
    assert said is not None
