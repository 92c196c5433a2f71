"""A head that looks for one planted pair of features: its score must be that pair, alone."""

from functools import cache
from typing import Any

import pytest
import torch

from saelab.activation_functions import ReLU
from saelab.circuits import LocalReplacement, attention_score
from saelab.models import LanguageModel, load_model
from saelab.patching import Edge, Experiment, Pairs, edge_effects
from saelab.sae import SAE

N_FEATURES, D_MODEL, D_VOCAB = 5, 32, 8
QUERY, KEY = 1, 3
"""The feature that looks, and the one that is looked for."""
PROMPT = torch.tensor([KEY, 0, 2, KEY, 4, QUERY])
OTHER = 6
"""A token that no feature stands for."""


@cache
def planted() -> LanguageModel:
    """GPT-2 of two blocks: MLP 0 turns token j into feature j, and head a1.h0 looks for the pair.

    What it finds it copies: the value is KEY's direction, and the unembedding of token 7 reads it.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=D_VOCAB, n_embd=D_MODEL, n_layer=2, n_head=4, n_positions=8,
        n_inner=N_FEATURES, activation_function="relu", tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    network: Any = GPT2LMHeadModel(config).double().eval()
    raw = torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(0)).double()
    raw[:, 0] = 1.0  # the direction that a LayerNorm removes
    basis = torch.linalg.qr(raw).Q[:, 1:].T
    tokens, features, constant, out = basis[:5], basis[5:10], basis[10], basis[11]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.transformer.wte.weight.copy_((40 * constant).expand(D_VOCAB, -1))
        network.transformer.wte.weight[:5] += 4 * tokens
        for block in network.transformer.h:
            block.ln_1.weight.fill_(1.0)
            block.ln_2.weight.fill_(1.0)
        mlp, head = network.transformer.h[0].mlp, network.transformer.h[1].attn
        mlp.c_fc.weight.copy_(10 * tokens.T)
        mlp.c_fc.bias.fill_(-1.0)
        mlp.c_proj.weight.copy_(features)
        head.c_attn.weight[:, 0] = 20 * features[QUERY]
        head.c_attn.weight[:, D_MODEL] = 20 * features[KEY]
        head.c_attn.weight[:, 2 * D_MODEL] = features[KEY]
        head.c_proj.weight[0] = 60 * out
        network.transformer.ln_f.weight.fill_(1.0)
        network.lm_head.weight[7] = out
    return load_model(network, name="planted-pair", device="cpu")


@cache
def replacement() -> LocalReplacement:
    mlp: Any = getattr(planted(), "module").transformer.h[0].mlp  # noqa: B009 - of TorchModel
    sae = SAE(
        D_MODEL,
        N_FEATURES,
        ReLU(),
        hook="blocks.0.mlp.hook_in",
        hook_out="blocks.0.hook_mlp_out",
        dtype=torch.float64,
    )
    with torch.no_grad():
        sae.W_enc.copy_(mlp.c_fc.weight)
        sae.b_enc.copy_(mlp.c_fc.bias)
        sae.W_dec.copy_(mlp.c_proj.weight)
    return LocalReplacement(planted(), [sae], PROMPT, first_position_as_error=False)


def test_the_score_is_the_planted_pair_and_nothing_else() -> None:
    for key in (0, 3):
        score = attention_score(replacement(), 1, 0, query=5, key=key)
        assert score.value > 1.0
        (one, other, weight), (_, _, second) = score.top_pairs(2)
        assert (one.kind, one.number, one.position) == ("latent", QUERY, 5)
        assert (other.kind, other.number, other.position) == ("latent", KEY, key)
        assert weight == pytest.approx(score.value, rel=1e-9)
        assert abs(second) < 1e-9


def test_no_pair_is_found_where_none_is_planted() -> None:
    for layer, head, query, key in ((1, 0, 4, 3), (1, 0, 5, 2), (1, 2, 5, 3), (0, 0, 5, 3)):
        score = attention_score(replacement(), layer, head, query=query, key=key)
        assert float(score.pairs().abs().max()) < 1e-9


def test_patching_finds_the_two_sides_of_the_pair() -> None:
    # Only the tokens of the pair are changed: one kind of prompt for each side.
    rows = {"q": (5, QUERY), "k": (0, KEY)}
    found = {}
    for side, (place, token) in rows.items():
        clean = torch.tensor([KEY, 0, 2, 4, 4, QUERY])
        assert int(clean[place]) == token
        patch = clean.clone()
        patch[place] = OTHER
        pairs = Pairs(
            clean=clean[None],
            patch=patch[None],
            answers=torch.tensor([7]),
            others=torch.tensor([6]),
        )
        one = Experiment(planted(), pairs)
        # What the two feature layers and the planted head write; the rest writes nothing.
        tried = [e for e in one.graph.edges() if e.sender in ("embed", "m0", "a1.h0")]
        scores = edge_effects(one, tried)
        sizes = scores.scores.abs()
        found[side] = set(scores.graph.edges(sizes > 0.05 * sizes.max()))
    assert Edge("m0", "a1.q0") in found["q"] - found["k"]
    assert {Edge("m0", "a1.k0"), Edge("m0", "a1.v0")} <= found["k"] - found["q"]
    common = {Edge("embed", "m0"), Edge("a1.h0", "logits")}
    assert common <= found["q"] & found["k"]
    assert not [e for one in found.values() for e in one if e.receiver[:4] in ("a1.q", "a1.k")
                and e.receiver[-1] != "0"]  # fmt: skip
