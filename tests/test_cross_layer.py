import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from saelab.activation_functions import TopK
from saelab.cross_layer import CrossLayerTranscoder
from saelab.cross_layer.training import CrossLayerTrainer, train_cross_layer
from saelab.errors import CheckpointError, ConfigError, ShapeError
from saelab.normalization import Normalization
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import Trainer
from saelab.training.config import TrainConfig

HOOKS, OUT = ["x0", "x1", "x2"], ["y0", "y1", "y2"]
CONFIG = TrainConfig(tokens=6400, batch_size=64, lr=1e-2, center="mean", dead_after_tokens=320)


def random_clt(selection: Any = "layer", k=3, seed=0, **settings) -> CrossLayerTranscoder:
    """Every parameter random, every scale different."""
    clt = CrossLayerTranscoder(
        HOOKS, OUT, d_in=5, d_sae=12, k=k, selection=selection, d_out=4, **settings
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in clt.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    clt.threshold.fill_(0.75)
    clt.normalizations = [
        Normalization(scale_in=2.0**layer, scale_out=0.5**layer) for layer in range(3)
    ]
    return clt


def inputs(n=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 5, generator=generator) for _ in HOOKS]


def dense_latents(clt, xs):
    found = []
    for layer, x in enumerate(xs):
        scale = clt.normalizations[layer].scale_in
        found.append((x * scale @ clt.W_enc[layer] + clt.b_enc[layer]).detach())
    if clt.selection == "layer":
        return [TopK(clt.k)(z) for z in found]
    return list(TopK(clt.k)(torch.cat(found, dim=1)).split(clt.d_sae, dim=1))


def planted_store(n=1500, seed=0):
    """Each target is what three sparse layers write, earlier ones included."""
    true = random_clt(k=2, seed=seed)
    with torch.no_grad():
        for W_dec in true.W_dec:
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))
    xs = inputs(n, seed=5)
    ys = true.decode(true.encode(xs))
    return ActivationStore.from_tensor(
        {**dict(zip(HOOKS, xs, strict=True)), **dict(zip(OUT, ys, strict=True))}
    )


@pytest.mark.parametrize("selection", ["layer", "joint"])
def test_codes_and_reconstruction_are_the_dense_definition(selection):
    clt, xs = random_clt(selection), inputs()
    codes = clt.encode(xs)
    latents = dense_latents(clt, xs)
    for one, dense in zip(codes, latents, strict=True):
        torch.testing.assert_close(one.dense(), dense)
    for target, recons in enumerate(clt.decode(codes)):
        expected = clt.b_dec[target].detach() + sum(
            latents[source] @ clt.decoder(source, target) for source in range(target + 1)
        )
        torch.testing.assert_close(recons, expected / clt.normalizations[target].scale_out)


def test_the_joint_rule_keeps_k_over_all_layers_and_may_empty_one():
    clt, xs = random_clt("joint", k=4), inputs()
    with torch.no_grad():
        clt.b_enc[1].fill_(-1e6)
    codes = clt.encode(xs)
    assert len(codes[1].values) == 0
    assert torch.stack([one.l0() for one in codes]).sum(0).eq(4).all()


@pytest.mark.parametrize("selection", ["layer", "joint"])
def test_a_tokens_code_does_not_depend_on_its_batch(selection):
    clt, xs = random_clt(selection), inputs()
    together = clt.encode(xs)
    alone = clt.encode([x[7:8] for x in xs])
    for one, many in zip(alone, together, strict=True):
        torch.testing.assert_close(one.dense(), many.dense()[7:8])


def test_a_layer_by_itself_uses_its_own_k_or_the_joint_threshold():
    xs = inputs()
    clt = random_clt("layer")
    torch.testing.assert_close(clt.encode_layer(1, xs[1]).dense(), clt.encode(xs)[1].dense())
    joint = random_clt("joint")
    z = xs[1] * 2.0 @ joint.W_enc[1] + joint.b_enc[1]
    expected = torch.where(z > 0.75, z, torch.zeros(())).detach()
    torch.testing.assert_close(joint.encode_layer(1, xs[1]).dense(), expected)


