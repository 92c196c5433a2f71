"""Interventions change what they say, nothing else, and leave no trace."""

import pytest
import torch

from saelab.activation_functions import AbsTopK, JumpReLU, TopK
from saelab.errors import CheckpointError, ConfigError, ModelError
from saelab.sae import SAE
from saelab.steering import (
    Clamp,
    Push,
    Scale,
    Splice,
    ablate,
    clamp,
    intervene,
    load_interventions,
    save_interventions,
    scale,
    splice,
    steer,
)
from saelab.steering.interventions import activations_of
from tests.tiny_models import random_tokens, tiny_language_model

SITES = ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.0.hook_mlp_out")
FAMILIES = {
    "topk": lambda: TopK(3),
    "abs_topk": lambda: AbsTopK(3),
    "jumprelu": lambda: JumpReLU(threshold=0.3, bandwidth=0.1),
}


@pytest.fixture(scope="module")
def model():
    return tiny_language_model()


@pytest.fixture(scope="module")
def tokens():
    found = random_tokens(3, 10, d_vocab=250)
    found[:, 0] = 0
    return found


def dictionary(model, site=SITES[0], family="topk", **settings):
    sae = SAE(model.d_model, 24, FAMILIES[family](), hook=site, seed=1, **settings)
    with torch.no_grad():
        sae.b_enc.copy_(torch.linspace(-0.2, 0.2, 24))
        sae.b_dec.add_(0.1)
    return sae


def at(model, tokens, hook):
    return model.activations(tokens, [hook])[hook]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_edit_that_asks_for_nothing_changes_nothing(model, tokens, site, family):
    sae = dictionary(model, site, family)
    clean = model.logits(tokens)
    own = activations_of(sae.encode(at(model, tokens, site)[:, 1:]), torch.arange(24))
    busiest = int(own.abs().sum(0).argmax())
    with steer(model, sae, {busiest: 0.0}):
        assert torch.equal(model.logits(tokens), clean)
    with scale(model, sae, {busiest: 1.0}):
        assert torch.equal(model.logits(tokens), clean)
    with clamp(model, sae, {busiest: -1e6}, at_least=True):
        assert torch.equal(model.logits(tokens), clean)
    assert own[:, busiest].any(), "the latent must be active for this test to say anything"


@pytest.mark.parametrize("family", FAMILIES)
def test_clamping_to_its_own_value_gives_the_clean_logits(model, tokens, family):
    sae = dictionary(model, family=family)
    clean = model.logits(tokens)
    own = activations_of(sae.encode(at(model, tokens, SITES[0])), torch.arange(24))
    own = own.reshape(*tokens.shape, 24)
    latent = int(own[0].abs().sum(0).argmax())
    for pos in (4, 9):
        mask = torch.zeros(tokens.shape, dtype=torch.bool)
        mask[0, pos] = True
        with clamp(model, sae, {latent: float(own[0, pos, latent])}, positions=mask):
            assert (model.logits(tokens) - clean).abs().max() <= 1e-5


def test_pushing_adds_exactly_the_direction_everywhere_but_the_first_token(model, tokens):
    sae = dictionary(model)
    before = at(model, tokens, SITES[0])
    with steer(model, sae, {5: 2.0, 7: -1.0}):
        after = at(model, tokens, SITES[0])
    expected = 2 * sae.W_dec[5] - sae.W_dec[7]
    assert torch.allclose(after[:, 1:] - before[:, 1:], expected.expand(3, 9, -1), atol=1e-6)
    assert torch.equal(after[:, 0], before[:, 0])


def test_strength_is_in_the_latents_own_units_whatever_the_input_scale(model, tokens):
    from saelab.normalization import Normalization

    sae = dictionary(model, normalization=Normalization(scale_in=4.0, scale_out=4.0))
    before = at(model, tokens, SITES[0])
    with steer(model, sae, {5: 2.0}):
        after = at(model, tokens, SITES[0])
    assert torch.allclose(
        after[:, 1:] - before[:, 1:], (sae.W_dec[5] / 2).expand(3, 9, -1), atol=1e-6
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_clamp_and_scale_are_decode_of_the_changed_code_plus_the_error(model, tokens, family):
    sae = dictionary(model, family=family)
    x = at(model, tokens, SITES[0])[:, 1:].reshape(-1, model.d_model)
    dense = sae.encode(x).dense()
    error = x - sae.decode(dense)
    latent = int(dense.abs().sum(0).argmax())
    for edit, value in ((clamp, 3.0), (scale, -1.0)):
        changed = dense.clone()
        changed[:, latent] = value if edit is clamp else value * dense[:, latent]
        with edit(model, sae, {latent: value}):
            after = at(model, tokens, SITES[0])[:, 1:].reshape(-1, model.d_model)
        assert torch.allclose(after, sae.decode(changed) + error, atol=1e-5)


def test_a_clamped_latent_that_was_active_reads_back_as_asked(model, tokens):
    width = model.d_model
    sae = SAE(width, width, JumpReLU(threshold=1e-3, bandwidth=0.1), hook=SITES[0], pre_bias=False)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(width))
        sae.W_enc.copy_(torch.eye(width))
    before = at(model, tokens, SITES[0])[:, 1:].reshape(-1, width)
    with clamp(model, sae, {6: 2.5}):
        after = at(model, tokens, SITES[0])[:, 1:].reshape(-1, width)
    read = sae.encode(after).dense()[:, 6]
    active = before[:, 6] > 1e-3
    assert active.any() and not active.all()
    assert torch.allclose(read[active], torch.tensor(2.5), atol=1e-5)
    # Where it was silent, what lay below zero is error, and errors stay.
    assert torch.allclose(after[~active, 6], 2.5 + before[~active, 6], atol=1e-5)


