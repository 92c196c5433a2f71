import dataclasses
import json
import re

import pytest
import torch

from saelab.activation_functions import ActivationFunction, TopK
from saelab.decoder_geometry import decoder_geometry, nearest_decoder_directions
from saelab.errors import CheckpointError, ConfigError, ModelError, ShapeError
from saelab.evaluation import EvaluateConfig, Evaluation, evaluate
from saelab.fidelity import edited_positions, loss_effects, scored_predictions
from saelab.latents import look
from saelab.metrics import ReconstructionMetrics
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.tokens import Tokens
from tests.tiny_models import tiny_language_model

HOOK = "blocks.1.hook_resid_post"
D = 32
CONFIG = EvaluateConfig(outlier_factor=None, rows_per_batch=2)


class Signed(ActivationFunction):
    """Every pre-activation is a latent, whatever its sign: linear, so closed forms exist."""

    name = "signed"
    signed = True

    def forward(self, pre_acts):
        return pre_acts

    def select(self, pre_acts):
        row, latent = (pre_acts != 0).nonzero(as_tuple=True)
        return row, latent, pre_acts[row, latent]

    def at_pairs(self, pre_acts, indices):  # noqa: ARG002
        return pre_acts

    def to_json(self):
        return {"name": self.name}


def identity_sae():
    """Orthonormal directions, signed latents: the reconstruction is the activation."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    return filled(SAE(D, D, Signed(), hook=HOOK), directions)


def constant_sae(value):
    """Always decodes to `value`: no latent can fire."""
    sae = filled(SAE(D, D, TopK(1), hook=HOOK), torch.eye(D))
    with torch.no_grad():
        sae.b_enc.fill_(-1e9)
        sae.b_dec.copy_(value)
    return sae


def random_sae(activation=None, d_sae=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(d_sae, D, generator=generator) / D**0.5
    return filled(SAE(D, d_sae, activation or TopK(5), hook=HOOK), directions)


def filled(sae, directions):
    with torch.no_grad():
        sae.W_dec.copy_(directions)
        sae.W_enc.copy_(directions.T)
    return sae


def some_tokens(rows=5, length=12, seed=0):
    """BOS, two documents with a separator between them, and one special token inside the second."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 257, (rows, length), generator=generator)
    ids[:, 0] = 0
    ids[:, 5] = 0
    document = torch.ones(rows, length, dtype=torch.int32)
    document[:, :5] = 0
    document[:, [0, 5]] = -1
    kept = document >= 0
    kept[:, 8] = False
    return Tokens(ids, document, kept, ["a", "b"], 0, {"name": "random"})


@pytest.fixture(scope="module")
def model():
    return tiny_language_model()


def kept_activations(model, tokens):
    found = model.activations(tokens.ids.long(), [HOOK])[HOOK]
    return found[tokens.kept]


def test_a_perfect_reconstruction_costs_the_model_nothing(model):
    found = evaluate(identity_sae(), model=model, tokens=some_tokens(), config=CONFIG)
    assert found.fvu == pytest.approx(0, abs=1e-9)
    assert found.ce_recovered_zero == pytest.approx(1, abs=1e-4)
    assert found.ce_recovered_mean == pytest.approx(1, abs=1e-4)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.reconstruction.relative_bias == pytest.approx(1, abs=1e-5)


def test_a_reconstruction_of_zero_is_zero_ablation(model):
    found = evaluate(constant_sae(torch.zeros(D)), model=model, tokens=some_tokens(), config=CONFIG)
    assert found.ce_recovered_zero == pytest.approx(0, abs=1e-9)
    assert found.losses is not None
    assert found.losses.kl_score_zero == pytest.approx(0, abs=1e-9)
    assert found.losses.kl_zero > 1e-3, "zero ablation should cost this model something"
    assert found.dead_share == 1


def test_a_reconstruction_of_the_mean_is_mean_ablation(model):
    tokens = some_tokens()
    mean = kept_activations(model, tokens).double().mean(0).float()
    found = evaluate(constant_sae(mean), model=model, tokens=tokens, config=CONFIG)
    assert found.fvu == pytest.approx(1, abs=1e-6)
    assert found.ce_recovered_mean == pytest.approx(0, abs=1e-5)
    assert found.ce_recovered_zero != pytest.approx(found.ce_recovered_mean, abs=1e-3)