@pytest.mark.parametrize("selection", ["layer", "joint"])
def test_a_saved_one_is_the_same_to_the_last_bit(selection, tmp_path):
    clt, xs = random_clt(selection, metadata={"model": {"name": "m"}}), inputs()
    clt.save(tmp_path / "clt")
    again = CrossLayerTranscoder.load(tmp_path / "clt")
    assert again.settings() == clt.settings()
    for name, value in clt.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    for one, other in zip(clt.decode(clt.encode(xs)), again.decode(again.encode(xs)), strict=True):
        assert torch.equal(one, other)
    assert all(W.T.is_contiguous() for W in again.W_enc)


def test_damaged_files_are_named(tmp_path):
    random_clt().save(tmp_path / "clt")
    weights = tmp_path / "clt" / "layer_1.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"layer_1\.safetensors.*SHA-256 differs"):
        CrossLayerTranscoder.load(tmp_path / "clt")
    SAE(4, 8, TopK(2)).save(tmp_path / "sae")
    with pytest.raises(CheckpointError, match="says format 'saelab-dictionary'"):
        CrossLayerTranscoder.load(tmp_path / "sae")


def test_with_one_layer_it_trains_as_a_transcoder_does():
    """Twelve steps, with dead latents for AuxK among them: the same weights up to rounding."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(1000, 5, generator=generator)
    y = torch.tanh(x @ torch.randn(5, 4, generator=generator)) + 1
    store = ActivationStore.from_tensor({"x0": x, "y0": y})
    clt = CrossLayerTranscoder(["x0"], ["y0"], d_in=5, d_sae=12, k=2, d_out=4)
    sae = SAE(5, 12, TopK(2), hook="x0", hook_out="y0", d_out=4)
    with torch.no_grad():
        sae.W_enc.copy_(clt.W_enc[0])
        sae.W_dec.copy_(clt.W_dec[0])
    config = TrainConfig(tokens=64 * 50, batch_size=64, lr=1e-2, center="mean")
    config = replace(config, dead_after_tokens=128)
    one, other = CrossLayerTrainer(clt, store, config), Trainer(sae, store.at("x0"), config)
    with torch.no_grad():
        for b_enc in (clt.b_enc[0], sae.b_enc):
            b_enc[:3] -= 100.0
    auxk = 0.0
    for _ in range(12):
        row, expected = one.step(), other.step()
        auxk = max(auxk, expected["auxk"])
        for name in ("loss", "auxk", "fvu", "l0", "grad_norm", "dead_share", "lr"):
            assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name
    assert auxk > 0
    assert clt.normalizations[0] == sae.normalization
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        torch.testing.assert_close(getattr(clt, name)[0], getattr(sae, name), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("selection", ["layer", "joint"])
def test_the_gradient_is_autograds_of_the_dense_loss(selection):
    clt = random_clt(selection).to(torch.float64)
    store = planted_store(64)
    trainer = CrossLayerTrainer(clt, store, CONFIG)
    rows = {name: x.double() for name, x in store.rows(0, 64, HOOKS + OUT).activations.items()}
    trainer._gradients(rows, torch.zeros(3, 12, dtype=torch.bool))
    copied = copy.deepcopy(clt)
    total = torch.zeros((), dtype=torch.float64)
    masks = [latents != 0 for latents in dense_latents(copied, [rows[hook] for hook in HOOKS])]
    latents = [
        (rows[hook] * own.scale_in @ copied.W_enc[i] + copied.b_enc[i]) * masks[i]
        for i, (hook, own) in enumerate(zip(HOOKS, copied.normalizations, strict=True))
    ]
    for target, hook in enumerate(OUT):
        pieces = [
            latents[source] @ copied.W_dec[source].split(4, dim=1)[target - source]
            for source in range(target + 1)
        ]
        recons = copied.b_dec[target] + sum(pieces)
        total = (
            total + (recons - rows[hook] * copied.normalizations[target].scale_out).square().sum()
        )
    (total / (64 * trainer._gradients.variance)).backward()
    for name, parameter in copied.named_parameters():
        found = trainer._gradients.buffers.of(trainer._parameters[name])
        torch.testing.assert_close(found, parameter.grad, rtol=1e-6, atol=1e-9)


def test_training_learns_what_earlier_layers_write():
    store = planted_store()
    clt = CrossLayerTranscoder(HOOKS, OUT, d_in=5, d_sae=24, k=3, d_out=4)
    result = train_cross_layer(clt, store, CONFIG)
    last = result.metrics[-1]
    assert last["fvu"] < 0.4
    assert all(f"fvu_layer_{layer}" in last for layer in range(3))
    for W_dec in clt.W_dec:
        torch.testing.assert_close(W_dec.norm(dim=1), torch.ones(24))
    assert clt.decoder(0, 2).norm() > 0.1


def test_stopped_and_resumed_equals_uninterrupted(tmp_path):
    def fresh():
        return CrossLayerTranscoder(HOOKS, OUT, d_in=5, d_sae=24, k=6, d_out=4, selection="joint")

    store = planted_store()
    config = TrainConfig(tokens=1920, batch_size=64, checkpoint_every_tokens=256, lr=5e-3)
    straight = train_cross_layer(fresh(), store, config).clt

    class Stop(Exception):
        pass

    for limit in (300, 1200):

        def progress(done, *_, limit=limit):
            if done >= limit:
                raise Stop

        with pytest.raises(Stop):
            train_cross_layer(fresh(), store, config, tmp_path / "run", progress=progress)
    resumed = train_cross_layer(fresh(), store, config, tmp_path / "run")
    for name, value in straight.state_dict().items():
        assert torch.equal(resumed.clt.state_dict()[name], value), name
    assert straight.threshold > 0
    loaded = CrossLayerTranscoder.load(tmp_path / "run" / "clt")
    assert torch.equal(loaded.W_dec[1], straight.W_dec[1])
    with pytest.raises(ConfigError, match=r"sae\.k: 6 there, 5 asked"):
        other = CrossLayerTranscoder(HOOKS, OUT, d_in=5, d_sae=24, k=5, d_out=4, selection="joint")
        train_cross_layer(other, store, config, tmp_path / "run")


def test_a_trained_threshold_keeps_about_k_latents():
    store = planted_store()
    clt = CrossLayerTranscoder(HOOKS, OUT, d_in=5, d_sae=24, k=6, d_out=4, selection="joint")
    train_cross_layer(clt, store, replace(CONFIG, tokens=9600))
    rows = store.rows(0, 1000, HOOKS).activations
    l0 = sum(clt.encode_layer(i, rows[hook]).l0().float().mean() for i, hook in enumerate(HOOKS))
    assert 4 < l0 < 8


def test_bad_input_is_refused():
    clt = random_clt()
    with pytest.raises(ShapeError, match="got 2 layers"):
        clt.encode(inputs()[:2])
    with pytest.raises(ShapeError, match=r"Layer 0 reads activations \[token, 5\] from x0"):
        clt.encode([torch.zeros(3, 6)] * 3)
    with pytest.raises(ConfigError, match="Layer 2 does not write to layer 1"):
        clt.decoder(2, 1)
    with pytest.raises(ConfigError, match="found 2 read and 1 written"):
        CrossLayerTranscoder(["a", "b"], ["c"], d_in=2, d_sae=4, k=1)
    bad: list[dict[str, Any]] = [{"k": 5}, {"k": 0}, {"d_in": 0}]
    for settings in bad:
        with pytest.raises(ConfigError, match="sizes must be positive, k at most 4"):
            CrossLayerTranscoder(["a"], ["b"], **{"d_in": 2, "d_sae": 4, "k": 1, **settings})
    with pytest.raises(ConfigError, match="needs y2 of width 4; the store holds 7"):
        wide = {
            name: torch.randn(9, 7 if name == "y2" else 5 if name in HOOKS else 4)
            for name in itertools.chain(HOOKS, OUT)
        }
        train_cross_layer(clt, ActivationStore.from_tensor(wide), CONFIG)
