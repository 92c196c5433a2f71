"""Dictionaries that write to another place than they read, from weights to spliced losses."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from saelab.activation_functions import (
    AbsTopK,
    BatchTopK,
    JumpReLU,
    ReLU,
    TopK,
)
from saelab.directions import aimed
from saelab.errors import ConfigError, ShapeError
from saelab.evaluation import EvaluateConfig, evaluate
from saelab.fidelity import loss_effects
from saelab.files import read_tensors
from saelab.harvesting import harvest
from saelab.metrics import fvu
from saelab.normalization import Normalization
from saelab.objectives import L1, AuxK, Reconstruction, TargetL0
from saelab.planted import recovery
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.tokens import from_text
from saelab.training import Trainer, train
from saelab.training.config import TrainConfig
from tests.tiny_models import sentences, tiny_language_model

GOLDEN = Path(__file__).parent / "golden" / "saelens"
UNEQUAL = Normalization(scale_in=4.0, scale_out=0.25)
MLP_IN, MLP_OUT = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
RULES = [ReLU(), TopK(3), AbsTopK(3), BatchTopK(2.5), JumpReLU(threshold=0.3, bandwidth=0.2)]


def random_transcoder(activation=None, seed=0, d_in=5, d_out=7, **settings) -> SAE:
    """Every parameter random and none special; other widths and scales at the two ends."""
    settings = {"hook": "in", "hook_out": "out", "normalization": UNEQUAL, **settings}
    sae = SAE(d_in, 12, copy.deepcopy(activation) or TopK(3), d_out=d_out, **settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    if isinstance(sae.activation, BatchTopK):
        sae.activation.threshold.fill_(0.625)
    sae.activation.constrain()
    return sae


def inputs(rows=30, seed=1):
    return torch.randn(rows, 5, generator=torch.Generator().manual_seed(seed))


def test_the_equations_by_hand():
    sae = SAE(1, 1, ReLU(), hook="in", hook_out="out", d_out=2, skip=True)
    sae.normalization = Normalization(scale_in=2.0, scale_out=0.5)
    with torch.no_grad():
        sae.W_enc.fill_(3.0)
        sae.b_enc.fill_(-1.0)
        sae.W_dec.copy_(torch.tensor([[1.0, 2.0]]))
        sae.b_dec.copy_(torch.tensor([10.0, 20.0]))
        assert sae.W_skip is not None
        sae.W_skip.copy_(torch.tensor([[100.0, 200.0]]))
    # x = 1: scaled 2; z = 2 * 3 - 1 = 5, with nothing subtracted from the input; the first output
    # (5 * 1 + 10 + 2 * 100) / 0.5 = 430, the second twice that.
    x = torch.tensor([[1.0]])
    assert sae.encode(x).dense().tolist() == [[5.0]]
    assert sae(x).tolist() == sae.decode(sae.encode(x), x).tolist() == [[430.0, 860.0]]
    with pytest.raises(ConfigError, match=r"pass decode\(codes, x\)"):
        sae.decode(sae.encode(x))


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_folding_saving_and_loading_change_no_bit_with_two_scales(rule, skip, tmp_path):
    sae, x = random_transcoder(rule, skip=skip), inputs()
    sae.save(tmp_path / "t")
    for other in (SAE.load(tmp_path / "t"), sae.folded()):
        assert torch.equal(other.encode(x).dense(), sae.encode(x).dense())
        assert torch.equal(other(x), sae(x))
    again = SAE.load(tmp_path / "t")
    assert again.settings() == sae.settings()
    for name, value in sae.state_dict().items():
        if name in ("W_enc", "W_dec", "b_dec", "W_skip"):
            assert torch.equal(again.state_dict()[name], value)
    assert sae.folded().normalization == Normalization()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_gradients_of_forward_equal_the_dense_definitions(rule, skip):
    sae = random_transcoder(rule, skip=skip).to(torch.float64)
    x = inputs().double().requires_grad_()
    weights = [x, sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec]
    weights += [sae.W_skip] if sae.W_skip is not None else []
    sparse = torch.autograd.grad(sae(x).sin().sum(), weights)
    latents = sae.activation(sae.pre_activations(x))
    dense = torch.autograd.grad(sae.decode(latents, x).sin().sum(), weights)
    for one, other in zip(sparse, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_the_skips_gradient_is_its_difference_quotient():
    sae = random_transcoder(skip=True).to(torch.float64)
    x = inputs().double()
    assert sae.W_skip is not None
    (gradient,) = torch.autograd.grad(sae(x).sin().sum(), [sae.W_skip])
    with torch.no_grad():
        for place in ((0, 0), (4, 6), (2, 3)):
            before, sides = sae.W_skip[place].item(), []
            for shift in (1e-6, -1e-6):
                sae.W_skip[place] = before + shift
                sides.append(sae(x).sin().sum().item())
            sae.W_skip[place] = before
            assert (sides[0] - sides[1]) / 2e-6 == pytest.approx(gradient[place].item(), rel=1e-5)


def test_a_tied_decoder_or_a_pre_bias_is_refused():
    bad: list[dict[str, Any]] = [{"tied": True}, {"pre_bias": True}]
    for settings in bad:
        with pytest.raises(ConfigError, match="cannot be a transcoder"):
            SAE(4, 8, TopK(2), hook="a", hook_out="b", **settings)


# What SAELens opens


SAELENS = {
    "transcoder": (ReLU(), False),
    "skip_transcoder": (ReLU(), True),
    "jumprelu_transcoder": (JumpReLU(threshold=0.5, bandwidth=0.1), False),
    "jumprelu_skip_transcoder": (BatchTopK(4.0), True),
}


def golden_transcoder(name) -> SAE:
    activation, skip = SAELENS[name]
    return random_transcoder(
        activation,
        seed=5,
        skip=skip,
        hook="blocks.3.mlp.hook_in",
        hook_out="blocks.3.hook_mlp_out",
        metadata={"model": {"name": "tiny"}},
    )


@pytest.mark.parametrize("name", SAELENS)
def test_we_still_write_the_files_that_saelens_opened(name, tmp_path):
    golden_transcoder(name).save(tmp_path / name)
    for file in ("cfg.json", "sae_weights.safetensors"):
        assert (tmp_path / name / file).read_bytes() == (GOLDEN / name / file).read_bytes()


@pytest.mark.parametrize("name", SAELENS)
def test_saelens_computed_the_same_latents_and_outputs(name):
    expected = read_tensors(GOLDEN / name / "expected.safetensors")
    sae = SAE.load(GOLDEN / name)
    latents = sae.encode(expected["x"]).dense()
    assert (latents != 0).sum() > 24
    torch.testing.assert_close(latents, expected["latents"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sae(expected["x"]), expected["recons"], rtol=1e-5, atol=1e-5)


def test_the_configuration_says_where_it_writes(tmp_path):
    config = json.loads((GOLDEN / "transcoder" / "cfg.json").read_text())
    assert config["architecture"] == "transcoder" and config["d_out"] == 7
    assert config["apply_b_dec_to_input"] is False
    assert config["metadata"]["hook_name"] == "blocks.3.mlp.hook_in"
    assert config["metadata"]["hook_name_out"] == "blocks.3.hook_mlp_out"
    random_transcoder(TopK(3), skip=True).save(tmp_path / "t")
    own = json.loads((tmp_path / "t" / "cfg.json").read_text())
    assert own["architecture"] == "saelab_topk_skip_transcoder"  # SAELens has none that is equal


# Where training starts


def linear_pair(n=3000, noise=0.0):
    """y = A x + b."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, 6, generator=generator) + 1
    y = 3 * x @ torch.randn(6, 4, generator=generator) - 2
    return x, y + noise * torch.randn(n, 4, generator=generator)


