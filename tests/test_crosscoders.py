import copy

import pytest
import torch

from saelab.activation_functions import BatchTopK, ReLU, TopK
from saelab.crosscoders import Crosscoder, SiteNorms, train_crosscoder
from saelab.errors import CheckpointError, ConfigError, ShapeError, StoreError
from saelab.harvesting import harvest
from saelab.objectives import L1, Reconstruction, Step
from saelab.planted import PlantedAtoms, recovery
from saelab.sae import SAE
from saelab.store import ActivationStore, joined, paired
from saelab.tokens import from_text
from saelab.training.config import TrainConfig
from tests.tiny_models import sentences, tiny_language_model

PLANTED = PlantedAtoms(d=16, n_atoms=24, l0=2.0, exact=True)
QUICK = TrainConfig(tokens=30_000, batch_size=128, lr=1e-2, warmup=0.0, decay=0.3)
SOME_DEAD = pytest.mark.filterwarnings("ignore:.*of the latents fired on none")


def store_of(**sites):
    return ActivationStore.from_tensor(sites)


def random_crosscoder(activation=None):
    x = PLANTED.sample(400, seed=1)
    store = store_of(a=x, b=300 * torch.randn(400, 7))
    crosscoder = Crosscoder.over(store, ["a", "b"], 30, activation or TopK(4))
    with torch.no_grad():
        for parameter in crosscoder.sae.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return crosscoder, store


def test_the_equations_by_hand():
    store = store_of(a=torch.tensor([[0.0], [8.0]]), b=torch.tensor([[0.0], [2.0]]))
    crosscoder = Crosscoder.over(store, ["a", "b"], 1, ReLU())
    assert [site.scale for site in crosscoder.sites] == [0.25, 1.0]
    sae = crosscoder.sae
    with torch.no_grad():
        sae.W_enc.copy_(torch.tensor([[1.0], [10.0]]))
        sae.b_enc.fill_(-1.0)
        sae.W_dec.copy_(torch.tensor([[3.0, 5.0]]))
        sae.b_dec.copy_(torch.tensor([1.0, 2.0]))
    # 8 / 4 * 1 + 2 * 10 - 1 = 21 ; a: (21 * 3 + 1) * 4 = 256 ; b: 21 * 5 + 2 = 107
    codes = crosscoder.encode({"a": torch.tensor([[8.0]]), "b": torch.tensor([[2.0]])})
    assert codes.dense().tolist() == [[21.0]]
    recons = crosscoder.decode(codes)
    assert recons["a"].tolist() == [[256.0]] and recons["b"].tolist() == [[107.0]]


def test_a_view_of_the_store_is_what_encode_reads():
    crosscoder, store = random_crosscoder()
    rows = store.rows(0, 50, ["a", "b"]).activations
    view = crosscoder.view(store)
    seen = view.rows(0, 50).activations
    assert torch.equal(crosscoder.sae.encode(seen).dense(), crosscoder.encode(rows).dense())
    assert view.d_in == 23 and view.hook == "a + b"
    assert view.at("b").d_in == 7  # its own hook points stay readable


def test_every_site_has_about_unit_variance_in_the_view_whatever_its_units():
    crosscoder, store = random_crosscoder()
    seen = crosscoder.view(store).sample(400)
    for part in seen.split([16, 7], dim=1):
        assert 0.5 <= part.var(0).mean() <= 2


def test_scaling_a_site_by_a_power_of_two_changes_no_bit_of_training():
    x, y = PLANTED.sample(600, seed=1), torch.randn(600, 16)
    results = []
    for factor in (1.0, 64.0):
        store = store_of(a=x, b=factor * y)
        crosscoder = Crosscoder.over(store, ["a", "b"], 32, TopK(4))
        train_crosscoder(crosscoder, store, TrainConfig(tokens=2000, batch_size=100))
        results.append(crosscoder.sae.W_dec.detach().clone())
    assert torch.equal(*results)


def test_a_saved_crosscoder_is_the_same_to_the_last_bit(tmp_path):
    crosscoder, store = random_crosscoder(BatchTopK(3.0))
    assert isinstance(crosscoder.sae.activation, BatchTopK)
    crosscoder.sae.activation.threshold.fill_(1.5)
    crosscoder.save(tmp_path / "c")
    again = Crosscoder.load(tmp_path / "c")
    rows = store.rows(0, 50, ["a", "b"]).activations
    assert again.sites == crosscoder.sites
    codes = crosscoder.encode(rows)
    assert torch.equal(again.encode(rows).values, codes.values)
    for hook, recons in crosscoder.decode(codes).items():
        assert torch.equal(again.decode(codes)[hook], recons)
    SAE(4, 8, TopK(2)).save(tmp_path / "sae")
    with pytest.raises(CheckpointError, match="holds no crosscoder"):
        Crosscoder.load(tmp_path / "sae")


