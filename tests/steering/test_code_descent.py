"""Codes walk where the loss says, nothing else moves, and queries only change where is looked."""

import pytest
import torch

from saelab.activation_functions import AbsTopK, TopK
from saelab.errors import CheckpointError, ConfigError, ShapeError
from saelab.files import read_json, write_json
from saelab.sae import SAE
from saelab.steering import (
    DescendCode,
    DescentConfig,
    Prototypes,
    intervene,
    load_interventions,
    prototypes,
    save_interventions,
)
from tests.tiny_models import random_tokens, tiny_language_model

HOOK = "blocks.1.hook_resid_post"
QUERY = "model.layers.1.self_attn.q_proj"
PLACE = torch.zeros(5, dtype=torch.long)


@pytest.fixture(scope="module")
def model():
    return tiny_language_model()


def oracle(width=8):
    """Every latent a coordinate in an orthonormal basis, signed, all of them kept."""
    basis = torch.linalg.qr(torch.randn(width, width))[0]
    sae = SAE(width, width, AbsTopK(width), hook=HOOK)
    with torch.no_grad():
        sae.W_dec.copy_(basis)
        sae.W_enc.copy_(basis.T)
    return sae


def kinds(width=8, n=3):
    return Prototypes(names=tuple("abc"[:n]), codes=torch.randn(n, width))


def test_no_step_or_no_rate_changes_no_bit(model):
    sae = SAE(model.d_model, 24, TopK(3), hook=HOOK, seed=1)
    row = random_tokens(2, 8, d_vocab=250)
    clean = model.logits(row)
    found = Prototypes(names=("a", "b"), codes=torch.rand(2, 24))
    for config in (DescentConfig(steps=0), DescentConfig(rate=0.0)):
        with intervene(model, [DescendCode(sae, found, "a", config)]):
            assert torch.equal(model.logits(row), clean)
    with intervene(model, [DescendCode(sae, found, "a", DescentConfig())]):
        assert not torch.allclose(model.logits(row), clean)