def pair_store(x, y):
    return ActivationStore.from_tensor({"in": x, "out": y})


def test_directions_are_aimed_where_the_target_goes():
    x = torch.randn(4000, 3)
    y = torch.stack([5 * x[:, 1], -x[:, 0]], dim=1)
    found = aimed(torch.eye(3), x, y)
    assert found[0] @ torch.tensor([0.0, -1.0]) > 0.98
    assert found[1] @ torch.tensor([1.0, 0.0]) > 0.98
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))
    assert aimed(torch.eye(3), x, x).diagonal().min() > 0.98  # an autoencoder's tied start
    signed = aimed(torch.eye(3), x, y, signed=True)
    assert signed[1] @ torch.tensor([1.0, 0.0]) > 0.99
    assert not aimed(torch.zeros(3, 1), x, y).any()


def test_an_untrained_transcoder_gets_scales_biases_and_directions():
    x, y = linear_pair()
    store = pair_store(100 * x, y)
    sae = SAE(6, 16, TopK(2), hook="in", hook_out="out", d_out=4)
    Trainer(sae, store, TrainConfig(tokens=64, batch_size=64, center="mean"))
    scales = sae.normalization
    assert scales.scale_in < scales.scale_out
    torch.testing.assert_close(sae.b_dec, y.mean(0) * scales.scale_out, rtol=1e-4, atol=1e-4)
    mean = (100 * x).mean(0, keepdim=True)
    torch.testing.assert_close(sae.pre_activations(mean), torch.zeros(1, 16), rtol=0, atol=1e-4)
    expected = aimed(sae.W_enc, x, y)
    assert torch.nn.functional.cosine_similarity(sae.W_dec, expected).min() > 0.999