def test_the_losses_are_those_of_a_plain_loop(model):
    tokens, sae = some_tokens(rows=3), random_sae()
    found = evaluate(sae, model=model, tokens=tokens, config=CONFIG).losses
    clean = model.logits(tokens.ids.long()).double().log_softmax(-1)

    def splice(x):
        out = x.clone()
        for row, position in tokens.kept.nonzero().tolist():
            out[row, position] = sae(x[row, position][None])[0]
        return out

    with model.editing({HOOK: splice}):
        spliced = model.logits(tokens.ids.long()).double().log_softmax(-1)
    losses, divergences = [], []
    for row in range(3):
        for position in range(tokens.length - 1):
            # documents are positions 1-4 and 6-11 but 8: 5 and 8 are not kept, 0 is the BOS
            if {position, position + 1} & {0, 5, 8}:
                continue
            target = int(tokens.ids[row, position + 1])
            losses.append((-clean[row, position, target], -spliced[row, position, target]))
            p, q = clean[row, position], spliced[row, position]
            divergences.append((p.exp() * (p - q)).sum())
    assert found is not None
    assert found.n_predictions == len(losses) == 3 * 6
    assert found.n_edited == 3 * 9
    assert found.ce_clean == pytest.approx(float(sum(a for a, _ in losses)) / 18, rel=1e-5)
    assert found.ce_spliced == pytest.approx(float(sum(b for _, b in losses)) / 18, rel=1e-5)
    assert found.kl_spliced == pytest.approx(float(sum(divergences)) / 18, rel=1e-4)


def test_a_prediction_across_documents_is_not_scored():
    kept = torch.ones(1, 6, dtype=torch.bool)
    document = torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert scored_predictions(kept, document).tolist() == [[False, True, False, True, True]]


def test_position_zero_and_outliers_are_never_edited():
    activations = torch.ones(1, 4, 2)
    activations[0, 2] = 100
    kept = torch.tensor([[True, True, True, False]])
    assert edited_positions(activations, kept, 5.0).tolist() == [[False, True, False, False]]
    assert edited_positions(activations, kept, None).tolist() == [[False, True, True, False]]


def test_a_splice_leaves_position_zero_and_everything_not_kept_as_it_was(model):
    seen = {}

    class Spy:
        hook: str | None = HOOK

        def encode(self, x):
            seen.setdefault("x", []).append(x.clone())
            return constant_sae(torch.zeros(D)).encode(x)

        def decode(self, codes):
            return constant_sae(torch.zeros(D)).decode(codes)

    tokens = some_tokens(rows=2)
    loss_effects(Spy(), model, tokens, torch.zeros(D), rows_per_batch=2)
    torch.testing.assert_close(torch.cat(seen["x"]), kept_activations(model, tokens))


