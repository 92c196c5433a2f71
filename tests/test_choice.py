"""Mutual Choice and Feature Choice: who is kept, what inference needs, and the budgets."""

import pytest
import torch

from saelab.activation_functions import BatchTopK, Choice, SelectAgain
from saelab.activation_functions.candidates import LatentBorders, divided
from saelab.errors import CheckpointError, ConfigError
from saelab.kernels import encode_pairs
from saelab.objectives import AuxZipf, Reconstruction, Step
from saelab.planted import PlantedAtoms, recovery
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from saelab.store import ActivationStore
from saelab.training import Trainer, train
from saelab.training.config import TrainConfig

FEATURE = ((1.0, "feature"),)
MUTUAL = ((1.0, "mutual"),)


def kept(activation, x, rows, observe=True):
    """What a training step keeps, densely."""
    zero = torch.zeros(len(rows), dtype=x.dtype)
    while True:
        ((pairs, values),) = encode_pairs(x, rows, zero, [activation.select_training])
        try:
            mask = activation.settle(pairs, values)
        except SelectAgain:
            continue
        tokens, latents = pairs.tokens(), pairs.indices
        if mask is not None:
            tokens, latents, values = tokens[mask], latents[mask], values[mask]
        if observe:
            activation.observe(values)
        return SparseCodes.from_pairs(tokens, latents, values, len(x), len(rows)).dense()


def set_up(d_sae, *args, **settings):
    activation = Choice(*args, **settings)
    activation.setup(8, d_sae)
    activation.begin_step(0.0, {})
    return activation


def feature_choice(z, budgets):
    """The definition: TopK of every column, positive entries only."""
    found = torch.zeros_like(z)
    for latent, budget in enumerate(budgets.tolist()):
        best = z[:, latent].topk(budget).indices
        found[best, latent] = z[best, latent].relu()
    return found


@pytest.mark.parametrize("k", [3.0, 7.5])
def test_feature_choice_keeps_each_latents_strongest_and_no_other(k):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 8, generator=generator)
    activation = set_up(60, k, phases=FEATURE)
    for scale in (1.0, 0.2, 30.0):  # a moving distribution: the guesses are off both ways
        x = scale * torch.randn(80, 8, generator=generator)
        budgets = divided(torch.ones(60), int(k * 80), 80)
        found = kept(activation, x, rows)
        torch.testing.assert_close(found, feature_choice(x @ rows.T, budgets))
        assert (found > 0).sum() <= int(k * 80)
    assert activation.repeats > 0


def test_under_feature_choice_every_latent_fires_as_often_as_its_budget_allows():
    generator = torch.Generator().manual_seed(1)
    rows, x = torch.randn(40, 8, generator=generator), torch.randn(80, 8, generator=generator)
    counts = (kept(set_up(40, 5.0, phases=FEATURE), x, rows) > 0).sum(0)
    assert (counts == 10).all()


def test_no_swap_of_entries_raises_what_an_allocator_keeps():
    generator = torch.Generator().manual_seed(2)
    rows, x = torch.randn(20, 8, generator=generator), torch.randn(30, 8, generator=generator)
    z = (x @ rows.T).relu()
    mutual = kept(set_up(20, 2.0, phases=MUTUAL), x, rows) > 0
    assert z[mutual].min() >= z[~mutual].max()
    feature = kept(set_up(20, 2.0, phases=FEATURE), x, rows) > 0
    for latent in range(20):
        inside, outside = z[feature[:, latent], latent], z[~feature[:, latent], latent]
        assert inside.min() >= outside.max()


def test_mutual_choice_keeps_what_batch_topk_keeps_and_learns_its_threshold():
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(50, 8, generator=generator)
    ours, theirs = set_up(50, 2.5, phases=MUTUAL), BatchTopK(2.5)
    theirs.setup(8, 50)
    for _ in range(5):
        x = torch.randn(40, 8, generator=generator)
        assert torch.equal(kept(ours, x, rows), kept(theirs, x, rows))
    assert torch.equal(ours.threshold, theirs.threshold.expand(50))


def test_zeros_are_never_kept_where_a_latent_has_too_few_positive_entries():
    rows = torch.eye(4)
    x = -torch.ones(8, 4)
    x[0, 0] = 1.0
    activation = set_up(4, 2.0, phases=FEATURE)
    assert (kept(activation, x, rows) != 0).sum() == 1
    # No budget was filled, so no border was seen and no threshold moved.
    assert not activation.threshold.any() and not activation.batches.any()


