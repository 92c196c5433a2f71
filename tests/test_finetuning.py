import copy
import json
from dataclasses import replace

import pytest
import torch

from saelab import tokens as text
from saelab.activation_functions import JumpReLU, ReLU, TopK
from saelab.errors import ConfigError, DataError, HookPointError, ModelError
from saelab.fidelity import next_token_kl, next_token_loss
from saelab.finetuning import (
    FinetuneConfig,
    Finetuner,
    balanced,
    clean_pass,
    finetune,
    splice_cost,
    spliced_pass,
)
from saelab.finetuning.objective import SplicedTerm
from saelab.models import load_model
from saelab.normalization import Normalization
from saelab.objectives import TargetL0
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.training import train
from saelab.training.config import TrainConfig
from tests.tiny_models import (
    TinyPlainModel,
    random_tokens,
    sentences,
    tiny_bridge,
    tiny_gemma2,
    tiny_gpt2,
    tiny_language_model,
    tiny_llama,
    tiny_neox,
    tiny_tokenizer,
)

HOOK, LATER = "blocks.0.hook_resid_post", "blocks.2.hook_resid_post"
SMALL = FinetuneConfig(tokens=32 * 8 * 4, rows_per_step=4, measure_rows=4, lr=1e-3)
EVERY_OBJECTIVE = pytest.mark.parametrize(
    "objective", ["kl", "kl_mse", "ce", "downstream", "kl_downstream"]
)


@pytest.fixture(scope="module")
def model():
    return tiny_language_model()


@pytest.fixture(scope="module")
def tokens(model):
    return text.from_text(model, sentences(8), length=32)


@pytest.fixture(scope="module")
def trained(model, tokens):
    """A dictionary trained on reconstruction alone; tests work on copies."""
    clean = clean_pass(model, tokens, HOOK)
    sae = SAE(32, 48, TopK(4), hook=HOOK)
    train(sae, ActivationStore.from_tensor(clean.inputs), TrainConfig(tokens=12_800, batch_size=64))
    return sae


def with_objective(objective, **settings):
    downstream = (LATER,) if "downstream" in objective else ()
    return replace(SMALL, objective=objective, downstream=downstream, **settings)


def weights(sae):
    return {name: value.clone() for name, value in sae.state_dict().items()}


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2, tiny_neox, tiny_gemma2])
def test_splicing_the_activation_itself_changes_nothing(make):
    model = load_model(make(), tokenizer=tiny_tokenizer(), name="tiny", device="cpu")
    part = text.from_text(model, sentences(2), length=24)
    clean = clean_pass(model, part, HOOK, [LATER])
    spliced = spliced_pass(model, clean, clean.inputs)
    assert abs(spliced.kl().item()) < 1e-6
    assert spliced.downstream().item() < 1e-9
    untouched = -clean.log_probs.gather(1, clean.targets.unsqueeze(1)).mean()
    assert spliced.ce().item() == pytest.approx(untouched.item(), abs=1e-6)


def test_a_bridge_can_be_spliced_too():
    model = load_model(tiny_bridge(), device="cpu")
    ids = random_tokens(2, 12, 40)
    kept = torch.ones_like(ids, dtype=torch.bool)
    part = text.Tokens(ids, torch.zeros_like(ids), kept, ["a"], None)
    clean = clean_pass(model, part, HOOK)
    assert abs(spliced_pass(model, clean, clean.inputs).kl().item()) < 1e-6
    recons = (clean.inputs * 0.5).requires_grad_()
    spliced_pass(model, clean, recons).kl().backward()
    assert recons.grad is not None and recons.grad.abs().sum() > 0