def test_a_long_walk_ends_between_the_prototype_and_its_start():
    """z* = (c + stay f) / (1 + stay), coordinate by coordinate."""
    sae, found = oracle(), kinds()
    x = torch.randn(5, 8)
    edit = DescendCode(sae, found, "b", DescentConfig(steps=400, rate=0.05, stay=0.5, keep="none"))
    own = sae.encode(x).dense()
    expected = (found.codes[1] + 0.5 * own) / 1.5
    torch.testing.assert_close(edit.walked(own), expected, atol=1e-5, rtol=1e-5)
    after = edit.change(x, x, PLACE)
    torch.testing.assert_close(after, x + (expected - own) @ sae.W_dec, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", ["distance", "contrast"])
def test_every_step_lowers_the_loss(loss):
    sae, found, x = oracle(), kinds(), torch.randn(5, 8)
    own = sae.encode(x).dense()
    settings = {"stay": 0.2, "loss": loss, "keep": "none", "temperature": 4.0}
    before = None
    for steps in range(6):
        edit = DescendCode(sae, found, "a", DescentConfig(steps=steps, rate=0.1, **settings))
        now = edit.losses(edit.walked(own), own)
        assert before is None or bool((now < before).all())
        before = now


@pytest.mark.parametrize("loss", ["distance", "contrast"])
@pytest.mark.parametrize("n_latents", [None, 3])
def test_the_gradient_is_that_of_the_loss(loss, n_latents):
    sae, found = oracle(), kinds()
    config = DescentConfig(loss=loss, temperature=2.0, stay=0.3, n_latents=n_latents)
    edit = DescendCode(sae, found, "c", config)
    own, code = torch.randn(5, 8), torch.randn(5, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(edit.losses(code, own).sum(), code)
    torch.testing.assert_close(edit._gradient(code.detach(), own), gradient)


def test_only_the_telling_latents_move_and_the_code_stays_a_code(model):
    sae = SAE(model.d_model, 24, TopK(3), hook=HOOK, seed=1)
    codes = torch.zeros(2, 24)
    codes[0, 7], codes[1, 9] = 5.0, 4.0
    found = Prototypes(names=("a", "b"), codes=codes)
    assert found.telling("a", 2).tolist() == [7, 9]
    own = sae.encode(torch.randn(6, model.d_model)).dense()
    free = DescendCode(sae, found, "a", DescentConfig(n_latents=1, keep="none", stay=0.0))
    moved = (free.walked(own) - own).abs().sum(0)
    assert moved.nonzero().flatten().tolist() == [7]
    kept = DescendCode(sae, found, "a", DescentConfig(n_latents=1)).walked(own)
    assert int((kept != 0).sum(1).max()) <= 3
    assert bool((kept[:, 7] >= own[:, 7]).all()) and bool((kept[:, 7] > own[:, 7]).any())


def test_prototypes_are_mean_codes_and_texts_are_nearest_to_their_own_kind(model):
    sae = SAE(model.d_model, 64, TopK(8), hook=HOOK, seed=1)
    texts = {"letters": ["abcabc", "bcabca"], "digits": ["123123", "231231"]}
    found = prototypes(model, sae, texts)
    x = model.activations(torch.tensor([[0, *model.encode("abcabc")]]), [HOOK])[HOOK][0, 1:]
    y = model.activations(torch.tensor([[0, *model.encode("bcabca")]]), [HOOK])[HOOK][0, 1:]
    mean = sae.encode(torch.cat([x, y])).dense().mean(0)
    torch.testing.assert_close(found.codes[0], mean, atol=1e-5, rtol=1e-5)
    assert float((found.nearest(sae.encode(x).dense()) == 0).float().mean()) > 0.8


def test_a_steered_text_is_written_as_it_would_be_without_a_cache(model):
    sae = SAE(model.d_model, 24, TopK(3), hook=HOOK, seed=1)
    found = Prototypes(names=("a", "b"), codes=3 * torch.rand(2, 24))
    row = random_tokens(1, 6, d_vocab=250)
    edit = DescendCode(sae, found, "a", DescentConfig(stay=0.0))
    with intervene(model, [edit], positions=slice(6, None)):
        written = model.generate(row, max_new_tokens=5)
        slow = row
        for _ in range(5):
            slow = torch.cat([slow, model.logits(slow)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, slow)


def test_steered_queries_change_where_heads_look_and_not_what_they_can_read(model):
    """Four heads share two keys and values: each head's output stays a mean of its own values."""
    sae = SAE(32, 64, TopK(8), hook=QUERY, seed=1)
    found = Prototypes(names=("a", "b"), codes=4 * torch.rand(2, 64))
    tokens = random_tokens(2, 3, d_vocab=250)
    value, z = "model.layers.1.self_attn.v_proj", "blocks.1.attn.hook_z"

    def weights():
        got = model.activations(tokens, [value, z])
        v = got[value].reshape(2, 3, 2, 8).repeat_interleave(2, dim=2)  # [row, pos, head, d_head]
        heads = got[z].reshape(2, 3, 4, 8)[:, -1]
        basis = v.permute(0, 2, 3, 1)  # [row, head, d_head, pos]
        found = torch.linalg.lstsq(basis, heads[..., None]).solution
        assert torch.allclose((basis @ found)[..., 0], heads, atol=1e-5)
        return found[..., 0]

    clean = weights()
    with intervene(model, [DescendCode(sae, found, "a", DescentConfig(stay=0.0, rate=0.3))]):
        steered = weights()
    for one in (clean, steered):
        assert bool((one > -1e-4).all())
        torch.testing.assert_close(one.sum(-1), torch.ones(2, 4), atol=1e-4, rtol=1e-4)
    assert float((steered - clean).abs().max()) > 0.02


def test_a_descent_survives_a_recipe(tmp_path):
    sae, found = oracle(), kinds()
    edit = DescendCode(sae, found, "c", DescentConfig(steps=3, loss="contrast", n_latents=4))
    path = tmp_path / "descent.json"
    save_interventions(path, [edit])
    (again,) = load_interventions(path, [sae])
    assert isinstance(again, DescendCode)
    assert (again.target, again.config, again.prototypes.names) == ("c", edit.config, found.names)
    x = torch.randn(5, 8)
    assert torch.equal(again.change(x, x, PLACE), edit.change(x, x, PLACE))
    broken = read_json(path, "a recipe")
    del broken["interventions"][0]["target"]
    write_json(path, broken)
    with pytest.raises(CheckpointError, match="without its target"):
        load_interventions(path, [sae])


def test_mistakes_are_refused(model):
    sae, found = oracle(), kinds()
    with pytest.raises(ConfigError, match="no kind 'd' among a, b, c"):
        DescendCode(sae, found, "d")
    with pytest.raises(ShapeError, match="8 latents; the dictionary has d_sae=24"):
        DescendCode(SAE(8, 24, TopK(3), hook=HOOK), found, "a")
    with pytest.raises(ConfigError, match="Use 'select'"):
        DescendCode(sae, found, "a", DescentConfig(keep="relu"))
    with pytest.raises(ConfigError, match="positive temperature"):
        DescentConfig(temperature=0.0)
    with pytest.raises(ConfigError, match="'distance' or 'contrast'"):
        DescentConfig(loss="cosine")
    with pytest.raises(ConfigError, match="at least two kinds"):
        prototypes(model, sae, {})