def test_directions_that_somebody_chose_are_kept():
    x, y = linear_pair()
    sae = SAE(6, 16, TopK(2), hook="in", hook_out="out", d_out=4)
    chosen = SAE(6, 16, TopK(2), hook="in", hook_out="out", d_out=4, seed=8).W_dec.detach()
    with torch.no_grad():
        sae.W_dec.copy_(chosen)
    Trainer(sae, pair_store(x, y), TrainConfig(tokens=64, batch_size=64))
    assert torch.equal(sae.W_dec, chosen)


def zero_start(**settings):
    """sparsify's start: nothing is written but the mean."""
    sae = SAE(6, 16, TopK(2), hook="in", hook_out="out", d_out=4, **settings)
    with torch.no_grad():
        sae.W_dec.zero_()
    return sae


def test_with_a_zero_decoder_the_start_is_the_mean_and_fvu_is_one():
    x, y = linear_pair(noise=1.0)
    sae = zero_start(skip=True)
    config = TrainConfig(tokens=64, batch_size=64, center="mean", decoder="free")
    Trainer(sae, pair_store(x, y), config)
    torch.testing.assert_close(sae(x), y.mean(0).expand_as(y), rtol=1e-4, atol=1e-4)
    assert fvu(y, sae(x).detach()) == pytest.approx(1.0, abs=1e-6)


def test_a_zero_decoder_gives_the_encoder_no_gradient_on_the_first_step():
    x, y = linear_pair()
    sae = zero_start()
    config = TrainConfig(tokens=640, batch_size=64, center="mean", decoder="free", warmup=0.0)
    trainer = Trainer(sae, pair_store(x, y), config, terms=[Reconstruction()])
    before = sae.W_enc.detach().clone()
    trainer.step()
    assert torch.equal(sae.W_enc, before) and sae.W_dec.any()
    trainer.step()
    assert not torch.equal(sae.W_enc, before)


def test_a_zero_decoder_cannot_be_kept_at_norm_one():
    x, y = linear_pair()
    with pytest.raises(ConfigError, match="A decoder direction is zero"):
        Trainer(zero_start(), pair_store(x, y), TrainConfig(tokens=64, batch_size=64))


# What training finds


@pytest.mark.filterwarnings("ignore:.*latents")
def test_a_skip_connection_alone_solves_a_linear_map():
    x, y = linear_pair()
    sae = zero_start(skip=True)
    with torch.no_grad():
        sae.W_enc.zero_()  # every pre-activation is 0, so no latent is ever active
    config = TrainConfig(tokens=30_000, batch_size=100, lr=1e-2, center="mean", decoder="free")
    train(sae, pair_store(x, y), config, terms=[Reconstruction()])
    assert sae.encode(x).l0().sum() == 0
    assert (fvu(y, sae(x).detach()) or 0.0) < 1e-4


