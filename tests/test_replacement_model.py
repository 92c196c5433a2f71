from dataclasses import replace
from typing import Any

import pytest
import torch

from saelab.activation_functions import TopK
from saelab.cross_layer import CrossLayerTranscoder
from saelab.errors import ConfigError, DataError, ShapeError
from saelab.fidelity import loss_effects
from saelab.replacement_model import replaced, replacement_effects
from saelab.sae import SAE
from saelab.tokens import from_text
from tests.tiny_models import sentences, tiny_language_model

READS = [f"blocks.{layer}.mlp.hook_in" for layer in range(3)]
WRITES = [f"blocks.{layer}.hook_mlp_out" for layer in range(3)]


@pytest.fixture(scope="module")
def model():
    return tiny_language_model()


@pytest.fixture(scope="module")
def tokens(model):
    return from_text(model, sentences(3), length=24)[:6]


def random_transcoder(layer, seed=0) -> SAE:
    sae = SAE(32, 40, TopK(4), hook=READS[layer], hook_out=WRITES[layer], skip=True)
    fill(sae, seed + layer)
    return sae


def fill(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def random_clt(selection: Any = "layer") -> CrossLayerTranscoder:
    clt = CrossLayerTranscoder(READS, WRITES, d_in=32, d_sae=40, k=4, selection=selection)
    fill(clt, 5)
    clt.threshold.fill_(0.1)
    return clt


def open_positions(tokens):
    where = tokens.kept.clone()
    where[:, 0] = False
    return where


def test_several_layers_are_replaced_as_modules_would_be(model, tokens):
    """The same logits as a model whose MLP modules are exchanged."""
    transcoders = [random_transcoder(layer) for layer in (0, 2)]
    ids, where = tokens.ids.long(), open_positions(tokens)
    with replaced(model, transcoders, tokens.kept) as counts:
        found = model.logits(ids)
    originals = {}
    for layer, sae in zip((0, 2), transcoders, strict=True):
        mlp = model.module.get_submodule(f"model.layers.{layer}.mlp")
        originals[layer] = (mlp, mlp.forward)

        def forward(x, mlp_forward=mlp.forward, sae=sae):
            out = mlp_forward(x)
            out[where] = sae(x[where]).detach()
            return out

        mlp.forward = forward
    expected = model.logits(ids)
    for mlp, original in originals.values():
        mlp.forward = original
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert counts == {WRITES[0]: int(where.sum()), WRITES[2]: int(where.sum())}
    assert not torch.allclose(found, model.logits(ids))


def test_the_model_is_restored(model, tokens):
    ids = tokens.ids.long()
    before = model.logits(ids)
    with pytest.raises(RuntimeError), replaced(model, [random_transcoder(1)], tokens.kept):
        raise RuntimeError
    assert torch.equal(model.logits(ids), before)


def test_one_layer_alone_has_the_loss_of_its_splice(model, tokens):
    sae = random_transcoder(1)
    found = replacement_effects(model, [sae], tokens, outlier_factor=None)
    alone = loss_effects(sae, model, tokens, torch.zeros(32))
    assert found.ce_replaced == pytest.approx(alone.ce_spliced, rel=1e-6)
    assert found.kl == pytest.approx(alone.kl_spliced, rel=1e-6)
    assert found.ce_zero == pytest.approx(alone.ce_zero, rel=1e-6)
    assert found.ce_recovered == pytest.approx(alone.ce_recovered_zero, rel=1e-4)
    assert found.n_predictions == alone.n_predictions and found.replaced_share == 1.0


def test_the_order_of_the_transcoders_does_not_matter(model, tokens):
    transcoders = {f"any{layer}": random_transcoder(layer) for layer in range(3)}
    one = replacement_effects(model, transcoders, tokens, rows_per_batch=2)
    other = replacement_effects(model, list(transcoders.values())[::-1], tokens, rows_per_batch=5)
    for name in ("ce_replaced", "ce_zero", "kl", "top1_agreement", "replaced_share"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-5), name
    assert sorted(one.layers) == sorted(other.layers)


def test_a_perfect_transcoder_costs_nothing_and_agrees_everywhere(model, tokens):
    """An MLP module of the model stands in for itself through a linear map that is exact."""
    mlp = model.module.get_submodule("model.layers.1.mlp")
    original, weight = mlp.forward, torch.randn(32, 32)
    mlp.forward = lambda x: x @ weight
    sae = SAE(32, 4, TopK(1), hook=READS[1], hook_out=WRITES[1], skip=True)
    with torch.no_grad():
        sae.W_enc.zero_()
        assert sae.W_skip is not None
        sae.W_skip.copy_(weight)
    try:
        found = replacement_effects(model, [sae], tokens, outlier_factor=None)
    finally:
        mlp.forward = original
    assert found.ce_replaced == pytest.approx(found.ce_clean, rel=1e-5)
    assert found.kl < 1e-6 and found.top1_agreement == 1.0
    assert found.kl_zero > 0.01


@pytest.mark.parametrize("selection", ["layer", "joint"])
def test_a_cross_layer_transcoder_writes_what_earlier_layers_left(model, tokens, selection):
    clt, ids, where = random_clt(selection), tokens.ids.long(), open_positions(tokens)
    with replaced(model, clt, tokens.kept):
        found = model.activations(ids, [*READS, *WRITES])
    codes = [
        clt.encode_layer(layer, found[hook][where]) for layer, hook in enumerate(READS)
    ]  # of what each layer read in the changed model
    for hook, recons in zip(WRITES, clt.decode(codes), strict=True):
        torch.testing.assert_close(found[hook][where], recons, rtol=1e-4, atol=1e-5)
    clean = model.activations(ids, WRITES)
    torch.testing.assert_close(found[WRITES[0]][~where], clean[WRITES[0]][~where])


def test_a_block_can_run_many_passes(model, tokens):
    ids = tokens.ids.long()
    with replaced(model, random_clt(), tokens.kept):
        one, other = model.logits(ids), model.logits(ids)
    assert torch.equal(one, other)


def test_outliers_of_the_output_stay_the_models_own(model, tokens):
    ids, sae = tokens.ids.long(), random_transcoder(1)
    clean = model.activations(ids, [WRITES[1]])[WRITES[1]]
    norms = clean.norm(dim=-1)
    limit = float(norms[open_positions(tokens)].median())
    with replaced(model, [sae], tokens.kept, limits={WRITES[1]: limit}) as counts:
        found = model.activations(ids, [WRITES[1]])[WRITES[1]]
    same = (found == clean).all(dim=-1)
    assert torch.equal(same, ~(open_positions(tokens) & (norms <= limit)))
    assert counts[WRITES[1]] == int((~same).sum())
    share = replacement_effects(model, [sae], tokens, limits={WRITES[1]: limit}).replaced_share
    assert share == pytest.approx(0.5, abs=0.05)


def test_what_cannot_be_replaced_is_refused(model, tokens):
    with pytest.raises(ConfigError, match="No transcoder was given"):
        replacement_effects(model, [], tokens)
    with pytest.raises(ConfigError, match="is no transcoder"):
        replacement_effects(model, [SAE(32, 8, TopK(1), hook=WRITES[0])], tokens)
    with pytest.raises(ConfigError, match=r"Two transcoders write to blocks\.1"):
        replacement_effects(model, [random_transcoder(1), random_transcoder(1, 9)], tokens)
    with (
        pytest.raises(ShapeError, match="Run the tokens that `kept` describes"),
        replaced(model, [random_transcoder(0)], tokens.kept),
    ):
        model.logits(tokens.ids.long()[:2])
    kept = tokens.kept.clone()
    kept[:, 2:] = False  # nothing that is kept follows position 1
    with pytest.raises(DataError, match="can be scored"):
        replacement_effects(model, [random_transcoder(0)], replace(tokens, kept=kept))