def test_thresholds_are_the_mean_of_each_latents_weakest_kept_entry():
    rows, activation = torch.eye(2), set_up(2, 1.0, phases=FEATURE)
    first = torch.tensor([[4.0, 1.0], [3.0, 2.0], [2.0, 3.0], [1.0, 4.0]])
    kept(activation, first, rows)  # two each: the weakest are 3 and 3
    assert activation.threshold.tolist() == [3.0, 3.0]
    kept(activation, first * torch.tensor([2.0, 1.0]), rows)
    assert activation.threshold.tolist() == [4.5, 3.0]
    # Inference: strictly above, whatever else is in the batch.
    assert activation(torch.tensor([[4.5, 3.1]])).tolist() == [[0.0, 3.0999999046325684]]


def test_the_phase_follows_the_share_of_the_budget_and_starts_its_own_mean():
    activation = set_up(2, 1.0, phases=((0.5, "mutual"), (0.5, "feature")))
    rows, x = torch.eye(2), torch.tensor([[4.0, 1.0], [3.0, 2.0]])
    kept(activation, x, rows)
    assert activation.threshold.tolist() == [3.0, 3.0]
    activation.begin_step(0.499, {})
    assert activation.allocator == "mutual"
    activation.begin_step(0.5, {})
    assert activation.allocator == "feature"
    kept(activation, x, rows)  # one each: 4 and 2 replace the old mean
    assert activation.threshold.tolist() == [4.0, 2.0]


def test_a_batch_too_small_to_give_every_latent_one_token_is_refused_from_the_start():
    activation = set_up(64, 2.0)
    x, rows = torch.randn(31, 8), torch.randn(64, 8)
    with pytest.raises(ConfigError, match=r"62 active .* batch of 31 .* 64 latents .* 32 tokens"):
        kept(activation, x, rows)
    kept(set_up(64, 2.0, phases=MUTUAL), x, rows)  # Mutual Choice needs no such thing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phases": ((0.5, "mutual"),)}, "must be positive and sum to 1"),
        ({"phases": ((1.0, "token"),)}, "knows no 'token'"),
        ({"phases": FEATURE, "budgets": "zipf"}, "a mutual phase shows"),
        ({"budgets": "even"}, "'uniform' or 'zipf'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Choice(2.0, **settings)
    with pytest.raises(ConfigError, match="k must be positive"):
        Choice(0.0)
    with pytest.raises(ConfigError, match=r"asks for more latents .*d_sae=4"):
        Choice(5.0).setup(2, 4)
    with pytest.raises(CheckpointError, match="needs 8 thresholds"):
        set_up(8, 2.0).load_file_tensors({"threshold": torch.zeros(3)})


class TestBudgets:
    def test_they_sum_to_the_total_and_stay_in_bounds(self):
        generator = torch.Generator().manual_seed(0)
        for total in (100, 101, 777, 5000):
            weights = torch.rand(100, generator=generator).double().pow(4) + 1e-6
            budgets = divided(weights, total, 60)
            assert int(budgets.sum()) == total
            assert int(budgets.min()) >= 1 and int(budgets.max()) <= 60
            order = weights.argsort()
            assert (budgets[order].diff() >= -1).all()

    def test_equal_weights_give_equal_budgets(self):
        assert divided(torch.ones(4), 8, 100).tolist() == [2, 2, 2, 2]
        assert divided(torch.ones(4), 10, 100).tolist() == [3, 3, 2, 2]
        assert divided(torch.ones(3), 9, 3).tolist() == [3, 3, 3]

    def test_zipf_budgets_follow_the_ranks_of_the_mutual_phase(self):
        activation = set_up(50, 2.0, phases=((0.5, "mutual"), (0.5, "feature")), budgets="zipf")
        shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(0))
        true = 0.5 / torch.arange(1, 51).double()
        activation.density[shuffled] = true
        activation.begin_step(0.6, {})
        torch.testing.assert_close(activation.weights[shuffled], true)
        budgets = divided(activation.weights, 200, 100)[shuffled]
        assert budgets[0] == 44 and budgets[-1] == 1 and int(budgets.sum()) == 200

    def test_equal_strengths_at_the_border_go_to_the_first_tokens(self):
        rows = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        x = torch.ones(6, 2)
        for phases in (MUTUAL, FEATURE):
            activation = set_up(2, 1.0, phases=phases)
            for guess in (0.0, 0.5, 0.99):
                activation._border.guess = guess
                activation._borders.guess = torch.full((2,), guess)
                found = kept(activation, x, rows, observe=False)
                assert found.sum(1).tolist() == [2.0, 2.0, 2.0, 0.0, 0.0, 0.0]