def test_reading_and_writing_the_same_is_an_autoencoder_without_pre_bias():
    x = torch.randn(2000, 6)
    store = ActivationStore.from_tensor({"in": x, "copy": x.clone()})
    results = []
    for hook_out in ("copy", None):
        sae = SAE(6, 16, TopK(2), hook="in", hook_out=hook_out, pre_bias=False)
        with torch.no_grad():
            sae.b_dec.fill_(0.1)  # a start of one's own is kept, so that both start alike
        train(sae, store.at("in"), TrainConfig(tokens=4000, batch_size=100))
        results.append({name: value.clone() for name, value in sae.state_dict().items()})
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


OBJECTIVES = {
    "relu": (ReLU(), (Reconstruction(), L1(coefficient=0.3))),
    "topk": (TopK(3), (Reconstruction(), AuxK())),
    "abstopk": (AbsTopK(3), (Reconstruction(), AuxK())),
    "batchtopk": (BatchTopK(3.0), (Reconstruction(), AuxK())),
    "jumprelu": (JumpReLU(), (Reconstruction(), TargetL0(target=3.0))),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_sparsity_rule_trains_a_skip_transcoder(name):
    activation, terms = OBJECTIVES[name]
    x, y = linear_pair()
    y = torch.tanh(y / 3)
    sae = SAE(6, 24, copy.deepcopy(activation), hook="in", hook_out="out", d_out=4, skip=True)
    decoder = "free" if name == "relu" else "unit"
    config = TrainConfig(tokens=6400, batch_size=64, lr=1e-2, center="mean", decoder=decoder)
    result = train(sae, pair_store(x, y), config, terms=terms)
    assert result.metrics[-1]["fvu"] < 0.5


class PlantedMLP:
    """y = D relu(E x - 0.35): every neuron reads one direction and writes another."""

    def __init__(self, d=32, n=64):
        generator = torch.Generator().manual_seed(0)
        self.reads = torch.nn.functional.normalize(torch.randn(n, d, generator=generator))
        self.writes = torch.nn.functional.normalize(torch.randn(n, d, generator=generator))

    def sample(self, n_tokens, seed):
        generator = torch.Generator().manual_seed(seed)
        active = torch.rand(n_tokens, len(self.reads), generator=generator) < 4 / len(self.reads)
        size = 0.5 + torch.rand(active.shape, generator=generator)
        x = (active * size) @ self.reads
        x += 0.05 * torch.randn(x.shape, generator=generator)
        return x, (x @ self.reads.T - 0.35).relu() @ self.writes


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.filterwarnings("ignore:.*of the latents fired on none")
def test_the_neurons_of_a_planted_mlp_come_back(skip):
    planted = PlantedMLP()
    store = pair_store(*planted.sample(20_000, seed=1))
    sae = SAE(32, 128, TopK(6), hook="in", hook_out="out", skip=skip)
    config = TrainConfig(tokens=76_800, batch_size=256, lr=5e-3, center="mean")
    train(sae, store, config)
    assert recovery(planted.writes, sae.W_dec.detach()) >= 0.95
    assert recovery(planted.reads, sae.W_enc.detach().T) >= 0.95
    x, y = planted.sample(5000, seed=2)
    assert (fvu(y, sae(x).detach()) or 1.0) < 0.15


# In a model


@pytest.fixture(scope="module")
def model():
    return tiny_language_model()


@pytest.fixture(scope="module")
def tokens(model):
    return from_text(model, sentences(6), length=24)


def model_transcoder(seed=0, skip=True) -> SAE:
    sae = SAE(32, 40, TopK(4), hook=MLP_IN, hook_out=MLP_OUT, skip=skip)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return sae


def test_the_spliced_loss_is_that_of_the_model_with_another_mlp(model, tokens):
    """Replace the MLP module itself and compare."""
    sae, tokens = model_transcoder(), tokens[:4]
    found = loss_effects(sae, model, tokens, torch.zeros(32))
    mlp = model.module.get_submodule("model.layers.1.mlp")
    original = mlp.forward

    def forward(x):
        out = original(x)
        kept = tokens.kept.clone()
        kept[:, 0] = False
        out[kept] = sae(x[kept]).detach()
        return out

    mlp.forward = forward
    try:
        other = loss_effects(sae, model, tokens, torch.zeros(32))
    finally:
        mlp.forward = original
    assert other.ce_clean == pytest.approx(found.ce_spliced, rel=1e-6)
    assert found.ce_spliced != pytest.approx(found.ce_clean, rel=1e-3)


def test_zero_and_mean_ablation_are_of_what_is_written(model, tokens):
    found = loss_effects(model_transcoder(), model, tokens, torch.zeros(32))
    sae = SAE(32, 8, TopK(1), hook=MLP_OUT)
    alone = loss_effects(sae, model, tokens, torch.zeros(32))
    assert found.ce_zero == pytest.approx(alone.ce_zero, rel=1e-9)
    assert found.ce_mean == pytest.approx(found.ce_zero, rel=1e-9)  # the mean given is zero
    assert found.n_edited == alone.n_edited


@pytest.mark.parametrize("skip", [False, True])
def test_a_store_and_the_model_give_the_same_numbers(model, tokens, tmp_path, skip):
    sae = model_transcoder(skip=skip)
    config = EvaluateConfig(outlier_factor=None, max_geometry_latents=0)
    kept = model.activations(tokens.ids.long(), [MLP_IN, MLP_OUT], tokens.mask)
    where = tokens.kept.clone()
    where[:, 0] = False
    x, y = kept[MLP_IN][where], kept[MLP_OUT][where]
    store = ActivationStore.from_tensor({MLP_IN: x, MLP_OUT: y})
    one = evaluate(sae, store, config=config)
    other = evaluate(sae, model=model, tokens=tokens, config=config)
    assert one.fvu == pytest.approx(fvu(y, sae(x).detach()), rel=1e-5)
    assert other.fvu == pytest.approx(one.fvu, rel=1e-5) and other.l0 == one.l0
    assert other.losses is not None and other.dictionary["hook_out"] == MLP_OUT
    other.save(tmp_path / "e")
    assert type(other).load(tmp_path / "e").fvu == other.fvu


def test_numbers_of_a_transcoder_do_not_depend_on_the_batch_size(model, tokens):
    sae = model_transcoder()
    found = [
        loss_effects(
            sae,
            model,
            tokens,
            torch.zeros(32),
            norm_limit=12.0,
            norm_limit_out=4.65,
            rows_per_batch=rows,
        )
        for rows in (1, 5)
    ]
    for name in ("ce_spliced", "kl_spliced", "kl_zero", "n_edited", "n_predictions"):
        assert getattr(found[0], name) == pytest.approx(getattr(found[1], name), rel=1e-6), name
    inside = model.activations(tokens.ids.long(), [MLP_IN, MLP_OUT])
    where = (inside[MLP_IN].norm(dim=-1) <= 12.0) & (inside[MLP_OUT].norm(dim=-1) <= 4.65)
    where &= tokens.kept
    where[:, 0] = False
    assert found[0].n_edited == int(where.sum()) < tokens.n_kept


def test_both_norm_limits_are_recorded(model, tokens):
    config = EvaluateConfig(max_loss_tokens=0, outlier_factor=2.0, max_geometry_latents=0)
    found = evaluate(model_transcoder(), model=model, tokens=tokens, config=config)
    assert set(found.excluded) == {"norm_limit", "norm_limit_out", "visited", "positions"}


def test_a_store_without_the_target_is_refused():
    store = ActivationStore.from_tensor({MLP_IN: torch.randn(20, 32)})
    with pytest.raises(ShapeError, match=r"writes width 32 at blocks\.1\.hook_mlp_out"):
        evaluate(model_transcoder(), store)


def test_trained_on_a_harvest_it_beats_the_mean_and_the_splice_beats_zeros(model, tmp_path):
    text = from_text(model, sentences(40), length=32)
    store = harvest(model, text, [MLP_IN, MLP_OUT], tmp_path / "acts")
    sae = SAE(32, 64, TopK(8), hook=MLP_IN, hook_out=MLP_OUT, skip=True)
    config = TrainConfig(tokens=12_000, batch_size=150, lr=1e-2, center="mean")
    train(sae, store.at(MLP_IN), config)
    found = evaluate(sae, store, model=model, tokens=text[:4])
    assert found.fvu is not None and found.fvu < 0.5
    assert found.losses is not None
    assert found.losses.kl_spliced < found.losses.kl_zero
