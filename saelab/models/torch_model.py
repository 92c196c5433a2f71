"""How is a plain torch module, from transformers or not, read and written at full speed?"""

from pathlib import Path
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.errors import ModelError
from saelab.hook_points import HookPoint, HookTable, hook_table
from saelab.models.hooked_model import HookedModel
from saelab.models.hooking import Place
from saelab.models.identity import ModelIdentity, hash_of_files, hash_of_tensors

__all__ = ["TorchModel"]

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")


@final
class TorchModel(HookedModel):
    """A torch module hooked directly: nothing is wrapped, and a pass stops when it has been read.

    A transformers model is asked for logits only when they are wanted: reading runs its base
    model, without the unembedding. Any other module is called as `module(tokens)` and gives
    logits, an object with `.logits`, or a tuple that starts with them; it gets no mask, which
    changes nothing for a causal model padded on the right.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        tokenizer: Any | None = None,
        bos_token_id: int | None = None,
        source: str = "module",
        weights: str | Path | None = None,
    ) -> None:
        """Wrap a module.

        Args:
            module: A transformers model or any module that takes token ids [row, pos].
            name: What the user calls it.
            tokenizer: A transformers tokenizer, or None.
            bos_token_id: The token that starts every row, if there is one.
            source: Where the model came from, for its identity.
            weights: The folder of its weight files, or "sha256:<hex>" if known; None hashes the
                module's tensors.
        """
        config = getattr(module, "config", None)
        self._transformers = config is not None and hasattr(module, "get_input_embeddings")
        sizes = _sizes(module, config) if self._transformers else _measured(module.eval(), name)
        table = hook_table(module, name, sizes["d_model"])
        if not self._transformers:
            table = _with_measured(table, sizes.pop("widths"), name)
        layers = {point.layer for point in table if point.layer is not None}
        ends = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
        super().__init__(
            module,
            table,
            name=name,
            tokenizer=tokenizer,
            bos_token_id=bos_token_id,
            n_layers=len(layers),
            end_token_ids=frozenset([ends] if isinstance(ends, int) else ends or []),
            **sizes,
        )
        self._base = cast(nn.Module, getattr(module, "base_model", module))
        self._base_path = next((p for p, m in module.named_modules() if m is self._base), "")
        self._source, self._weights = source, weights

    def _forward(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        *,
        with_logits: bool,
        cache: Any = None,
        keep_cache: bool = False,
    ) -> Any:
        if not self._transformers:
            return self.module(tokens)
        runner = self.module if with_logits else self._base
        extra = {} if cache is None else {"past_key_values": cache}
        if mask is not None:
            extra["attention_mask"] = mask.long()
        return runner(input_ids=tokens, use_cache=keep_cache, **extra)

    def _place(self, point: HookPoint) -> Place:
        return self.module.get_submodule(point.module), point.side

    def _after_base(self, point: HookPoint) -> bool:
        return bool(self._base_path) and not f"{point.module}.".startswith(f"{self._base_path}.")

    def _unembedding(self) -> tuple[nn.Module, Float[Tensor, "d_model d_vocab"]]:
        head = cast(Any, self.module).get_output_embeddings() if self._transformers else None
        inner = getattr(self._base, "decoder", None)
        norms = [getattr(part, n, None) for part in (self._base, inner) for n in _FINAL_NORMS]
        norm = next((norm for norm in norms if isinstance(norm, nn.Module)), None)
        if head is None or norm is None:
            raise ModelError(
                f"logit_effects needs the {'final norm' if head is not None else 'unembedding'} of "
                f"{self.name}, and saelab does not know where this {type(self.module).__name__} "
                "keeps it. Show the strongest contexts only, or use a transformers model."
            )
        return norm, head.weight.T

    def _identify(self) -> ModelIdentity:
        if isinstance(self._weights, str):
            weights = self._weights
        elif self._weights is not None:
            weights = hash_of_files(self._weights)
        else:
            weights = hash_of_tensors(self.module.state_dict())
        return ModelIdentity(self.name, weights, "raw", self._source)


def _sizes(module: Any, config: Any) -> dict[str, Any]:
    """Widths of a transformers model; of its text part, if it has several."""
    text = config.get_text_config()
    embedding = module.get_input_embeddings()
    return {
        "d_model": text.hidden_size,
        "d_vocab": getattr(embedding, "num_embeddings", text.vocab_size),
        "n_ctx": getattr(text, "max_position_embeddings", None),
    }


@torch.no_grad()
def _measured(module: nn.Module, name: str) -> dict[str, Any]:
    """Widths of any other module, seen in one pass over the two tokens 0, 0."""
    widths: dict[str, tuple[int | None, int | None]] = {}

    def watch(path: str) -> Any:
        def note(_module: nn.Module, args: tuple, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            widths[path] = (_width(args[0] if args else None), _width(first))

        return note

    first = next(module.parameters(), torch.zeros(()))
    tokens = torch.zeros(1, 2, dtype=torch.long, device=first.device)
    hooks = [m.register_forward_hook(watch(p)) for p, m in module.named_modules() if p]
    try:
        output = module(tokens)
    except Exception as error:
        raise ModelError(
            f"{name} cannot be called as module(tokens) with token ids of shape [1, 2]: "
            f"{type(error).__name__}: {error}. Wrap it in a module whose forward takes token ids "
            "[row, pos] and returns logits [row, pos, d_vocab]."
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    logits = getattr(output, "logits", output)
    logits = logits[0] if isinstance(logits, tuple) else logits
    embedding = next((m for m in module.modules() if isinstance(m, nn.Embedding)), None)
    d_vocab = logits.shape[-1] if isinstance(logits, Tensor) else 0
    first_width = next((width for _, width in widths.values() if width), d_vocab)
    return {
        "d_model": embedding.embedding_dim if embedding else first_width,
        "d_vocab": embedding.num_embeddings if embedding else d_vocab,
        "n_ctx": None,
        "widths": widths,
    }


def _width(value: Any) -> int | None:
    """The vector length of an activation of one row of two tokens; None if it is none."""
    vectors = isinstance(value, Tensor) and value.dim() >= 3 and value.shape[:2] == (1, 2)
    return value[0, 0].numel() if vectors and value.is_floating_point() else None


def _with_measured(
    table: HookTable, widths: dict[str, tuple[int | None, int | None]], name: str
) -> HookTable:
    """The table of a module that is no transformers model: every module the pass went through."""
    paths = table.paths | widths
    points = [
        HookPoint(f"{path}.output", path, "output", None, "module", width)
        for path, (_, width) in widths.items()
        if width is not None
    ]
    return HookTable(name, points, paths=paths)
