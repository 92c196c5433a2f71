"""A hand-compiled GPT-2 that completes repeats: every head's role is known.

Directions are orthonormal and of mean zero: token, position, previous token, output, and a large
constant that makes every norm's scale nearly the same.

    L0H0 previous token   looks one position back, writes that token to "previous"
    L1H0 induction        looks where "previous" is its own token, writes what is there to "output"
    L0H1 self             looks at its own position, copies its token to a place that nothing reads
    others                look everywhere alike, and write noise that nothing reads

The unembedding reads "output". MLPs write nothing.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from saelab.activation_functions import ReLU
from saelab.models import LanguageModel, load_model
from saelab.sae import SAE
from tests.tiny_models import random_tokens

VOCAB, N_CTX, D_HEAD, N_HEADS, D_MODEL = 12, 16, 16, 4, 80
SHARP, CONSTANT = 60.0, 60.0


@cache
def planted_induction() -> LanguageModel:
    """The model, in float64."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCAB, n_embd=D_MODEL, n_layer=2, n_head=N_HEADS + 1, n_positions=N_CTX,
        n_inner=4, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    network: Any = GPT2LMHeadModel(config).double().eval()
    directions, constant = basis()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.transformer.wte.weight.copy_(directions["token"] + CONSTANT * constant)
        network.transformer.wpe.weight.copy_(directions["position"])
        for block in network.transformer.h:
            block.ln_1.weight.fill_(CONSTANT / D_MODEL**0.5)  # undoes the scale, about
            block.ln_2.weight.fill_(1.0)
        network.transformer.ln_f.weight.fill_(CONSTANT / D_MODEL**0.5)
        first, second = (block.attn for block in network.transformer.h)
        position, token = directions["position"], directions["token"]
        back = position.roll(-1, dims=0)  # row p of `back` is position p + 1, which asks for p
        back[-1] = 0
        _head(first, 0, back, position, token, directions["previous"])
        _head(first, 1, position, position, token, directions["unread"])
        _head(second, 0, token, directions["previous"], token, directions["output"])
        generator = torch.Generator().manual_seed(0)
        for attention, numbers in ((first, (2, 3, 4)), (second, (1, 2, 3, 4))):
            for number in numbers:
                noise = torch.randn(VOCAB, D_HEAD, generator=generator).double() * 0.3
                nothing = torch.zeros_like(token)
                _head(attention, number, nothing, nothing, token, noise @ directions["spare"])
        network.lm_head.weight.copy_(20 * directions["output"])
    return load_model(network, name="planted-induction", device="cpu")


def basis() -> tuple[dict[str, Tensor], Tensor]:
    """Orthonormal directions by name, one row for each, and the constant."""
    generator = torch.Generator().manual_seed(1)
    raw = torch.randn(D_MODEL, D_MODEL, generator=generator).double()
    raw[:, 0] = 1.0
    rows = torch.linalg.qr(raw).Q[:, 1:].T
    names = {"token": VOCAB, "position": N_CTX, "previous": VOCAB, "output": VOCAB,
             "unread": VOCAB}  # fmt: skip
    found, first = {}, 0
    for name, n in names.items():
        found[name], first = rows[first : first + n], first + n
    # Directions that nothing reads are plenty: random mixtures of the unread ones serve.
    mix = torch.randn(D_HEAD, VOCAB, generator=generator).double() / VOCAB**0.5
    found["spare"] = mix @ found["unread"]
    return found, rows[first]


def repeats(n: int = 8, length: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows whose last token was there before, and the same rows where it was not."""
    rows = torch.stack(
        [torch.randperm(VOCAB - 1, generator=torch.Generator().manual_seed(seed + i))[:length] + 1
         for i in range(n)]
    )  # fmt: skip
    positives = rows.clone()
    # From position 1 on, so that what comes after it is neither first nor previous.
    at = random_tokens(n, 1, length - 3, seed=seed)[:, 0]
    positives[torch.arange(n), -1] = rows[torch.arange(n), at]
    return positives, rows


def oracle_of_output() -> SAE:
    """A dictionary of the induction layer's heads: one latent for each token L1H0 may write."""
    sae = SAE(
        (N_HEADS + 1) * D_HEAD, VOCAB, ReLU(), hook="blocks.1.attn.hook_z", pre_bias=False,
        dtype=torch.float64,
    )  # fmt: skip
    with torch.no_grad():
        sae.W_enc.zero_()
        sae.W_enc[:VOCAB] = torch.eye(VOCAB)
        sae.b_enc.fill_(-0.2)
        sae.W_dec.copy_(sae.W_enc.T)
        sae.b_dec.zero_()
    return sae


def _head(
    attention: Any, number: int, query: Tensor, key: Tensor, value: Tensor, out: Tensor
) -> None:
    """Directions [n, d_model]: entry i of head space is what direction i reads or writes."""
    width, scores = attention.c_attn.weight.shape[0], SHARP**0.5
    at = slice(number * D_HEAD, (number + 1) * D_HEAD)
    for which, (rows, strength) in enumerate(((query, scores), (key, scores), (value, 1.0))):
        part = attention.c_attn.weight[:, which * width : (which + 1) * width][:, at]
        part[:, : len(rows)] = strength * rows.T
    attention.c_proj.weight[at][: len(out)] = out
