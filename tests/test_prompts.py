"""What a dictionary sees in one text, and what is known of the runs in a folder."""

import json
from typing import Any

import pytest
import torch

from saelab.activation_functions import AbsTopK
from saelab.errors import ConfigError, CorpusError
from saelab.prompts import direct_effects, read_prompt
from saelab.run_summaries import find_runs
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig
from tests.tiny_models import tiny_language_model

HOOK = "blocks.1.hook_resid_post"
TEXT = "The old ship came home."


@pytest.fixture(scope="module")
def model():
    return tiny_language_model()


@pytest.fixture(scope="module")
def sae(model):
    found = SAE(model.d_model, 24, AbsTopK(4), hook=HOOK, seed=3)
    with torch.no_grad():
        found.b_dec.fill_(0.1)
    return found


@pytest.fixture(scope="module")
def reading(sae, model):
    return read_prompt(sae, model, TEXT)


def test_a_text_is_read_token_by_token_after_the_models_first_one(reading, model):
    assert "".join(reading.tokens[reading.first :]) == TEXT
    assert int(reading.ids[0]) == model.bos_token_id
    assert reading.codes.n_tokens == len(reading.tokens)


def test_the_error_share_is_what_the_reconstruction_misses(reading, sae, model):
    x = model.activations(reading.ids[None], [HOOK])[HOOK][0]
    expected = (x - sae(x)).square().sum(1) / (x - sae.b_dec).square().sum(1)
    assert torch.allclose(reading.error_share, expected.detach(), atol=1e-6)


def test_a_tokens_latents_are_ranked_by_what_they_write_and_share_one_whole(reading):
    found = reading.strongest(3, n=24)
    shares = [one.share for one in found]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)
    assert any(one.value < 0 for place in range(5) for one in reading.strongest(place)), (
        "a signed dictionary must show its negative side here"
    )


def test_one_latent_over_the_text_is_its_column_of_the_code(reading):
    dense = reading.codes.dense()
    latent, value, token = reading.ranked(1)[0]
    assert reading.over_text(latent) == pytest.approx(dense[:, latent].tolist())
    assert dense[token, latent].item() == pytest.approx(value)
    assert token >= reading.first


def test_the_models_own_expectation_is_kept(reading, model):
    chances = model.logits(reading.ids[None])[0].softmax(-1)
    assert torch.allclose(
        reading.next_probabilities, chances.gather(1, reading.next_ids), atol=1e-6
    )
    assert torch.equal(reading.next_ids[:, 0], chances.argmax(-1))


def test_the_model_runs_once_for_a_reading(sae, model, monkeypatch):
    runs, forward = [], model.module.forward

    def counted(*words, **named):
        runs.append(1)
        return forward(*words, **named)

    monkeypatch.setattr(model.module, "forward", counted)
    read_prompt(sae, model, TEXT)
    assert len(runs) == 1


def test_direct_effects_and_what_the_dictionary_misses_add_up_to_the_logit(reading, sae, model):
    logits = model.logits(reading.ids[None])[0].double()
    for position, target in ((3, 70), (7, 101), (len(reading.ids) - 1, 5)):
        found = direct_effects(reading, sae, model, position, target)
        parts = found.latents + found.error + found.bias + found.rest
        assert parts == pytest.approx(found.total, abs=1e-4)
        expected = float(logits[position, target] - logits[position].mean())
        assert found.total == pytest.approx(expected, abs=1e-3)
        sizes = [abs(effect) for _, effect in found.by_latent]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) == 4


def test_a_latents_direct_effect_is_the_slope_of_the_logit_with_the_norm_held(reading, sae, model):
    position, target = 4, 80
    found = direct_effects(reading, sae, model, position, target)
    stream = reading.stream[position].double()
    gain = model.module.model.norm.weight.detach().double()
    W_U = model.module.lm_head.weight.T.detach().double()
    scale = stream.square().mean().sqrt()
    dense = reading.codes.dense()[position].double()
    for latent, effect in found.by_latent:
        written = dense[latent] * sae.W_dec[latent].detach().double()
        logits = (written * gain / scale) @ W_U
        assert effect == pytest.approx(float(logits[target] - logits.mean()), rel=1e-4, abs=1e-6)