def test_splice_drops_the_error_and_ablate_keeps_it(model, tokens):
    sae = dictionary(model)
    x = at(model, tokens, SITES[0])
    with splice(model, sae):
        spliced = at(model, tokens, SITES[0])
    assert torch.allclose(spliced[:, 1:], sae(x)[:, 1:], atol=1e-5)
    codes = sae.encode(x[:, 1:])
    latents = codes.indices.unique().tolist()
    with ablate(model, sae, latents):
        ablated = at(model, tokens, SITES[0])
    error = x[:, 1:] - sae(x)[:, 1:]
    assert torch.allclose(ablated[:, 1:], error + sae.b_dec, atol=1e-5)


def test_several_dictionaries_act_in_order_and_at_several_places(model, tokens):
    one, two = dictionary(model, SITES[0]), dictionary(model, SITES[1], "abs_topk")
    with intervene(model, [Push(one, {3: 1.0}), Scale(one, {3: 0.0}), Push(two, {4: -2.0})]):
        together = model.logits(tokens)
    with steer(model, one, {3: 1.0}), scale(model, one, {3: 0.0}), steer(model, two, {4: -2.0}):
        nested = model.logits(tokens)
    assert torch.equal(together, nested)
    assert not torch.allclose(together, model.logits(tokens), atol=1e-3)


def test_a_transcoder_is_read_where_it_reads_and_written_where_it_writes(model, tokens):
    read, write = "blocks.0.hook_resid_pre", "blocks.1.hook_mlp_out"
    sae = SAE(model.d_model, 24, TopK(3), hook=read, hook_out=write, seed=2)
    x, y = at(model, tokens, read), at(model, tokens, write)
    own = activations_of(sae.encode(x), torch.arange(24)).reshape(*tokens.shape, 24)
    latent = int(own[:, 1:].abs().sum((0, 1)).argmax())
    with ablate(model, sae, [latent]):
        after = at(model, tokens, write)
    expected = y - own[..., latent, None] * sae.W_dec[latent]
    assert torch.allclose(after[:, 1:], expected[:, 1:], atol=1e-5)


@pytest.mark.parametrize("positions", [slice(4, 6), torch.arange(10) >= 7, None])
def test_only_the_named_positions_are_edited(model, tokens, positions):
    sae = dictionary(model)
    before = at(model, tokens, SITES[0])
    with steer(model, sae, {5: 2.0}, positions=positions):
        after = at(model, tokens, SITES[0])
    changed = (after - before).abs().amax(-1) > 1e-3
    expected = torch.zeros(10, dtype=torch.bool)
    expected[slice(1, None) if positions is None else positions] = True
    assert torch.equal(changed, expected.expand(3, -1))


def test_generation_is_the_same_as_token_by_token_without_a_cache(model, tokens):
    sae = dictionary(model)
    with steer(model, sae, {5: 6.0}):
        at_once = model.generate(tokens[:1], max_new_tokens=5)
        step = tokens[:1]
        for _ in range(5):
            step = torch.cat([step, model.logits(step)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(at_once, step)
    assert not torch.equal(at_once, model.generate(tokens[:1], max_new_tokens=5)), (
        "the push must change the text for this test to say anything"
    )


def test_the_model_is_restored_even_after_an_exception(model, tokens):
    sae = dictionary(model)
    clean = model.logits(tokens)
    with pytest.raises(RuntimeError, match="on purpose"), steer(model, sae, {5: 9.0}):
        raise RuntimeError("on purpose")
    assert torch.equal(model.logits(tokens), clean)


def test_a_recipe_survives_its_file(model, tokens, tmp_path):
    one, two = dictionary(model), dictionary(model, SITES[1])
    edits = [
        Push(one, {3: 1.5}),
        Clamp(two, {1: 2.0}, at_least=True),
        Scale(one, {2: -1.0}),
        Splice(two),
    ]
    save_interventions(tmp_path / "recipe.json", edits)
    again = load_interventions(tmp_path / "recipe.json", [two, one])
    assert [edit.to_json() for edit in again] == [edit.to_json() for edit in edits]
    with intervene(model, edits):
        first = model.logits(tokens)
    with intervene(model, again):
        assert torch.equal(model.logits(tokens), first)
    with pytest.raises(ConfigError, match="of the 1 given, 0 fit"):
        load_interventions(tmp_path / "recipe.json", [two])
    (tmp_path / "other.json").write_text('{"format": "something"}')
    with pytest.raises(CheckpointError, match="not a file of interventions"):
        load_interventions(tmp_path / "other.json", [one])


def test_mistakes_are_refused_before_the_model_runs(model):
    sae = dictionary(model)
    with pytest.raises(ConfigError, match=r"no latent 24.*from 0 to 23"):
        Push(sae, {24: 1.0})
    with pytest.raises(ConfigError, match="the number nan"):
        Push(sae, {2: float("nan")})
    with pytest.raises(ConfigError, match="names no latent"):
        Scale(sae, {})
    with pytest.raises(ConfigError, match="which hook point"), splice(model, SAE(model.d_model, 8)):
        pass
    sae.metadata["model"] = {"name": "another", "weights": "sha256:0"}
    with pytest.raises(ModelError, match="trained on another"), steer(model, sae, {1: 1.0}):
        pass
