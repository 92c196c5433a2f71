"""A transformer small enough that its weights can be set by hand, or trained in a minute.

Laid out as Llama's blocks are, so that everything that takes models apart works on it; learned
positions in place of rotary ones; norms and MLPs only where asked for.
"""

import math
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from saelab.errors import ConfigError

__all__ = ["SmallTransformer", "SmallTransformerConfig"]


@final
@dataclass(frozen=True, kw_only=True)
class SmallTransformerConfig:
    """Sizes of a `SmallTransformer`."""

    d_vocab: int
    """Token ids."""
    n_ctx: int
    """The longest row."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int = 2
    """Blocks."""
    n_heads: int = 4
    """Heads in a block."""
    d_head: int = 16
    """Width of a head."""
    d_mlp: int = 0
    """Neurons of an MLP; 0 for attention alone."""
    norm: bool = False
    """Whether heads, MLPs and the unembedding read through an RMSNorm."""
    scale: float | None = None
    """What scores are multiplied by; 1 / sqrt(d_head) if None."""

    def __post_init__(self) -> None:
        sizes = (self.d_vocab, self.n_ctx, self.d_model, self.n_layers, self.n_heads, self.d_head)
        if min(sizes) < 1 or self.d_mlp < 0:
            raise ConfigError(f"{self}: every size must be at least 1, and d_mlp at least 0.")


class _NoMLP(nn.Module):
    """Adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros."""
        return torch.zeros_like(x)


class _Attention(nn.Module):
    def __init__(self, config: SmallTransformerConfig) -> None:
        super().__init__()
        width = config.n_heads * config.d_head
        self.head_dim = config.d_head
        self.scale = 1 / math.sqrt(config.d_head) if config.scale is None else config.scale
        self.q_proj = nn.Linear(config.d_model, width, bias=False)
        self.k_proj = nn.Linear(config.d_model, width, bias=False)
        self.v_proj = nn.Linear(config.d_model, width, bias=False)
        self.o_proj = nn.Linear(width, config.d_model, bias=False)

    def heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def pattern(self, x: Tensor) -> Tensor:
        scores = self.heads(self.q_proj(x)) @ self.heads(self.k_proj(x)).mT * self.scale
        n = x.shape[1]
        future = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.pattern(x) @ self.heads(self.v_proj(x))
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, config: SmallTransformerConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.d_model, config.d_mlp)
        self.down_proj = nn.Linear(config.d_mlp, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(torch.relu(self.up_proj(x)))


class _Block(nn.Module):
    def __init__(self, config: SmallTransformerConfig) -> None:
        super().__init__()
        self.input_layernorm = _norm(config)
        self.self_attn = _Attention(config)
        self.post_attention_layernorm = _norm(config)
        self.mlp = _MLP(config) if config.d_mlp else _NoMLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


def _norm(config: SmallTransformerConfig) -> nn.Module:
    return nn.RMSNorm(config.d_model, eps=1e-6) if config.norm else nn.Identity()


@final
class SmallTransformer(nn.Module):
    """Token ids [row, pos] in, logits [row, pos, d_vocab] out; load it with `load_model`.

    >>> config = SmallTransformerConfig(d_vocab=5, n_ctx=4, d_model=8)
    >>> SmallTransformer(config)(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 5])
    """

    def __init__(self, config: SmallTransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.d_vocab, config.d_model)
        self.embed_positions = nn.Embedding(config.n_ctx, config.d_model)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.n_layers))
        self.norm = _norm(config)
        self.unembed = nn.Linear(config.d_model, config.d_vocab, bias=False)

    def forward(self, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_vocab"]:
        """Logits."""
        x = self._embedded(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.norm(x))

    @torch.no_grad()
    def patterns(self, tokens: Int[Tensor, "row pos"]) -> list[Float[Tensor, "row head query key"]]:
        """By layer, how much each position attends to each."""
        found, x = [], self._embedded(tokens)
        for block in self.blocks:
            assert isinstance(block, _Block), "blocks are blocks"
            found.append(block.self_attn.pattern(block.input_layernorm(x)))
            x = block(x)
        return found

    def _embedded(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        return self.embed_tokens(tokens) + self.embed_positions(positions)