def test_a_norm_that_removes_the_mean_is_held_at_its_own_scale():
    from saelab.models import load_model
    from tests.tiny_models import tiny_gpt2, tiny_tokenizer

    found = load_model(tiny_gpt2(), tokenizer=tiny_tokenizer(), name="gpt2", device="cpu")
    dictionary = SAE(found.d_model, 24, AbsTopK(4), hook=HOOK, seed=3)
    text = read_prompt(dictionary, found, TEXT)
    logits = found.logits(text.ids[None])[0].double()
    # The norm's bias adds the same to one token's logit everywhere, and is left out.
    left_out = [
        float(logits[t, 70] - logits[t].mean())
        - direct_effects(text, dictionary, found, t, 70).total
        for t in range(1, 9)
    ]
    assert max(left_out) - min(left_out) < 2e-3


def test_a_transcoders_error_is_of_what_it_writes(model):
    reads, writes = "blocks.1.mlp.hook_in", "blocks.1.hook_mlp_out"
    coder = SAE(model.d_model, 24, AbsTopK(4), hook=reads, hook_out=writes, seed=3)
    found = read_prompt(coder, model, TEXT)
    there = model.activations(found.ids[None], [reads, writes])
    x, y = there[reads][0], there[writes][0]
    assert torch.allclose(found.missed, (y - coder(x)).detach(), atol=1e-5)
    effects = direct_effects(found, coder, model, 3, 70)
    parts = effects.latents + effects.error + effects.bias + effects.rest
    assert parts == pytest.approx(effects.total, abs=1e-4)


def test_a_dictionary_beside_the_stream_has_no_direct_effect(model):
    beside = SAE(48, 24, AbsTopK(4), hook="blocks.1.mlp.hook_post", seed=3)
    found = read_prompt(beside, model, TEXT)
    with pytest.raises(ConfigError, match="does not write into the residual stream"):
        direct_effects(found, beside, model, 3, 70)


def test_texts_that_cannot_be_read_are_refused(sae, model):
    with pytest.raises(CorpusError, match="empty"):
        read_prompt(sae, model, "")
    with pytest.raises(CorpusError, match=r"tokens; at most .* are read at once"):
        read_prompt(sae, model, "x" * 5000)
    with pytest.raises(ConfigError, match="which hook point"):
        read_prompt(SAE(model.d_model, 8), model, TEXT)


@pytest.fixture
def runs(tmp_path):
    x = torch.randn(512, 8, generator=torch.Generator().manual_seed(0))
    store = ActivationStore.from_tensor(x)
    config = TrainConfig(tokens=2048, batch_size=256, log_every_tokens=512)
    for name in ("a", "deep/b"):
        train(SAE(8, 16, AbsTopK(2)), store, config, tmp_path / name)
    return tmp_path


def test_runs_are_found_however_deep_with_what_they_reached(runs):
    one, two = find_runs(runs)
    assert (one.name, two.name) == ("a", "deep/b")
    assert (one.family, one.k, one.d_sae, one.tokens, one.budget) == (
        "abstopk",
        2.0,
        16,
        2048,
        2048,
    )
    assert one.finished and not one.has_atlas
    assert one.measured("fvu") == one.metrics()[-1]["fvu"]
    assert one.measured("ce_recovered_zero") is None


def test_a_run_in_progress_is_shown_with_the_lines_that_are_whole(runs):
    log = runs / "a" / "metrics.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines) + '\n{"step": 99, "tok')
    assert len(find_runs(runs)[0].metrics()) == len(lines)


def test_held_out_numbers_come_before_those_of_training(runs):
    evaluation = {"summary": {"fvu": 0.5, "l0": 2.0, "ce_recovered_zero": None}}
    (runs / "a" / "evaluation.json").write_text(json.dumps(evaluation))
    assert find_runs(runs)[0].measured("fvu") == 0.5


def test_a_damaged_run_does_not_hide_the_others(runs):
    (runs / "a" / "run.json").write_text("{")
    assert [one.name for one in find_runs(runs)] == ["deep/b"]


def test_a_folder_that_is_a_run_is_found_by_its_own_name(runs):
    (found,) = find_runs(runs / "a")
    assert found.name == "a"


def test_figures_of_runs_have_units_and_leave_out_what_is_unknown(runs):
    from saelab.run_figures import runs_figure, training_figure

    found = find_runs(runs)
    figure: Any = runs_figure(found)
    assert figure.layout.xaxis.title.text == "L0, latents active per token"
    assert sum(len(trace.x) for trace in figure.data) == 2
    assert not runs_figure(found, "ce_recovered_zero", "CE recovered").data
    curves: Any = training_figure(found[0].metrics(), [{"step": 2, "kind": "x", "message": "y"}])
    assert [note.text for note in curves.layout.annotations][:2] == ["FVU", "L0"]
    assert len(curves.layout.shapes) == len(curves.data)
