"""What do all our models share? Checked tokens, reading, editing, greedy text, logit effects."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saelab.errors import ConfigError, DataError, HookPointError, ModelError, ShapeError
from saelab.hook_points import HookPoint, HookTable
from saelab.models.hooking import Place, RowShape, edited, read, watched
from saelab.models.identity import ModelIdentity
from saelab.models.protocol import Edit, PositionEdit
from saelab.models.text import TextCodec, special_ids

__all__ = ["HookedModel"]


class HookedModel(ABC):
    """A torch module with a hook table and, perhaps, a tokenizer.

    Subclasses say how to run a pass, which torch module a hook point is, and where the final norm
    and the unembedding are.
    """

    def __init__(
        self,
        module: nn.Module,
        table: HookTable,
        *,
        name: str,
        tokenizer: Any | None,
        d_model: int,
        n_layers: int,
        d_vocab: int,
        n_ctx: int | None,
        bos_token_id: int | None,
        end_token_ids: frozenset[int] = frozenset(),
    ) -> None:
        """Put a module in eval mode and describe it.

        Args:
            module: The torch module.
            table: Its hook points.
            name: What the user calls it.
            tokenizer: A transformers tokenizer or None.
            d_model: Width of the residual stream.
            n_layers: Number of blocks.
            d_vocab: Number of token ids.
            n_ctx: The longest row, if there is a limit.
            bos_token_id: The token that starts every row, if there is one.
            end_token_ids: Tokens that end a generated text.
        """
        self.module = module.eval()
        self.table = table
        self.name = name
        self.tokenizer = tokenizer
        self.d_model, self.n_layers = d_model, n_layers
        self.d_vocab, self.n_ctx = d_vocab, n_ctx
        self.bos_token_id = bos_token_id
        self.special_token_ids = special_ids(tokenizer, bos_token_id)
        self._check_fit()
        first = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
        self.device, self.dtype = first.device, first.dtype
        self._end_token_ids = end_token_ids
        self._text = TextCodec(name, tokenizer)
        self._shape: RowShape = (0, 0)
        self._start = 0
        self._edits: list[Edit] = []
        self._identity: ModelIdentity | None = None

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.name!r}, n_layers={self.n_layers}, "
            f"d_model={self.d_model}, d_vocab={self.d_vocab}, {self.dtype}, {self.device})"
        )

    @property
    def identity(self) -> ModelIdentity:
        """Name, weights and conventions. Hashing the weights takes about a second, once."""
        if self._identity is None:
            self._identity = self._identify()
        return self._identity

    def hook_points(self) -> list[HookPoint]:
        """The places with names of their own, in the order the model runs them."""
        return list(self.table)

    def hook_point(self, name: str) -> HookPoint:
        """The place `name` means; HookPointError with near misses if there is none."""
        return self.table.find(name)

    @torch.no_grad()
    def activations(
        self,
        tokens: Int[Tensor, "row pos"],
        hooks: Sequence[str],
        mask: Bool[Tensor, "row pos"] | None = None,
    ) -> dict[str, Float[Tensor, "row pos _"]]:
        """Read activations, running no further than the last hook point; see `LanguageModel`."""
        if isinstance(hooks, str) or not hooks:
            raise ConfigError(
                f"activations() needs a list of hook points; found {hooks!r}. "
                "Write model.activations(tokens, ['blocks.0.hook_resid_post'])."
            )
        points = {name: self.hook_point(name) for name in hooks}
        places = {point.name: self._place(point) for point in points.values()}
        tokens, mask = self._checked(tokens, mask)
        with_logits = any(self._after_base(point) for point in points.values())
        found = read(
            places, self._shape, lambda: self._forward(tokens, mask, with_logits=with_logits)
        )
        for name, point in points.items():
            if point.name not in found:
                raise _never_run(self.name, point.module, name)
        return {name: found[point.name] for name, point in points.items()}

    @torch.no_grad()
    def logits(
        self, tokens: Int[Tensor, "row pos"], mask: Bool[Tensor, "row pos"] | None = None
    ) -> Float[Tensor, "row pos d_vocab"]:
        """Scores of the next token after every position, without gradients."""
        tokens, mask = self._checked(tokens, mask)
        return self._logits_of(self._forward(tokens, mask, with_logits=True))

    def whole_pass(
        self,
        tokens: Int[Tensor, "row pos"],
        hooks: Sequence[str] = (),
        mask: Bool[Tensor, "row pos"] | None = None,
    ) -> tuple[Float[Tensor, "row pos d_vocab"], dict[str, Float[Tensor, "row pos _"]]]:
        """Logits and activations of one pass, with gradients to what is edited in."""
        points = {name: self.hook_point(name) for name in hooks}
        places = {point.name: self._place(point) for point in points.values()}
        tokens, mask = self._checked(tokens, mask)
        with self._frozen(), watched(places, self._shape) as found:
            logits = self._logits_of(self._forward(tokens, mask, with_logits=True))
        for name, point in points.items():
            if point.name not in found:
                raise _never_run(self.name, point.module, name)
        return logits, {name: found[point.name] for name, point in points.items()}

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        """Within the block, no weight of the model asks for a gradient."""
        asking = [p for p in self.module.parameters() if p.requires_grad]
        for parameter in asking:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in asking:
                parameter.requires_grad_(True)

    @contextmanager
    def editing(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Within the block, put fn(activation) in place of each activation; always restored."""
        points = {name: self.hook_point(name) for name in edits}
        places = {n: (self._place(point), edits[n]) for n, point in points.items()}
        with edited(places, lambda: self._shape, lambda: self._start):
            self._edits += edits.values()
            try:
                yield
            finally:
                del self._edits[len(self._edits) - len(edits) :]

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, with no BOS or other special token added."""
        return self._text.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of some token ids."""
        return self._text.decode(ids)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The text of each token by itself."""
        return self._text.token_strings(ids)

    def chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's chat template."""
        return self._text.chat(messages)

    @torch.no_grad()
    def logit_effects(
        self, directions: Float[Tensor, "latent d_model"]
    ) -> Float[Tensor, "latent d_vocab"]:
        """What each direction of the last residual stream adds to the logits; `LanguageModel`."""
        if directions.dim() != 2 or directions.shape[1] != self.d_model:
            raise ShapeError(
                f"logit_effects needs directions [latent, {self.d_model}] in the residual stream "
                f"of {self.name}; found {list(directions.shape)}. A direction of another hook "
                "point has no direct effect on the logits."
            )
        norm, W_U = self._unembedding()
        gain, centering = _gain(norm, self.d_model, self.device, self.dtype)
        directions = directions.to(self.device, torch.float32)
        if centering:
            directions = directions - directions.mean(dim=1, keepdim=True)
        effects = (directions * gain) @ W_U.float()
        return effects - effects.mean(dim=1, keepdim=True)

    @torch.no_grad()
    def generate(
        self, tokens: Int[Tensor, "row pos"], max_new_tokens: int = 20
    ) -> Int[Tensor, "row longer"]:
        """Continue each row greedily until its end token.

        Keys and values of earlier positions are kept between steps where the model can do so.
        Inside `editing`, that takes edits that say how they treat each position (`PositionEdit`):
        what a step runs again starts where the longer row is edited differently. With any other
        edit every step runs the whole row, so that it always sees [row, pos, d] from position 0.
        """
        tokens, _ = self._checked(tokens, None)
        if self.n_ctx is not None and tokens.shape[1] + max_new_tokens > self.n_ctx:
            raise ConfigError(
                f"{tokens.shape[1]} tokens and {max_new_tokens} new ones exceed the "
                f"{self.n_ctx} tokens {self.name} can hold. Ask for fewer, or shorten the prompt."
            )
        cache = None
        ended = torch.zeros(len(tokens), dtype=torch.bool, device=self.device)
        ends = torch.tensor(sorted(self._end_token_ids), device=self.device, dtype=torch.long)
        try:
            for _ in range(max_new_tokens):
                logits, cache = self._step(tokens, cache)
                likeliest = logits[:, -1].argmax(dim=-1)
                if len(ends):
                    likeliest = torch.where(ended, ends[0], likeliest)
                    ended = ended | torch.isin(likeliest, ends)
                tokens = torch.cat([tokens, likeliest[:, None].to(tokens.dtype)], dim=1)
                if bool(ended.all()):
                    break
        finally:
            self._start = 0
        return tokens

    def _step(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Logits of rows one token longer than `cache`, and the cache that holds them all.

        Runs what the cache does not hold, and what the edits treat otherwise in the longer row.
        """
        length = tokens.shape[1]
        edits = [edit for edit in self._edits if isinstance(edit, PositionEdit)]
        keep = len(edits) == len(self._edits)
        held = min((edit.alike(length - 1, length) for edit in edits), default=length - 1)
        cache, self._start = _cropped(cache, length - 1, held) if cache is not None else (None, 0)
        step = tokens[:, self._start :]
        self._shape = (step.shape[0], step.shape[1])
        output = self._forward(step, None, with_logits=True, cache=cache, keep_cache=keep)
        return self._logits_of(output), getattr(output, "past_key_values", None) if keep else None

    def _checked(
        self, tokens: Tensor, mask: Tensor | None
    ) -> tuple[Int[Tensor, "row pos"], Tensor | None]:
        """Tokens as int64 on the model's device, once they are sure to suit the model."""
        if tokens.dim() != 2 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise ShapeError(
                f"Tokens must be token ids [row, pos]; found {tokens.dtype} of shape "
                f"{list(tokens.shape)}. For one row write tokens[None]."
            )
        if tokens.numel() == 0:
            raise DataError(f"No tokens: their shape is {list(tokens.shape)}.")
        if self.n_ctx is not None and tokens.shape[1] > self.n_ctx:
            raise ConfigError(
                f"Rows of {tokens.shape[1]} tokens exceed the {self.n_ctx} tokens {self.name} can "
                "hold. Use a shorter row length."
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.d_vocab:
            raise ConfigError(
                f"Token id {low if low < 0 else high} is outside the vocabulary of {self.name}: "
                f"d_vocab is {self.d_vocab}, so ids run from 0 to {self.d_vocab - 1}. "
                "Were the tokens made with another model's tokenizer?"
            )
        self._shape = (tokens.shape[0], tokens.shape[1])
        return tokens.to(self.device, torch.long), self._checked_mask(mask)

    def _checked_mask(self, mask: Tensor | None) -> Tensor | None:
        if mask is None:
            return None
        if tuple(mask.shape) != self._shape or mask.dtype != torch.bool:
            raise ShapeError(
                f"The mask must be bool {list(self._shape)} like the tokens; found {mask.dtype} "
                f"{list(mask.shape)}."
            )
        if bool((mask[:, 1:] & ~mask[:, :-1]).any()) or not bool(mask[:, 0].all()):
            raise ConfigError(
                "The mask must be True at the start of every row and False only at its end: saelab "
                "pads on the right. Move the padding, and drop empty rows."
            )
        return mask.to(self.device)

    def _check_fit(self) -> None:
        ids = [self.bos_token_id] if self.bos_token_id is not None else []
        if self.tokenizer is not None:
            # Special tokens may lie beyond the model: Gemma 3's image mark, in its text model.
            ids += [
                i for i in self.tokenizer.get_vocab().values() if i not in self.special_token_ids
            ]
        if ids and max(ids) >= self.d_vocab:
            raise ModelError(
                f"The tokenizer or BOS of {self.name} has token id {max(ids)}, but the model knows "
                f"ids 0 to {self.d_vocab - 1} only. Give load_model the tokenizer that belongs to "
                "this model."
            )

    def _logits_of(self, output: Any) -> Tensor:
        logits = getattr(output, "logits", output)
        logits = logits[0] if isinstance(logits, tuple) else logits
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            raise ModelError(
                f"{self.name} gives no logits [row, pos, d_vocab]: its forward pass returned "
                f"{type(output).__name__}. Activations can be read; logits, editing effects and "
                "text generation need a model with an unembedding."
            )
        return logits

    @abstractmethod
    def _forward(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        *,
        with_logits: bool,
        cache: Any = None,
        keep_cache: bool = False,
    ) -> Any:
        """Run one pass; without logits, only as much of the model as `hook_points` lie in."""

    @abstractmethod
    def _place(self, point: HookPoint) -> Place:
        """The torch module, and the side of it, that a hook point means."""

    @abstractmethod
    def _after_base(self, point: HookPoint) -> bool:
        """Whether a hook point lies beyond what a pass without logits runs."""

    @abstractmethod
    def _unembedding(self) -> tuple[nn.Module, Float[Tensor, "d_model d_vocab"]]:
        """The final norm and W_U; ModelError if they are not known."""

    @abstractmethod
    def _identify(self) -> ModelIdentity:
        """Name and hash the model."""


def _cropped(cache: Any, length: int, held: int) -> tuple[Any, int]:
    """A cache of `length` positions cut to its first `held`, and that number; none if it cannot."""
    if held < length:
        try:
            cache.crop(held - length)
        except (AttributeError, NotImplementedError, RuntimeError, ValueError):
            return None, 0  # such as a sliding window that has moved on: run the row again
    return (cache, held) if held else (None, 0)


def _never_run(model: str, module: str, hook: str) -> HookPointError:
    return HookPointError(
        f"{model} has the module {module!r} of hook point {hook!r}, but a forward pass never runs "
        "it. Choose another hook point."
    )


def _gain(
    norm: nn.Module, d_model: int, device: torch.device, dtype: torch.dtype
) -> tuple[Float[Tensor, " d_model"], bool]:
    """A norm's gain per dimension, and whether it removes the mean, as its own output shows them.

    Libraries store gains differently (Gemma adds 1), so ask the norm: on a vector of +1 and -1 in
    turn, whose mean is 0 and size 1, it returns gain * vector + bias; on all ones it returns the
    bias alone if and only if it removes the mean.
    """
    if d_model % 2:
        raise ModelError(f"logit_effects needs an even d_model; this model has {d_model}.")
    ones = torch.ones(1, 1, d_model, device=device, dtype=dtype)
    signs = ones.clone()
    signs[..., 1::2] = -1
    bias = norm.forward(torch.zeros_like(ones)).float()
    gain = (norm.forward(signs).float() - bias) * signs.float()
    level = (norm.forward(ones).float() - bias).abs().max()
    return gain[0, 0], bool(level < 1e-2 * gain.abs().max())
