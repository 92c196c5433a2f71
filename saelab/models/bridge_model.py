"""How is a TransformerLens bridge read and written? The only module that knows TransformerLens.

A bridge keeps its own hook modules (`bridge.hook_dict`); the hooks of saelab attach to those, so a
bridge answers to the same names and gives the same numbers as the transformers model inside. It
also has names of its own ("blocks.0.attn.hook_q"), which work wherever they hold one vector per
token. It runs attention in eager mode, 1.1 to 1.3 times slower than the plain model.
"""

import copy
from typing import Any, final

from jaxtyping import Float
from torch import Tensor, nn

from saelab.errors import ModelError
from saelab.hook_points import KINDS, HookPoint, HookTable, Place, widths_of
from saelab.models.hooked_model import HookedModel
from saelab.models.hooking import Place as ModulePlace
from saelab.models.identity import ModelIdentity, hash_of_tensors

__all__ = ["BridgeModel", "boot", "is_bridge"]


def is_bridge(module: object) -> bool:
    """Whether an object is a TransformerLens bridge; TransformerLens is not imported."""
    return any(kind.__name__ == "TransformerBridge" for kind in type(module).__mro__)


def boot(module: nn.Module, tokenizer: Any, name: str) -> Any:
    """A bridge around a transformers model.

    Args:
        module: The model; its submodules are replaced, so it is of no other use afterwards.
        tokenizer: Its tokenizer; the bridge gets a copy.
        name: What to call it.

    Raises:
        ModelError: TransformerLens is missing or does not know the architecture.
    """
    try:
        from transformer_lens import TransformerBridge
    except ImportError as error:
        raise ModelError(
            "backend='transformer_lens' needs the package transformer-lens 4.3 or newer: "
            "pip install 'transformer-lens>=4.3,<5'. The default backend works without it."
        ) from error
    if tokenizer is None:
        raise ModelError(
            f"TransformerLens cannot boot {name} without a tokenizer. Give load_model one, or "
            "use the default backend, which needs none."
        )
    own = copy.deepcopy(tokenizer)
    # saelab puts the BOS first itself; without this the bridge would fetch the tokenizer again.
    own.init_kwargs |= {"name_or_path": name, "add_bos_token": True}
    device = str(next(module.parameters()).device)
    try:
        bridge = TransformerBridge.boot_transformers(
            name,
            hf_model=module,
            tokenizer=own,
            device=device,
            dtype=next(module.parameters()).dtype,
        )
    except (ValueError, KeyError, AttributeError, NotImplementedError) as error:
        raise ModelError(
            f"TransformerLens cannot boot {name} ({type(module).__name__}): {error}. "
            "Use the default backend, which reads any transformers model."
        ) from error
    return bridge.eval()


