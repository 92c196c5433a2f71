"""A circuit that is known because it was written: an induction head of two layers, by hand.

The residual stream is five rooms of one-hot vectors: token, position, previous token, output, and
one that nothing reads.

    a0.h0   attends to the position before, and copies its token into "previous token"
    a1.h0   attends where the previous token is the one it stands on, and copies what is there to
            the output

so that after "A B ... A" the logits say B. `beta` is the score of a match: about 3 leaves softmax
soft, about 50 saturates it, and then no slope passes through queries and keys. Further heads are
distractors: they attend by random weights and write where nothing reads; or, the last one of each
layer, `noise` times a random mix into the output.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.errors import ConfigError
from saelab.models import LanguageModel, load_model
from saelab.patching.graph import Edge
from saelab.patching.pairs import Pairs
from saelab.patching.small_transformer import SmallTransformer, SmallTransformerConfig

__all__ = ["TRUE_EDGES", "TRUE_EDGES_OF_ZEROS", "compiled_induction", "induction_pairs"]

TRUE_EDGES = (
    Edge("embed", "a0.v0"),
    Edge("a0.h0", "a1.k0"),
    Edge("embed", "a1.q0"),
    Edge("embed", "a1.v0"),
    Edge("a1.h0", "logits"),
)
"""What carries the difference between two prompts of `induction_pairs`."""
TRUE_EDGES_OF_ZEROS = (Edge("embed", "a0.q0"), Edge("embed", "a0.k0"), *TRUE_EDGES)
"""What cannot be set to zero: positions too, which do not differ between prompts."""

N_TOKENS = N_POSITIONS = 16
_ROOMS = {"token": 0, "position": 16, "previous": 32, "output": 48, "unread": 64}


def compiled_induction(
    beta: float = 3.0,
    *,
    n_distractors: int = 2,
    noise: float = 0.0,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> LanguageModel:
    """The model with its weights set.

    Args:
        beta: Score of a match, before softmax.
        n_distractors: Further heads in each layer.
        noise: Size of what the last distractor of each layer adds to the output.
        dtype: What it computes in.
        seed: Of the distractors.

    Raises:
        ConfigError: There is noise, and no distractor to make it.
    """
    if n_distractors < 0 or (noise and not n_distractors):
        raise ConfigError(
            f"compiled_induction(n_distractors={n_distractors}, noise={noise}): noise needs a "
            "distractor."
        )
    config = SmallTransformerConfig(
        d_vocab=N_TOKENS,
        n_ctx=N_POSITIONS,
        d_model=5 * 16,
        n_heads=1 + n_distractors,
        d_head=16,
        scale=1.0,
    )
    module = SmallTransformer(config).to(dtype)
    one = torch.eye(16, dtype=dtype)
    before = one.roll(1, dims=1)  # position t looks for t - 1, and position 0 for itself
    before[:, 0] = one[0]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        module.embed_tokens.weight[:, _room("token")] = one
        module.embed_positions.weight[:, _room("position")] = one
        module.unembed.weight[:, _room("output")] = 8 * one
        first, second = (block.get_submodule("self_attn") for block in module.blocks)
        _set(first, "q_proj", 0, "position", beta * before)
        _set(first, "k_proj", 0, "position", one)
        _set(first, "v_proj", 0, "token", one)
        _set(first, "o_proj", 0, "previous", one)
        _set(second, "q_proj", 0, "token", beta * one)
        _set(second, "k_proj", 0, "previous", one)
        _set(second, "v_proj", 0, "token", one)
        _set(second, "o_proj", 0, "output", one)
        generator = torch.Generator().manual_seed(seed)
        for layer, attention in enumerate((first, second)):
            for head in range(1, 1 + n_distractors):
                noisy = noise if head == n_distractors else 0.0
                _distract(attention, head, layer, noisy, generator)
    return load_model(module, name=f"compiled-induction-{beta:g}", device="cpu", bos_token_id=0)


def induction_pairs(
    n: int = 12,
    seed: int = 0,
    *,
    kinds: tuple[Literal["query", "key", "value"], ...] = ("query", "key", "value"),
    length: int = 12,
    d_vocab: int = N_TOKENS,
) -> Pairs:
    """Prompts "0 ... A B ... C D ... A" with the answer B, against prompts with the answer D.

        query   the last token is C
        key     A and C have changed places before B and D
        value   B and D have changed places

    Each kind shows other edges to matter; together they show all of `TRUE_EDGES`.

    Args:
        n: Pairs; kinds take turns.
        seed: Of the prompts.
        kinds: Which.
        length: Tokens, with the 0 at the start.
        d_vocab: Tokens are 1 to d_vocab - 1, and all but the last of a prompt are different.

    Raises:
        ConfigError: There is no room for two pairs of tokens, or not enough different tokens.
    """
    if not 7 <= length <= d_vocab or n < 1 or not kinds:
        raise ConfigError(
            f"induction_pairs(n={n}, length={length}, d_vocab={d_vocab}): length must be from 7 to "
            "d_vocab, and there must be a pair and a kind."
        )
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for at in range(n):
        order = (torch.randperm(d_vocab - 1, generator=generator) + 1)[: length - 2]
        clean = torch.cat([torch.zeros(1, dtype=torch.long), order])
        # Two places, at least two apart, in either order.
        low = int(torch.randint(1, length - 5, (1,), generator=generator))
        high = int(torch.randint(low + 2, length - 2, (1,), generator=generator))
        a, c = (low, high) if bool(torch.rand(1, generator=generator) < 0.5) else (high, low)
        patch, kind = clean.clone(), kinds[at % len(kinds)]
        shift = {"query": None, "key": 0, "value": 1}[kind]
        if shift is not None:
            patch[[a + shift, c + shift]] = clean[[c + shift, a + shift]]
        last = clean[a], clean[c] if kind == "query" else clean[a]
        ends = [torch.cat([x, end[None]]) for x, end in zip((clean, patch), last, strict=True)]
        rows.append((*ends, clean[a + 1], clean[c + 1]))
    clean, patch, answers, others = (torch.stack(part) for part in zip(*rows, strict=True))
    return Pairs(clean=clean, patch=patch, answers=answers, others=others)


def _room(name: str) -> slice:
    return slice(_ROOMS[name], _ROOMS[name] + 16)


def _set(
    attention: nn.Module, part: str, head: int, room: str, weight: Float[Tensor, "out into"]
) -> None:
    """What a head reads from a room, or writes into one."""
    matrix = attention.get_submodule(part).weight
    assert isinstance(matrix, Tensor), "projections are matrices"
    mine = slice(16 * head, 16 * head + 16)
    place = (_room(room), mine) if part == "o_proj" else (mine, _room(room))
    matrix[place] = weight.to(matrix)


def _distract(
    attention: nn.Module, head: int, layer: int, noise: float, generator: torch.Generator
) -> None:
    def random() -> Tensor:
        return torch.randn(16, 16, generator=generator, dtype=torch.float64) / 4

    for part in ("q_proj", "k_proj"):
        _set(attention, part, head, "token", random())
    _set(attention, "v_proj", head, "token" if layer == 0 or noise else "unread", random())
    _set(attention, "o_proj", head, "unread", random())
    if noise:
        _set(attention, "o_proj", head, "output", noise * random())