@pytest.mark.parametrize("rows_per_batch", [1, 3, 5])
def test_numbers_do_not_depend_on_the_batch_size(model, rows_per_batch):
    tokens, sae = some_tokens(), random_sae()
    one = evaluate(sae, model=model, tokens=tokens, config=CONFIG)
    config = EvaluateConfig(outlier_factor=None, rows_per_batch=rows_per_batch, chunk=7)
    other = evaluate(sae, model=model, tokens=tokens, config=config)
    for name, value in one.summary().items():
        assert other.summary()[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    assert one.reconstruction.firing_positive == other.reconstruction.firing_positive


def test_flipping_the_sign_of_latents_changes_no_number_but_the_tails(model):
    tokens, sae = some_tokens(), random_sae(Signed(), seed=1)
    flipped = random_sae(Signed(), seed=1)
    with torch.no_grad():
        for weights in (flipped.W_enc.T, flipped.W_dec, flipped.b_enc[:, None]):
            weights[:20] *= -1
    one = evaluate(sae, model=model, tokens=tokens, config=CONFIG)
    other = evaluate(flipped, model=model, tokens=tokens, config=CONFIG)
    for name, value in one.summary().items():
        assert other.summary()[name] == pytest.approx(value, rel=1e-5), name
    assert one.reconstruction.l0_counts == other.reconstruction.l0_counts
    assert one.reconstruction.firing_positive[:20] == other.reconstruction.firing_negative[:20]
    assert one.reconstruction.firing_positive[20:] == other.reconstruction.firing_positive[20:]
    assert one.geometry is not None
    assert other.geometry is not None
    assert one.geometry.nearest_median == pytest.approx(other.geometry.nearest_median)


def test_a_store_and_the_model_give_the_same_reconstruction(model):
    tokens, sae = some_tokens(), random_sae()
    store = ActivationStore.from_tensor(kept_activations(model, tokens))
    from_store = evaluate(sae, store)
    from_model = evaluate(sae, model=model, tokens=tokens, config=CONFIG)
    assert from_store.losses is None
    assert from_store.fvu == pytest.approx(from_model.fvu, rel=1e-6)
    assert from_store.l0 == from_model.l0


def test_max_tokens_is_a_limit():
    x = torch.randn(100, D, generator=torch.Generator().manual_seed(0))
    found = evaluate(
        random_sae(), ActivationStore.from_tensor(x), config=EvaluateConfig(max_tokens=30, chunk=8)
    )
    direct = ReconstructionMetrics()
    direct.update(x[:30], random_sae()(x[:30]).detach())
    assert found.reconstruction.n_tokens == 30
    assert found.fvu == pytest.approx(direct.result().fvu, rel=1e-6)


def test_norm_outliers_are_left_out_of_every_number(model):
    tokens, sae = some_tokens(), random_sae()
    norms = kept_activations(model, tokens).norm(dim=1)
    factor = 1.1
    expected = int((norms <= norms[:9].median() * factor).sum())
    config = EvaluateConfig(outlier_factor=factor, rows_per_batch=1)
    found = evaluate(sae, model=model, tokens=tokens, config=config)
    assert found.losses is not None
    assert 0 < expected < len(norms)
    assert found.reconstruction.n_tokens == found.losses.n_edited == expected


def test_a_model_with_other_weights_is_refused_unless_asked_for(model):
    sae = random_sae()
    sae.metadata["model"] = {**model.identity.to_json(), "weights": "sha256:other"}
    with pytest.raises(ModelError, match=r"with weights sha256:other .*Load the model it was"):
        evaluate(sae, model=model, tokens=some_tokens(), config=CONFIG)
    with pytest.raises(ModelError, match="with weights sha256:other"):
        look(sae, model, some_tokens())
    config = dataclasses.replace(CONFIG, allow_other_model=True)
    with pytest.warns(UserWarning, match=r"not the one .*sha256:other"):
        found = evaluate(sae, model=model, tokens=some_tokens(), config=config)
    assert len(found.warnings) == 1


def test_the_same_model_is_not_warned_about(model):
    sae = random_sae()
    sae.metadata["model"] = model.identity.to_json()
    assert evaluate(sae, model=model, tokens=some_tokens(), config=CONFIG).warnings == []


def test_an_evaluation_survives_its_file(model, tmp_path):
    found = evaluate(random_sae(), model=model, tokens=some_tokens(), config=CONFIG)
    found.save(tmp_path)
    again = Evaluation.load(tmp_path)
    assert again == found
    assert json.loads((tmp_path / "evaluation.json").read_text())["summary"]["fvu"] == found.fvu


def test_a_file_of_a_newer_version_is_refused(model, tmp_path):
    found = evaluate(random_sae(), model=model, tokens=some_tokens(), config=CONFIG)
    value = {**found.to_json(), "version": 99}
    (tmp_path / "evaluation.json").write_text(json.dumps(value))
    with pytest.raises(CheckpointError, match="version 99"):
        Evaluation.load(tmp_path)


def test_an_incomplete_file_is_refused(model):
    value = evaluate(random_sae(), model=model, tokens=some_tokens(), config=CONFIG).to_json()
    del value["reconstruction"]["fvu"]
    with pytest.raises(CheckpointError, match=r"incomplete: .*fvu"):
        Evaluation.from_json(value)


def test_the_page_is_self_contained_and_inlines_plotly_once(model, tmp_path):
    found = evaluate(random_sae(), model=model, tokens=some_tokens(), config=CONFIG)
    page = found.save(tmp_path).read_text()
    assert len(re.findall(r"plotly\.js v\d", page)) == 1
    assert "default-src 'none'" in page
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)\s*=", page)
    assert "the first position of each row" in page
    assert "random" in page


def test_a_dictionary_without_a_hook_point_cannot_be_spliced(model):
    sae = random_sae()
    sae.hook = None
    with pytest.raises(ConfigError, match=r"Set sae\.hook"):
        evaluate(sae, model=model, tokens=some_tokens())


def test_half_of_the_input_is_refused(model):
    with pytest.raises(ConfigError, match="a store, or a model and tokens"):
        evaluate(random_sae())
    with pytest.raises(ConfigError, match="given a model but no tokens"):
        evaluate(random_sae(), model=model)


def test_a_store_of_another_width_is_refused():
    with pytest.raises(ShapeError, match="7 wide; the dictionary reads 32"):
        evaluate(random_sae(), ActivationStore.from_tensor(torch.ones(5, 7)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"max_loss_tokens": -1}, "max_loss_tokens=-1 must be 0"),
        ({"outlier_factor": 0.5}, "outlier_factor=0.5 would exclude"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(**settings)


def test_nearest_directions_against_the_full_matrix():
    W_dec = torch.randn(37, 6, generator=torch.Generator().manual_seed(0))
    unit = W_dec / W_dec.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).fill_diagonal_(0)
    index, value = nearest_decoder_directions(W_dec, chunk=5)
    assert torch.equal(index, cosines.abs().argmax(1))
    torch.testing.assert_close(value, cosines[torch.arange(37), index])


def test_the_null_of_the_nearest_cosine_is_that_of_random_directions():
    W_dec = torch.randn(400, 24, generator=torch.Generator().manual_seed(0))
    found = decoder_geometry(W_dec, W_dec.T, 400)
    assert found.nearest_median == pytest.approx(found.random_nearest, abs=0.01)
    assert found.encoder_cosine_median == pytest.approx(1)
    assert found.duplicate_share == 0


def test_duplicate_directions_are_found():
    W_dec = torch.eye(6)
    W_dec[5] = -2 * W_dec[0]
    assert decoder_geometry(W_dec, W_dec.T, 6).duplicate_share == pytest.approx(2 / 6)
