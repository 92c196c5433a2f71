"""How does SAEBench see a dictionary? As an object with certain attributes; this one has them.

    adapter = SAEBenchAdapter(sae, model_name="gemma-2-2b", dtype=torch.float32)
    selected_saes = [("my_topk", adapter)]          # what its evaluations take

SAEBench asks for decoder rows of length one, so latents are given in units of what they add to the
reconstruction: f_i |W_dec[i]|. Which latents are active does not change, nor the reconstruction.

Source of the interface: SAEBench's custom_saes/base_sae.py and custom_sae_config.py. SAEBench is
not installed where this is tested; the tests hold shapes, names and values to that source.
"""

from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from saelab.errors import ConfigError
from saelab.formats.parts import parts_of
from saelab.formats.places import layer_of
from saelab.sae import SAE

__all__ = ["SAEBenchAdapter", "SAEBenchConfig", "SAEBenchMetadata"]


@final
@dataclass(frozen=True, kw_only=True)
class SAEBenchMetadata:
    """The part of the configuration that SAEBench keeps apart."""

    context_size: int
    """Tokens in a row."""
    hook_name: str
    """Hook point."""
    hook_head_index: int | None = None
    """One attention head; always all of them here."""
    seqpos_slice: tuple[int | None, ...] = (None,)
    """Positions that count; all."""
    prepend_bos: bool = True
    """Whether rows begin with BOS."""


@final
@dataclass(kw_only=True)
class SAEBenchConfig:
    """What SAEBench reads of a dictionary's configuration, under its names."""

    model_name: str
    """The model, as TransformerLens names it."""
    d_in: int
    """Width of the activations."""
    d_sae: int
    """Latents."""
    hook_layer: int
    """The block the hook point is in."""
    hook_name: str
    """Hook point."""
    context_size: int
    """Tokens in a row, for automatic interpretation."""
    architecture: str
    """The family, for tables."""
    dtype: str
    """Such as "float32"."""
    device: str
    """Such as "cpu"."""
    apply_b_dec_to_input: bool
    """Whether b_dec is subtracted from the input."""
    metadata: SAEBenchMetadata
    """The same facts again."""
    hook_head_index: int | None = None
    """Always all heads here."""
    prepend_bos: bool = True
    """Whether rows begin with BOS."""
    normalize_activations: str = "none"
    """Scales are folded into the weights."""
    activation_fn_str: str = ""
    """Not used by SAEBench's own dictionaries either."""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict)
    """As above."""
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict)
    """How the model is loaded."""
    finetuning_scaling_factor: bool = False
    """There is none."""
    dataset_path: str = ""
    """What it was trained on, for tables."""
    dataset_trust_remote_code: bool = False
    """No data set's own code is run."""
    seqpos_slice: tuple[int | None, ...] = (None,)
    """Positions that count; all."""
    training_tokens: int = -100_000
    """SAEBench's way to say unknown."""
    sae_lens_training_version: str | None = None
    """It was not trained with SAELens."""
    neuronpedia_id: str | None = None
    """It is not on Neuronpedia."""


@final
class SAEBenchAdapter(nn.Module):
    """An autoencoder, with the attributes and methods SAEBench's evaluations use.

    Args:
        sae: The dictionary; it is copied.
        model_name: The model, as TransformerLens names it; the recorded one if not given.
        context_size: Tokens in a row.
        dtype: Type of the weights and of what is returned; the dictionary's if not given.

    Raises:
        ConfigError: It is a transcoder, has a skip connection, or names no hook point in a block.
    """

    norms: Tensor

    def __init__(
        self,
        sae: SAE,
        model_name: str | None = None,
        *,
        context_size: int = 128,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        layer, model = layer_of(sae.hook), (sae.metadata.get("model") or {}).get("name")
        if sae.is_transcoder or sae.W_skip is not None:
            raise ConfigError(
                "SAEBench splices a reconstruction in where the activations were read; a "
                "transcoder or a skip connection does not fit there."
            )
        if sae.hook is None or layer is None or (model_name or model) is None:
            raise ConfigError(
                f"SAEBench needs a hook point in a block and a model's name; this dictionary has "
                f"{sae.hook!r} and {model!r}. Give model_name, and sae.hook."
            )
        self.inner = sae.folded()
        parts = parts_of(sae)
        norms = parts.W_dec.norm(dim=1)
        # A zero row adds nothing, whatever direction it is given and whatever its latent is.
        rows = torch.where(norms[:, None] > 0, parts.W_dec / norms.clamp(min=1e-30)[:, None], 0)
        rows[norms == 0, 0] = 1
        self.register_buffer("norms", norms)
        self.W_enc = nn.Parameter(parts.W_enc * norms)
        self.b_enc = nn.Parameter(parts.b_enc * norms)
        self.W_dec = nn.Parameter(rows)
        self.b_dec = nn.Parameter(parts.b_dec)
        self.cfg = self._config(sae, str(model_name or model), layer, context_size)
        self.device, self.dtype = sae.device, dtype or sae.dtype
        self.to(device=self.device, dtype=self.dtype)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents, densely, in units of their decoder rows."""
        codes = self.inner.encode(x.to(self.inner.dtype)).dense() * self.norms
        return codes.reshape(*x.shape[:-1], self.cfg.d_sae).to(self.dtype)

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction of latents."""
        return feature_acts.to(self.dtype) @ self.W_dec + self.b_dec

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """decode(encode(x))."""
        return self.decode(self.encode(x))

    def to(self, *args: Any, **kwargs: Any) -> "SAEBenchAdapter":
        """Move it, and keep what `device`, `dtype` and `cfg` say in step."""
        super().to(*args, **kwargs)
        self.device, self.dtype = self.W_dec.device, self.W_dec.dtype
        self.cfg.device = str(self.device)
        self.cfg.dtype = str(self.dtype).removeprefix("torch.")
        return self

    @torch.no_grad()
    def check_decoder_norms(self) -> bool:
        """Whether every decoder row has length one, as closely as the weights' type allows."""
        norms = self.W_dec.float().norm(dim=1)
        tolerance = 1e-5 if self.W_dec.dtype in (torch.float32, torch.float64) else 1e-2
        return bool((norms - 1).abs().max() <= tolerance)

    def _config(self, sae: SAE, model: str, layer: int, context_size: int) -> SAEBenchConfig:
        hook = str(sae.hook)
        return SAEBenchConfig(
            model_name=model,
            d_in=sae.d_in,
            d_sae=sae.d_sae,
            hook_layer=layer,
            hook_name=hook,
            context_size=context_size,
            architecture=sae.activation.name,
            dtype=str(sae.dtype).removeprefix("torch."),
            device=str(sae.device),
            apply_b_dec_to_input=sae.pre_bias,
            metadata=SAEBenchMetadata(context_size=context_size, hook_name=hook),
        )