def test_a_run_folder_opens_as_a_crosscoder(tmp_path):
    store = store_of(a=PLANTED.sample(300, seed=1), b=PLANTED.sample(300, seed=2))
    crosscoder = Crosscoder.over(store, ["a", "b"], 32, TopK(4))
    config = TrainConfig(tokens=1000, batch_size=100)
    train_crosscoder(crosscoder, store, config, tmp_path / "run")
    again = Crosscoder.load(tmp_path / "run" / "sae")
    assert torch.equal(again.relative_norms(), crosscoder.relative_norms())
    train_crosscoder(crosscoder, store, config, tmp_path / "run")  # the same run: nothing to do


@SOME_DEAD
def test_identical_sites_end_with_equal_norms_from_unequal_starts():
    x = PLANTED.sample(4000, seed=1)
    store = store_of(a=x, b=x.clone())
    crosscoder = Crosscoder.over(store, ["a", "b"], 32, TopK(2), start="independent")
    before = crosscoder.relative_norms()[0]
    assert (before - 0.5).abs().max() > 0.05
    train_crosscoder(crosscoder, store, QUICK)
    codes = crosscoder.encode({"a": x, "b": x})
    alive = codes.firing_counts() > 40
    assert alive.sum() >= 20
    assert (crosscoder.relative_norms()[:, alive] - 0.5).abs().max() < 0.03
    assert crosscoder.cosines("a", "b")[alive].min() > 0.98


def test_starting_alike_keeps_identical_sites_alike():
    x = PLANTED.sample(1000, seed=1)
    store = store_of(a=x, b=x.clone())
    crosscoder = Crosscoder.over(store, ["a", "b"], 32, TopK(2), start="same")
    train_crosscoder(crosscoder, store, TrainConfig(tokens=4000, batch_size=200))
    torch.testing.assert_close(crosscoder.decoder("a"), crosscoder.decoder("b"))


@SOME_DEAD
def test_atoms_of_one_site_are_told_from_atoms_of_both():
    """12 atoms that both sites have, 6 that only a has, 6 that only b has."""
    first, second = PLANTED, PlantedAtoms(d=16, n_atoms=24, l0=2.0, exact=True, seed=9)
    chosen = PLANTED.coefficients(8000, seed=1)
    in_a, in_b = torch.ones(24), torch.ones(24)
    in_a[18:], in_b[12:18] = 0, 0
    store = store_of(a=(chosen * in_a) @ first.atoms, b=(chosen * in_b) @ second.atoms)
    crosscoder = Crosscoder.over(store, ["a", "b"], 48, TopK(2))
    train_crosscoder(crosscoder, store, QUICK)
    codes = crosscoder.encode(store.rows(0, 8000, ["a", "b"]).activations)
    alive = codes.firing_counts() > 80
    shares = crosscoder.relative_norms()[0]
    for atoms, hook, low, high in (
        (first.atoms[12:18], "a", 0.9, 1.0),
        (second.atoms[18:], "b", 0.0, 0.1),
        (first.atoms[:12], "a", 0.25, 0.75),
    ):
        within = alive & (shares >= low) & (shares <= high)
        assert recovery(atoms, crosscoder.decoder(hook)[within]) >= 0.8


def test_measure_gives_each_sites_own_fvu():
    crosscoder, store = random_crosscoder()
    rows = store.rows(0, 400, ["a", "b"]).activations
    with torch.no_grad():
        recons = crosscoder.decode(crosscoder.encode(rows))
    found = crosscoder.measure(store, chunk=77)
    for hook, x in rows.items():
        spread = (x - x.mean(0)).square().sum()
        expected = float((x - recons[hook]).square().sum() / spread)
        assert found[hook].result().fvu == pytest.approx(expected, rel=1e-5)


def penalty_step(crosscoder, x):
    forward = crosscoder.sae.forward_pairs(x)
    return Step(crosscoder.sae, forward, x, 2.0, None)


def test_the_penalty_adds_norms_over_sites_and_is_at_least_l1():
    crosscoder, store = random_crosscoder(ReLU())
    x = crosscoder.view(store).rows(0, 20).activations
    step = penalty_step(crosscoder, x)
    latents = crosscoder.sae.encode(x).dense()
    expected = 3.0 * (latents * crosscoder.norms().sum(0)).sum() / (20 * 2.0)
    found = SiteNorms((16, 7), coefficient=3.0, warmup=0.0)(step)
    torch.testing.assert_close(found, expected)
    assert found > L1(coefficient=3.0, warmup=0.0)(step)
    one_site = SiteNorms((23,), coefficient=3.0, warmup=0.0)(step)
    torch.testing.assert_close(one_site, L1(coefficient=3.0, warmup=0.0)(step))


def test_the_penaltys_gradient_is_its_difference_quotient():
    crosscoder, store = random_crosscoder(ReLU())
    sae = copy.deepcopy(crosscoder.sae).to(torch.float64)
    x = crosscoder.view(store).rows(0, 8).activations.double()
    term = SiteNorms((16, 7), coefficient=3.0, warmup=0.0)

    def value():
        return term(Step(sae, sae.forward_pairs(x), x, 2.0, None))

    value().backward()
    for parameter, place in ((sae.W_dec, (3, 5)), (sae.W_dec, (4, 20)), (sae.W_enc, (2, 6))):
        assert parameter.grad is not None
        with torch.no_grad():
            before = parameter[place].item()
            sides = []
            for shift in (1e-6, -1e-6):
                parameter[place] = before + shift
                sides.append(value().item())
            parameter[place] = before
        assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(parameter.grad[place].item(), rel=1e-4)