def test_losses_are_those_of_the_definitions(model, tokens):
    clean = clean_pass(model, tokens[:3], HOOK, [LATER])
    recons = clean.inputs + 0.3 * torch.randn_like(clean.inputs)
    spliced = spliced_pass(model, clean, recons)
    places = clean.touched

    def put(activation):
        edited = activation.clone()
        edited[places] = recons
        return edited

    logits = model.logits(clean.ids)
    with model.editing({HOOK: put}):
        changed = model.logits(clean.ids)
        later = model.activations(clean.ids, [LATER])[LATER]
    p, q = logits[:, :-1][clean.scored], changed[:, :-1][clean.scored]
    assert spliced.kl().item() == pytest.approx(next_token_kl(p, q).mean().item(), rel=1e-4)
    assert spliced.ce().item() == pytest.approx(
        next_token_loss(q, clean.targets).mean().item(), rel=1e-5
    )
    wanted = model.activations(clean.ids, [LATER])[LATER][places]
    error = (later[places] - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert spliced.downstream().item() == pytest.approx(error.item(), rel=1e-4)
    assert spliced.kl().item() > 0


def test_bos_and_padding_are_neither_spliced_nor_scored(model):
    part = text.from_text(model, ["short one", "another rather longer document"], length=24)
    ids, kept = part.ids.clone(), part.kept.clone()
    kept[:, 15:] = False  # as if padded from there
    part = replace(part, ids=ids, kept=kept)
    clean = clean_pass(model, part, HOOK)
    assert not clean.touched[:, 0].any() and not clean.touched[:, 15:].any()
    assert not clean.scored[:, 0].any() and not clean.scored[:, 14:].any()
    assert len(clean.inputs) == int(clean.touched.sum()) and len(clean.targets) > 0
    none = replace(part, kept=torch.zeros_like(kept))
    with pytest.raises(DataError, match="no position to splice at"):
        clean_pass(model, none, HOOK)


def test_an_outlying_norm_keeps_its_activation(model, tokens):
    norms = model.activations(tokens.ids.long(), [HOOK])[HOOK].norm(dim=-1)
    limit = float(norms.median())
    clean = clean_pass(model, tokens, HOOK, norm_limit=limit)
    assert clean.inputs.norm(dim=1).max() <= limit
    assert not clean.touched[norms > limit].any()


@EVERY_OBJECTIVE
def test_gradients_reach_the_dictionary_and_not_the_model(objective, model, tokens, trained):
    sae = copy.deepcopy(trained)
    before = {n: p.clone() for n, p in model.module.named_parameters()}
    asked = {n: p.requires_grad for n, p in model.module.named_parameters()}
    tuner = Finetuner(sae, model, tokens, with_objective(objective))
    tuner.step()
    assert all(not torch.equal(p, trained.state_dict()[n]) for n, p in sae.state_dict().items())
    for name, parameter in model.module.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad == asked[name]
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize("objective", ["kl", "ce", "downstream", "kl_mse", "kl_downstream"])
def test_the_gradient_is_that_of_finite_differences(objective):
    # GPT-2, because the norms of the others compute in float32 whatever they are given.
    model = load_model(tiny_gpt2().double(), tokenizer=tiny_tokenizer(), name="t", device="cpu")
    part = text.from_text(model, sentences(2), length=16)
    sae = SAE(
        32,
        48,
        TopK(6),
        hook=HOOK,
        dtype=torch.float64,
        normalization=Normalization(scale_in=0.5, scale_out=0.5),
    )
    clean = clean_pass(model, part, HOOK, [LATER])
    variance = float((clean.inputs / 2 - clean.inputs.mean(0) / 2).square().sum(1).mean())
    config = with_objective(objective)

    def losses():
        """The objective, its value with any balancing weight held where it was at first."""
        recons = sae(clean.inputs)
        spliced = spliced_pass(model, clean, recons)
        mse = (clean.inputs - recons).square().sum() / 4 / (len(recons) * variance)
        named = {"mse": mse, "kl": spliced.kl(), "ce": spliced.ce()}
        named["downstream"] = spliced.downstream()
        return [named[name] for name in config.objective.split("_")]

    at_first = [loss.item() for loss in losses()]

    def value():
        found = losses()
        if len(found) == 1:
            return found[0]
        return (found[1] + at_first[1] / at_first[0] * found[0]) / 2

    from saelab.training.gradients import Gradients

    term = SplicedTerm(model, config)
    term.clean = clean
    gradients = Gradients(sae, [term], [HOOK])
    gradients.variance = variance
    _, numbers = gradients({HOOK: clean.inputs}, torch.zeros(48, dtype=torch.bool), 0.0)
    assert numbers["loss"] == pytest.approx(value().item(), rel=1e-9)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in sae.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        slopes = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter.add_(direction, alpha=step)
                slopes.append(value().item())
                parameter.add_(direction, alpha=-step)
        expected = (slopes[0] - slopes[1]) / 2e-6
        found = float((gradients.of(name) * direction).sum())
        assert found == pytest.approx(expected, rel=2e-4, abs=1e-9), name


def test_balanced_terms_have_the_firsts_value_and_push_equally():
    a, b = (torch.tensor(v, requires_grad=True) for v in (3.0, 0.5))
    loss = balanced(a.square(), b.square())
    loss.backward()
    assert loss.item() == 9.0
    assert a.grad is not None and b.grad is not None
    # d/da 1/2 a^2 = a; d/db 1/2 (a^2 / b^2) b^2 with the ratio fixed = a^2 / b
    assert (a.grad.item(), b.grad.item()) == (3.0, 18.0)
    assert (a.grad * a).item() == (b.grad * b).item()
    assert balanced(torch.tensor(3.0), torch.tensor(0.0)).item() == 1.5


@EVERY_OBJECTIVE
def test_a_few_steps_lower_what_is_minimized(objective, model, tokens, trained):
    sae = copy.deepcopy(trained)
    config = with_objective(objective, tokens=32 * 8 * 12, rows_per_step=8)
    clean = clean_pass(model, tokens, HOOK, [LATER])

    def later():
        with torch.no_grad():
            return spliced_pass(model, clean, sae(clean.inputs)).downstream().item()

    at_first = later()
    result = finetune(sae, model, tokens, config)
    assert result.metrics[-1]["tokens"] == 32 * 8 * 12
    named = {"kl": "kl", "ce": "ce_spliced"}
    for part in objective.split("_"):
        if part in named:
            assert getattr(result.after, named[part]) < 0.99 * getattr(result.before, named[part])
        elif part == "downstream":
            assert later() < 0.99 * at_first
    assert result.after.ce_clean == pytest.approx(result.before.ce_clean, rel=1e-6)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(48))