@final
class BridgeModel(HookedModel):
    """A TransformerLens bridge, booted from transformers or native, raw or folded."""

    def __init__(
        self,
        bridge: Any,
        *,
        name: str | None = None,
        tokenizer: Any | None = None,
        bos_token_id: int | None = None,
        source: str = "bridge",
        weights: str | None = None,
    ) -> None:
        """Wrap a bridge.

        Args:
            bridge: A `TransformerBridge`.
            name: What the user calls it; the bridge's own name by default.
            tokenizer: A transformers tokenizer, or None.
            bos_token_id: The token that starts every row, if there is one.
            source: Where the model came from, for its identity.
            weights: "sha256:<hex>" of the weights, if known; None hashes the bridge's tensors.
        """
        cfg = bridge.cfg
        name = name or str(getattr(cfg, "model_name", None) or "bridge")
        self._hooks, paths = bridge.hook_dict, _component_paths(bridge)
        self._components = {paths[component]: component for component in paths}
        super().__init__(
            bridge,
            _table(bridge, name, paths),
            name=name,
            tokenizer=tokenizer,
            d_model=cfg.d_model,
            n_layers=cfg.n_layers,
            d_vocab=cfg.d_vocab,
            n_ctx=cfg.n_ctx,
            bos_token_id=bos_token_id,
            end_token_ids=frozenset(
                () if tokenizer is None or cfg.eos_token_id is None else {cfg.eos_token_id}
            ),
        )
        self._source, self._weights = source, weights

    def _forward(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        *,
        with_logits: bool,  # noqa: ARG002 - a bridge always runs to its logits unless stopped
        cache: Any = None,  # noqa: ARG002 - a bridge generates without one
        keep_cache: bool = False,  # noqa: ARG002
    ) -> Any:
        extra = {} if mask is None else {"attention_mask": mask.long()}
        return self.module(tokens, return_type="logits", prepend_bos=False, **extra)

    def _place(self, point: HookPoint) -> ModulePlace:
        if point.name in self._hooks:
            return self._hooks[point.name], "output"
        component = self._components[point.module]
        hook = "hook_in" if point.side == "input" else "hook_out"
        return self._hooks[f"{component}.{hook}"], "output"

    def _after_base(self, point: HookPoint) -> bool:  # noqa: ARG002 - it always runs to the logits
        return False

    def _unembedding(self) -> tuple[nn.Module, Float[Tensor, "d_model d_vocab"]]:
        norm = getattr(getattr(self.module, "ln_final", None), "_original_component", None)
        if not isinstance(norm, nn.Module):
            raise ModelError(
                f"logit_effects needs the final norm of {self.name}, and this bridge has none."
            )
        return norm, self.module.W_U  # pyright: ignore[reportReturnType]

    def _identify(self) -> ModelIdentity:
        folded = bool(getattr(self.module, "compatibility_mode", False))
        weights = self._weights
        if weights is None or folded:
            weights = hash_of_tensors(self.module.state_dict())
        return ModelIdentity(self.name, weights, "folded" if folded else "raw", self._source)


def _component_paths(bridge: nn.Module) -> dict[str, str]:
    """TransformerLens's path of each component -> its path in the model inside the bridge."""
    paths: dict[str, str] = {}

    def walk(module: nn.Module, prefix: str, outer: str) -> None:
        for child_name, child in module.named_children():
            if child_name in ("_original_component", "original_model"):
                continue
            own = getattr(child, "name", None)
            if isinstance(child, nn.ModuleList):
                walk(child, f"{prefix}{child_name}.", outer)
            elif isinstance(own, str) and hasattr(child, "hook_in"):
                path = f"{outer}.{own}" if outer else own
                paths[f"{prefix}{child_name}"] = path
                walk(child, f"{prefix}{child_name}.", path)

    walk(bridge, "", "")
    return paths


def _table(bridge: Any, name: str, paths: dict[str, str]) -> HookTable:
    cfg, hooks = bridge.cfg, bridge.hook_dict
    named = {"hook_embed": (None, "embed")} | {
        f"blocks.{layer}.{ending}": (layer, kind)
        for layer in range(cfg.n_layers)
        for ending, kind in KINDS.items()
    }
    points = [
        HookPoint(hook, *_place_of(hooks[hook], paths), layer, kind, _width(cfg, kind))
        for hook, (layer, kind) in named.items()
        if hook in hooks
    ]
    spare = {hook: _place_of(hooks[hook], paths) for hook in hooks if hook not in named}
    blocks = {paths[f"blocks.{layer}"].rpartition(".")[0] for layer in range(cfg.n_layers)}
    base = next(iter(blocks), "").rpartition(".")[0]
    widths = {path: widths_of(bridge.get_submodule(component)) for component, path in paths.items()}
    return HookTable(
        name,
        points,
        paths=widths,
        synonyms={hook: place for hook, place in spare.items() if place[0] in widths},
        base=base,
        n_layers=cfg.n_layers,
        parallel=bool(getattr(cfg, "parallel_attn_mlp", False)),
    )


def _place_of(hook: Any, paths: dict[str, str]) -> Place:
    """Module path and side of a bridge's hook module, from its own name."""
    own = str(hook.name)
    component, _, side = own.rpartition(".")
    path = paths.get(component, component)
    if side == "hook_in":
        return path, "input"
    if side == "hook_out":
        return path, "output"
    return own, "output"  # inside a component: a place with no module of its own


def _width(cfg: Any, kind: str) -> int | None:
    if kind == "attn_z":
        return cfg.n_heads * cfg.d_head
    return cfg.d_mlp if kind == "mlp_post" else cfg.d_model