def test_a_relu_crosscoder_trains_with_free_norms():
    x = PLANTED.sample(3000, seed=1)
    store = store_of(a=x, b=x.roll(1, dims=1))
    crosscoder = Crosscoder.over(store, ["a", "b"], 32, ReLU())
    config = TrainConfig(tokens=12_000, batch_size=128, lr=1e-2, decoder="free")
    terms = [Reconstruction(), SiteNorms((16, 16), coefficient=0.2)]
    result = train_crosscoder(crosscoder, store, config, terms=terms)
    assert result.metrics[-1]["site_norms"] > 0
    assert result.metrics[-1]["fvu"] < 0.5


def test_bad_sites_are_refused_with_what_was_found():
    crosscoder, store = random_crosscoder()
    with pytest.raises(ShapeError, match="reads width 7 at b; got width 6"):
        crosscoder.encode({"a": torch.zeros(1, 16), "b": torch.zeros(1, 6)})
    with pytest.raises(ShapeError, match="reads width 7 at b; got nothing"):
        crosscoder.encode({"a": torch.zeros(1, 16)})
    with pytest.raises(ConfigError, match="needs sites of one width"):
        Crosscoder.over(store, ["a", "b"], 8, TopK(2), start="same")
    with pytest.raises(ShapeError, match="different spaces have no cosine"):
        crosscoder.cosines("a", "b")
    with pytest.raises(ConfigError, match="each once"):
        joined(store, ["a", "a"])
    with pytest.raises(ConfigError, match="no activations at 'c'"):
        joined(store, ["a", "c"])
    with pytest.raises(ConfigError, match="it is not a crosscoder's"):
        Crosscoder(SAE(4, 8, TopK(2)))


@pytest.fixture(scope="module")
def two_stores(tmp_path_factory):
    """Two models' stores of the same tokens, in several shards, each without its own outliers."""
    folder, stores = tmp_path_factory.mktemp("two"), {}
    for seed in (0, 1):  # two models
        model = tiny_language_model(seed)
        tokens = from_text(model, sentences(12), length=32)
        store = harvest(
            model,
            tokens,
            ["blocks.1.hook_resid_post"],
            folder / str(seed),
            rows_per_batch=4,
            tokens_per_shard=256,
            dtype="float32",
            outlier_factor=1.2,
        )
        stores[f"m{seed}"] = store
    return stores


def test_two_models_stores_become_one_with_aligned_rows(two_stores):
    pair = paired(two_stores)
    hooks = ["m0:blocks.1.hook_resid_post", "m1:blocks.1.hook_resid_post"]
    assert pair.hooks == hooks
    sizes = [store.n_tokens for store in two_stores.values()]
    assert 0 < pair.n_tokens < min(sizes)  # each dropped outliers of its own
    rows = pair.rows(0, pair.n_tokens, hooks)
    for name, store in two_stores.items():
        own = store.rows(0, store.n_tokens)
        places = {
            (int(row), int(position)): i
            for i, (row, position) in enumerate(
                zip(own.addresses.row, own.addresses.position, strict=True)
            )
        }
        wanted = [
            places[int(row), int(position)]
            for row, position in zip(rows.addresses.row, rows.addresses.position, strict=True)
        ]
        found = rows.activations[f"{name}:blocks.1.hook_resid_post"]
        assert torch.equal(found, own.activations[wanted])


def test_a_crosscoder_of_two_models_trains(two_stores):
    pair = paired(two_stores)
    crosscoder = Crosscoder.over(pair, pair.hooks, 64, TopK(8))
    result = train_crosscoder(crosscoder, pair, TrainConfig(tokens=4000, batch_size=100, lr=1e-2))
    assert result.metrics[-1]["fvu"] < 0.7
    assert set(result.sae.metadata["data"]["models"]) == {"m0", "m1"}


def test_stores_of_other_tokens_or_shards_are_refused(two_stores, tmp_path):
    model = tiny_language_model()
    hooks = ["blocks.1.hook_resid_post"]
    other = harvest(model, from_text(model, sentences(5), length=32), hooks, tmp_path / "other")
    with pytest.raises(StoreError, match="hold different tokens"):
        paired({"a": two_stores["m0"], "b": other})
    tokens = from_text(model, sentences(12), length=32)
    coarse = harvest(model, tokens, hooks, tmp_path / "coarse", rows_per_batch=4)
    with pytest.raises(StoreError, match="cut differently"):
        paired({"a": two_stores["m0"], "b": coarse})
    short = ActivationStore.from_tensor(torch.randn(4, 3))
    with pytest.raises(StoreError, match="cut differently"):
        paired({"a": short, "b": ActivationStore.from_tensor(torch.randn(5, 3))})
    with pytest.raises(ConfigError, match="at least two"):
        paired({"a": short})