def test_kl_alone_buys_predictions_with_reconstruction_and_balancing_buys_less(
    model, tokens, trained
):
    results = {}
    for objective in ("kl", "kl_mse"):
        config = with_objective(objective, tokens=32 * 8 * 30, rows_per_step=8, lr=3e-3)
        results[objective] = finetune(copy.deepcopy(trained), model, tokens, config)
    alone, both = results["kl"], results["kl_mse"]
    assert alone.after.kl < alone.before.kl and both.after.kl < both.before.kl
    assert alone.after.fvu > alone.before.fvu
    assert both.after.fvu < alone.after.fvu


def test_costs_are_measured_as_inference_encodes(model, tokens, trained):
    cost = splice_cost(trained, model, tokens[:4], rows_at_once=3)
    clean = clean_pass(model, tokens[:4], HOOK)
    recons = trained(clean.inputs).detach()
    spliced = spliced_pass(model, clean, recons)
    spread = (clean.inputs - clean.inputs.mean(0)).square().sum()
    assert cost.kl == pytest.approx(spliced.kl().item(), rel=1e-4)
    assert cost.ce_spliced == pytest.approx(spliced.ce().item(), rel=1e-4)
    assert cost.fvu == pytest.approx(
        float((clean.inputs - recons).square().sum() / spread), rel=1e-4
    )
    assert cost.l0 == pytest.approx(float(trained.encode(clean.inputs).l0().float().mean()))
    assert cost.kl >= 0 and cost.n_predictions == len(clean.targets)


def test_a_run_interrupted_anywhere_ends_with_the_same_bits(model, tokens, trained, tmp_path):
    config = replace(SMALL, checkpoint_every_steps=3, log_every_steps=1)
    whole = copy.deepcopy(trained)
    expected = finetune(whole, model, tokens, config)

    def stop(done, total, note):  # noqa: ARG001
        if done >= 5 * 4 * 32:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(copy.deepcopy(trained), model, tokens, config, tmp_path / "run", progress=stop)
    again = copy.deepcopy(trained)
    result = finetune(again, model, tokens, config, tmp_path / "run")
    found = weights(again)
    assert all(torch.equal(value, found[name]) for name, value in weights(whole).items())
    assert result.metrics == expected.metrics
    assert (result.before, result.after) == (expected.before, expected.after)
    written = json.loads((tmp_path / "run" / "finetuning.json").read_text())
    assert written["after"]["kl"] == result.after.kl
    loaded = SAE.load(tmp_path / "run" / "sae")
    x = torch.randn(5, 32)
    assert torch.equal(loaded(x), again(x))
    assert loaded.metadata["finetuning"]["after"] == written["after"]


def test_a_folder_with_another_run_is_refused(model, tokens, trained, tmp_path):
    config = replace(SMALL, tokens=32 * 4)
    finetune(copy.deepcopy(trained), model, tokens, config, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"holds another run.*config\.lr"):
        finetune(copy.deepcopy(trained), model, tokens, replace(config, lr=1e-2), tmp_path / "run")
    other = copy.deepcopy(trained)
    with torch.no_grad():
        other.b_enc += 1
    with pytest.raises(ConfigError, match=r"data\.dictionary"):
        finetune(other, model, tokens, config, tmp_path / "run")


def test_every_row_is_read_once_an_epoch_in_an_order_of_its_own(model, tokens, trained):
    tuner = Finetuner(copy.deepcopy(trained), model, tokens, replace(SMALL, rows_per_step=3))
    n_rows, read = tokens.n_rows, []
    while len(read) < 2 * n_rows:
        read += [tuple(row.tolist()) for row in tuner._rows().ids]
        tuner.steps_done += 1
    rows = sorted(tuple(row.tolist()) for row in tokens.ids)
    assert sorted(read[:n_rows]) == sorted(read[n_rows : 2 * n_rows]) == rows
    assert read[:n_rows] != read[n_rows : 2 * n_rows]