def test_candidates_stay_few():
    # The point of the guesses: about twice the budget and a dozen more for each latent.
    generator = torch.Generator().manual_seed(0)
    borders, seen = LatentBorders(), []
    budgets = torch.full((200,), 8)
    for _ in range(6):
        z = torch.randn(1000, 200, generator=generator)

        def select(chunk):
            mask = borders.candidates(chunk, budgets / 1000)
            row, latent = mask.nonzero(as_tuple=True)
            return row, latent, chunk[row, latent]

        while True:
            ((pairs, values),) = encode_pairs(z, torch.eye(200), torch.zeros(200), [select])
            try:
                borders.settle(pairs, values, budgets)
            except SelectAgain:
                continue
            break
        seen.append(pairs.n_pairs / 200)
    assert borders.repeats == 0
    assert all(20 < count < 50 for count in seen)


def sae_of(activation, d_in=6, d_sae=20):
    sae = SAE(d_in, d_sae, activation, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return sae, torch.randn(30, d_in, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("phases", [MUTUAL, FEATURE], ids=["mutual", "feature"])
def test_gradients_equal_those_of_the_dense_definition(phases):
    sae, x = sae_of(Choice(2.0, phases=phases))
    sae.activation.begin_step(0.0, {})
    step = Step(sae, sae.forward_pairs(x, training=True), x, 2.5, None)
    parameters = list(sae.parameters())
    found = Reconstruction()(step)
    ours = torch.autograd.grad(found, parameters)
    z = (x - sae.b_dec) @ sae.W_enc + sae.b_enc
    if phases == MUTUAL:
        mask = z >= z.detach().flatten().topk(60).values.min()
    else:
        mask = feature_choice(z.detach(), torch.full((20,), 3)) > 0
    recons = torch.where(mask, z, 0.0) @ sae.W_dec + sae.b_dec
    expected = (x - recons).square().sum(1).mean() / 2.5
    theirs = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(found, expected)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-12)


PLANTED = PlantedAtoms(d=32, n_atoms=48, l0=3.0, exact=True, seed=11)


def trained(activation, tokens=153_600, terms=None, folder=None, **settings):
    sae = SAE(32, 64, activation)
    store = ActivationStore.from_tensor(PLANTED.sample(32_768, seed=1))
    config = TrainConfig(tokens=tokens, batch_size=512, lr=5e-3, warmup=0.0, **settings)
    train(sae, store, config, folder, terms=terms)
    return sae


@pytest.mark.parametrize("budgets", ["uniform", "zipf"])
def test_planted_atoms_are_found(budgets):
    sae = trained(Choice(3.0, budgets=budgets))
    x = PLANTED.sample(5000, seed=2)
    codes = sae.encode(x)
    assert recovery(PLANTED.atoms, sae.W_dec.detach()) > 0.8
    assert (codes.firing_counts() > 0).all()
    fvu = (x - sae.decode(codes)).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < 0.25
    assert codes.l0().float().mean() == pytest.approx(3.0, rel=0.15)


def test_what_is_saved_encodes_the_same_and_inference_does_not_depend_on_the_batch(tmp_path):
    sae = trained(Choice(3.0), tokens=30_720)
    x = PLANTED.sample(300, seed=2)
    sae.save(tmp_path / "sae")
    again = SAE.load(tmp_path / "sae")
    assert torch.equal(again.encode(x).dense(), sae.encode(x).dense())
    assert torch.equal(again.encode(x[7:8]).indices, sae.encode(x)[7].indices)
    assert isinstance(sae.activation, Choice)
    assert len(sae.activation.threshold.unique()) == 64  # each latent its own


def test_a_run_stopped_in_either_phase_ends_with_the_same_bits(tmp_path):
    def run(folder, stops=()):
        trainer = None
        for stop in (*stops, 20):
            sae = SAE(
                32, 48, Choice(3.0, phases=((0.5, "mutual"), (0.5, "feature")), budgets="zipf")
            )
            store = ActivationStore.from_tensor(PLANTED.sample(4096, seed=1))
            config = TrainConfig(tokens=20 * 128, batch_size=128, checkpoint_every_tokens=10**9)
            trainer = Trainer(sae, store, config, folder, [Reconstruction(), AuxZipf()])
            while trainer.steps_done < stop:
                trainer.step()
            trainer.save_checkpoint()
        assert trainer is not None
        return {**trainer.sae.state_dict(), **trainer.terms[1].state()}

    whole, parts = run(tmp_path / "whole"), run(tmp_path / "parts", stops=(4, 10, 15))
    assert whole.keys() == parts.keys() and "density" in whole
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
