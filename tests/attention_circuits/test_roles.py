"""Head roles: kinds by hand, sums against single attributions, a compiled model's heads."""

import pytest
import torch

from probes import head_roles as head_roles_program
from saelab.activation_functions import AbsTopK
from saelab.attention_circuits import (
    KINDS,
    DirectAttribution,
    decoder_shares,
    head_roles,
    source_kinds,
)
from saelab.circuits import LocalReplacement
from saelab.errors import ConfigError, DataError, ShapeError
from saelab.models import load_model
from saelab.sae import SAE
from tests import tiny_models
from tests.attention_circuits.planted_induction import (
    D_HEAD,
    N_HEADS,
    oracle_of_output,
    planted_induction,
    repeats,
)
from tests.circuits.circuit_cases import autoencoder, model_of


def test_kinds_of_sources_by_hand() -> None:
    kinds = source_kinds(torch.tensor([4, 5, 6, 5, 7, 5]))
    named = [[KINDS[k] if k >= 0 else "-" for k in row] for row in kinds.tolist()]
    assert named[0] == ["first", "-", "-", "-", "-", "-"]
    assert named[2] == ["first", "previous", "self", "-", "-", "-"]
    # Position 5 repeats the 5 of positions 1 and 3; 2 and 4 come after them.
    assert named[5] == ["first", "duplicate", "induction", "duplicate", "previous", "self"]
    assert named[4] == ["first", "other", "other", "previous", "self", "-"]


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_sums_are_those_of_the_single_attributions(name: str) -> None:
    model = model_of(name)
    width = model.hook_point("blocks.1.attn.hook_z").width or 0
    sae = autoencoder("blocks.1.attn.hook_z", width)
    rows = tiny_models.random_tokens(2, 8, 6, seed=5)  # few tokens, so that some repeat
    expected = torch.zeros(4, len(KINDS)).double()
    count = 0
    for row in rows:
        replacement = LocalReplacement(model, sae, row, cut_heads=True)
        readouts = replacement.readouts(torch.arange(len(replacement.latents)))
        terms = DirectAttribution(replacement).terms(readouts)
        signs = replacement.latents.value.sign()
        for n in range(len(replacement.latents)):
            position = int(replacement.latents.position[n])
            for source in range(position + 1):
                kind = int(source_kinds(row)[position, source])
                expected[:, kind] += signs[n] * terms.heads[n, 1, :, source]
        count += len(replacement.latents)
    found = head_roles(model, sae, rows)
    for head, role in enumerate(found):
        means = (expected[head] / count).tolist()
        # Llama computes its norms in single precision, whatever its type.
        assert list(role.sums.values()) == pytest.approx(means, abs=1e-6)
    assert sum(role.share for role in found) == pytest.approx(1.0)
    assert sum(found[0].chance.values()) == pytest.approx(1.0)


def test_the_compiled_heads_have_the_roles_they_were_given() -> None:
    positives, _ = repeats(6)
    induction = head_roles(planted_induction(), oracle_of_output(), positives, first_query=8)
    assert induction[0].role() == "induction"
    assert induction[0].share > 0.99
    sae = SAE((N_HEADS + 1) * D_HEAD, 12, AbsTopK(2), hook="blocks.0.attn.hook_z",
              pre_bias=False, dtype=torch.float64)  # fmt: skip
    with torch.no_grad():  # reads tokens from both the previous-token and the self head
        sae.W_enc.zero_()
        sae.W_enc[:12] = 2 * torch.eye(12)
        sae.W_enc[D_HEAD : D_HEAD + 12] = torch.eye(12)
    first = head_roles(planted_induction(), sae, positives)
    assert [role.role() for role in first[:2]] == ["previous", "self"]
    assert first[0].shares()["previous"] > 0.8
    assert first[1].shares()["self"] > 0.9
    assert [role.role() for role in first[2:]] == ["mixed"] * 3  # silent


def test_turning_latents_round_changes_no_role() -> None:
    model = model_of("llama")
    sae = autoencoder("blocks.1.attn.hook_z")
    turned = autoencoder("blocks.1.attn.hook_z")
    with torch.no_grad():
        sae.b_enc.zero_()
        turned.b_enc.zero_()
        turned.W_enc.mul_(-1)
    rows = tiny_models.random_tokens(1, 8, 9, seed=5)
    first, second = head_roles(model, sae, rows), head_roles(model, turned, rows)
    for one, other in zip(first, second, strict=True):
        assert list(one.sums.values()) == pytest.approx(list(other.sums.values()))


def test_a_block_of_the_decoder_is_one_head() -> None:
    sae = SAE(8, 3, AbsTopK(1))
    with torch.no_grad():
        sae.W_dec.zero_()
        sae.W_dec[0, 2:4] = 5.0
        sae.W_dec[1, :2] = torch.tensor([3.0, 4.0])
        sae.W_dec[1, 6] = 15.0
    shares = decoder_shares(sae, 4)
    assert shares[0].tolist() == [0, 1, 0, 0]
    assert shares[1].tolist() == [0.25, 0, 0, 0.75]
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        sae.W_dec.copy_(sae.W_dec.unflatten(1, (4, 2))[:, order].flatten(1))
    assert torch.equal(decoder_shares(sae, 4), shares[:, order])


def test_bad_input_is_refused() -> None:
    model, rows = model_of("llama"), tiny_models.random_tokens(1, 4, 9)
    with pytest.raises(ConfigError, match="heads before W_O"):
        head_roles(model, autoencoder("blocks.1.hook_attn_out"), rows)
    with pytest.raises(ShapeError, match="do not divide"):
        decoder_shares(SAE(8, 3), 3)
    silent = oracle_of_output()
    with torch.no_grad():
        silent.b_enc.fill_(-100.0)
    with pytest.raises(DataError, match="No latent is active"):
        head_roles(planted_induction(), silent, repeats(1)[0])


def test_the_program_prints_a_line_for_every_head_and_one_for_chance(
    tiny_model_folder, tiny_text_file, tmp_path, capsys
) -> None:
    model = load_model(str(tiny_model_folder))
    hook = "blocks.1.attn.hook_z"
    width = model.activations(torch.tensor([[1, 2]]), [hook])[hook].shape[-1]
    sae = SAE(width, 24, hook=hook, metadata={"model": model.identity.to_json()})
    sae.save(tmp_path / "run")
    words = [str(tmp_path / "run"), "--model", str(tiny_model_folder), "--text"]
    words += [str(tiny_text_file), "--rows", "3", "--length", "16", "--repeated"]
    assert head_roles_program.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    assert len(rows) == 2 + decoder_shares(sae, len(rows) - 2).shape[1]
    assert sum(float(row[1]) for row in rows[1:-1]) == pytest.approx(1.0, abs=0.02)
    assert "3 rows of 15 tokens" in lines[0]
    assert head_roles_program.main([*words[:-2], "--rows", "0"]) == 2