def test_sparsity_terms_are_added_and_frozen_weights_stay(model, tokens):
    sae = SAE(32, 48, JumpReLU(threshold=0.5, bandwidth=0.3), hook=HOOK)
    before = weights(sae)
    config = replace(SMALL, frozen=("W_enc", "b_enc"))
    result = finetune(sae, model, tokens, config, terms=[TargetL0(target=4.0)])
    after = weights(sae)
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert "W_enc" not in changed and "b_enc" not in changed
    assert {"W_dec", "b_dec", "activation.threshold"} <= changed
    assert {"l0", "kl", "mse", "ce"} <= set(result.metrics[-1])


def test_a_jumprelu_dictionary_is_kept_at_its_l0_unless_told_otherwise(model, tokens):
    sae = SAE(32, 48, JumpReLU(threshold=0.5, bandwidth=0.3), hook=HOOK)
    tuner = Finetuner(sae, model, tokens, SMALL)
    (term,) = tuner.extra
    assert isinstance(term, TargetL0) and term.target == tuner.before.l0 > 0
    with pytest.raises(ConfigError, match="Nothing limits how many latents of a ReLU"):
        finetune(SAE(32, 48, ReLU(), hook=HOOK), model, tokens, SMALL)


def test_what_cannot_be_finetuned_is_refused(model, tokens, trained):
    with pytest.raises(ConfigError, match="reads and writes one hook point"):
        finetune(SAE(32, 48), model, tokens, SMALL)
    with pytest.raises(ConfigError, match=r"blocks\.0.* -> blocks\.2"):
        finetune(SAE(32, 48, hook=HOOK, hook_out=LATER), model, tokens, SMALL)
    long = copy.deepcopy(trained)
    with torch.no_grad():
        long.W_dec *= 2
    with pytest.raises(ConfigError, match="decoder='free'"):
        finetune(long, model, tokens, SMALL)
    with pytest.raises(HookPointError):
        finetune(
            copy.deepcopy(trained),
            model,
            tokens,
            replace(SMALL, objective="downstream", downstream=("blocks.9.hook_resid_post",)),
        )
    other = copy.deepcopy(trained)
    other.metadata["model"] = {"name": "other", "weights": "sha256:0"}
    with pytest.raises(ModelError, match="trained on other"):
        finetune(other, model, tokens, SMALL)
    with pytest.raises(ConfigError, match="name later hook points"):
        FinetuneConfig(objective="downstream")
    with pytest.raises(ConfigError, match="name later hook points"):
        FinetuneConfig(objective="kl", downstream=(LATER,))
    with pytest.raises(ConfigError, match=r"rows_per_step=0\) must be positive"):
        FinetuneConfig(rows_per_step=0)


def test_a_plain_module_can_be_finetuned_in():
    model = load_model(TinyPlainModel(), device="cpu")
    ids = random_tokens(8, 12)
    kept = torch.ones_like(ids, dtype=torch.bool)
    part = text.Tokens(ids, torch.zeros_like(ids), kept, ["a"], None)
    sae = SAE(16, 32, TopK(3), hook="blocks.0.output")
    config = FinetuneConfig(
        objective="kl", tokens=12 * 8 * 20, rows_per_step=8, measure_rows=8, lr=1e-2
    )
    result = finetune(sae, model, part, config)
    assert result.after.kl < result.before.kl


def test_the_program_finetunes_a_run_with_the_model_and_text_of_its_store(
    tiny_model_folder, tiny_text_file, tmp_path, capsys
):
    from saelab.harvesting import harvest
    from saelab.run_folders import HarvestSource, record_store
    from trainers.finetune import main

    model = load_model(tiny_model_folder)
    train_text, held_out = text.from_text(model, tiny_text_file, length=32).split(0.2)
    store = harvest(model, train_text, [HOOK], tmp_path / "acts")
    held_out.save(tmp_path / "acts" / "tokens" / "held_out")
    HarvestSource.asked(str(tiny_model_folder), [tiny_text_file]).save(tmp_path / "acts")
    sae = SAE(32, 64, TopK(4), hook=store.hook)
    train(sae, store, TrainConfig(tokens=8192, batch_size=256), tmp_path / "run")
    record_store(tmp_path / "run", tmp_path / "acts")
    words = [str(tmp_path / "run"), str(tmp_path / "tuned"), "--tokens", "2048", "--lr", "1e-3"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "KL" in said and "fvu" in said
    tuned = SAE.load(tmp_path / "tuned" / "sae")
    costs = tuned.metadata["finetuning"]
    assert costs["after"]["kl"] < costs["before"]["kl"]
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
