"""What do SAELens's cfg.json files of every age say?

Version 6 nests where a dictionary came from under `metadata`; versions 3 to 5 kept it flat beside
the settings of the training run. Both become one `SAELensConfig`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from saelab.errors import FormatError
from saelab.formats.base import Asked, number, only_known

__all__ = ["SAELensConfig", "read_config"]

DTYPES = {
    prefix + name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16")
    for prefix in ("", "torch.")
}
_INFERENCE_KEYS = """
    d_in d_sae d_out dtype device apply_b_dec_to_input normalize_activations
    reshape_activations metadata architecture k rescale_acts_by_decoder_norm
"""
_TRAINING_KEYS = """
    decoder_init_norm l1_coefficient lp_norm l1_warm_up_steps use_sparse_activations
    aux_loss_coefficient jumprelu_init_threshold jumprelu_bandwidth l0_coefficient
    jumprelu_sparsity_loss_mode l0_warm_up_steps pre_act_loss_coefficient target_l0
    jumprelu_tanh_scale jumprelu_ste_to_input topk_threshold_lr matryoshka_widths
    use_matryoshka_aux_loss scaling_factor
"""
# The runner's settings that versions 3 to 5 wrote into the same file; none changes inference.
_FLAT_KEYS = """
    activation_fn activation_fn_str activation_fn_kwargs finetuning_scaling_factor hook_point
    hook_name hook_layer hook_point_layer hook_head_index hook_eval hook_point_head_index
    hook_point_eval hook_name_out hook_head_index_out hook_layer_out hf_hook_name
    hf_hook_name_out model_name model_class_name model_kwargs model_from_pretrained_kwargs
    prepend_bos context_size dataset_path dataset_trust_remote_code streaming
    is_dataset_tokenized seqpos_slice seed sae_lens_version sae_lens_training_version
    neuronpedia_id exclude_special_tokens use_cached_activations cached_activations_path
    expansion_factor b_dec_init_method normalize_sae_decoder noise_scale from_pretrained_path
    decoder_orthogonal_init decoder_heuristic_init init_encoder_as_decoder_transpose
    decoder_heuristic_init_norm n_batches_in_buffer training_tokens finetuning_tokens
    store_batch_size_prompts train_batch_size_tokens train_batch_size store_batch_size
    act_store_device autocast autocast_lm compile_llm llm_compilation_mode compile_sae lr
    sae_compilation_mode adam_beta1 adam_beta2 mse_loss_normalization lr_end
    scale_sparsity_penalty_by_decoder_norm lr_scheduler_name lr_warm_up_steps lr_decay_steps
    n_restart_cycles finetuning_method use_ghost_grads resume feature_sampling_window
    dead_feature_window dead_feature_threshold verbose n_eval_batches eval_batch_size_prompts
    n_eval_seqs log_to_wandb run_name log_activations_store_to_wandb
    log_optimizer_state_to_wandb wandb_project wandb_id wandb_entity wandb_log_frequency
    feature_sampling_method resample_batches eval_every_n_wandb_logs n_checkpoints
    checkpoint_path tokens_per_buffer
    total_training_steps total_training_tokens sparsity log_feature_sparsity_path
    initial_decoder_norm dead_feature_estimation_method feature_reinit_scale ghost_grads
"""
_FLAT_FAMILIES = {
    *("standard", "topk", "gated", "jumprelu", "transcoder", "skip_transcoder"),
    *("jumprelu_transcoder", "jumprelu_skip_transcoder"),
}
_NESTED = frozenset(f"{_INFERENCE_KEYS}{_TRAINING_KEYS}".split())
_FLAT = _NESTED | frozenset(_FLAT_KEYS.split())


@final
@dataclass(frozen=True, kw_only=True)
class SAELensConfig:
    """The settings that decide what a SAELens dictionary computes, and where it belongs."""

    architecture: str
    """SAELens's name for it."""
    dtype: torch.dtype
    """The type SAELens rounds every weight to when it loads them."""
    sizes: dict[str, int | None]
    """d_in, d_sae and d_out, where given."""
    pre_bias: bool
    """apply_b_dec_to_input."""
    normalize: str
    """normalize_activations."""
    k: int | None
    """Latents per token, in the families that fix it."""
    rescale: bool
    """Whether latents compete by z_i |W_dec[i]|."""
    finetuned: bool
    """Whether the file claims a scaling factor found after training."""
    head: int | None
    """The one attention head that was read."""
    hook: str | None
    """Hook point read."""
    hook_out: str | None
    """Hook point written, of a transcoder."""
    model: str | None
    """The model's name."""
    about: dict[str, Any]
    """Where it came from, as the file says."""


def read_config(config: Mapping[str, Any], origin: Path, asked: Asked) -> SAELensConfig:
    """Understand a cfg.json of SAELens 3 to 6.

    Raises:
        FormatError: A setting is missing, unknown, or contradicts another.
    """
    nested = isinstance(config.get("metadata"), dict)
    only_known(config, _NESTED if nested else _FLAT, asked, origin)
    about: dict[str, Any] = dict(config["metadata"]) if nested else dict(config)
    architecture = _text(config.get("architecture"), "architecture", origin)
    k = None if config.get("k") is None else _k_of(config["k"], architecture, origin)
    if nested:
        _require(config, origin, "architecture", "d_in", "d_sae", "dtype", "apply_b_dec_to_input")
        _require(config, origin, "normalize_activations")
    else:
        named = "standard" if architecture is None else architecture
        architecture, k = _flat_family(config, named, k, origin)
    if architecture in ("topk", "abstopk", "batchtopk", "matryoshka_batchtopk"):
        _require({"k": k}, origin, "k")
    elif k is not None:
        raise FormatError(f"{origin}: k={k} has no meaning for {architecture!r}.")
    if nested and str(architecture).endswith("topk"):
        _require(config, origin, "rescale_acts_by_decoder_norm")
    return SAELensConfig(
        architecture=architecture or "",
        dtype=_dtype(config.get("dtype", "float32"), origin),
        sizes={n: number(config, n, origin, required=False) for n in ("d_in", "d_sae", "d_out")},
        pre_bias=_flag(
            config, "apply_b_dec_to_input", "transcoder" not in str(architecture), origin
        ),
        normalize=_normalization(config.get("normalize_activations"), origin),
        k=k,
        rescale=_flag(config, "rescale_acts_by_decoder_norm", False, origin),
        finetuned=_flag(config, "finetuning_scaling_factor", False, origin),
        head=about.get("hook_head_index", about.get("hook_point_head_index")),
        hook=_place(about, "hook_name", "hook_point", origin),
        hook_out=_place(about, "hook_name_out", "hook_name_out", origin),
        model=_text(about.get("model_name"), "model_name", origin),
        about=about,
    )


def _flat_family(
    config: Mapping[str, Any], architecture: str, k: int | None, origin: Path
) -> tuple[str, int | None]:
    """Versions 3 to 5 named the activation function beside the architecture."""
    if architecture not in _FLAT_FAMILIES:
        return architecture, None
    given = [config.get(key) for key in ("activation_fn", "activation_fn_str")]
    function = next((value for value in given if value is not None), "relu")
    settings = config.get("activation_fn_kwargs") or {}
    if not isinstance(settings, dict) or not isinstance(function, str):
        raise FormatError(
            f"{origin}: activation_fn={function!r} with {settings!r} is not readable."
        )
    if function == "topk" and architecture in ("standard", "topk"):
        unknown = sorted(set(settings) - {"k", "use_sparse_activations"})
        if unknown or settings.get("k") is None:
            raise FormatError(
                f"{origin}: activation_fn=topk needs activation_fn_kwargs with k and nothing that "
                f"changes the rule; found {settings!r}."
            )
        if k is not None and k != settings["k"]:
            raise FormatError(f"{origin}: k={k} here and k={settings['k']} there contradict.")
        return "topk", _k_of(settings["k"], "topk", origin)
    if function != "relu" or (settings and architecture != "topk"):
        raise FormatError(
            f"{origin}: activation_fn={function!r} with {settings!r} is not what the architecture "
            f"{architecture!r} computes; saelab reads relu, and topk with its k."
        )
    return architecture, k


def _require(config: Mapping[str, Any], origin: Path, *keys: str) -> None:
    if missing := [key for key in keys if config.get(key) is None]:
        raise FormatError(
            f"{origin} lacks {', '.join(missing)}, which SAELens writes into every such file: it "
            "was damaged or edited. Export it again."
        )


def _k_of(value: Any, architecture: Any, origin: Path) -> int:
    """The number kept per token; a batch's may be fractional, and matters to training alone."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1 << 40
    if not good or not (float(value).is_integer() or "batch" in str(architecture)):
        raise FormatError(f"{origin}: k={value!r} should be a positive whole number.")
    return max(1, round(value))


def _flag(config: Mapping[str, Any], key: str, default: bool, origin: Path) -> bool:
    value = config.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise FormatError(f"{origin}: {key}={value!r} should be true or false.")
    return value


def _text(value: Any, key: str, origin: Path) -> str | None:
    if value is not None and not isinstance(value, str):
        raise FormatError(f"{origin}: {key}={value!r} should be text.")
    return value


def _place(about: Mapping[str, Any], key: str, old: str, origin: Path) -> str | None:
    name = _text(about.get(key, about.get(old)), key, origin)
    return None if name in (None, "", "unknown") else name


def _dtype(value: Any, origin: Path) -> torch.dtype:
    if not isinstance(value, str) or value not in DTYPES:
        raise FormatError(f"{origin}: dtype={value!r}; SAELens has {', '.join(sorted(DTYPES))}.")
    return DTYPES[value]


def _normalization(value: Any, origin: Path) -> str:
    if value is None or isinstance(value, bool):
        return "expected_average_only_in" if value else "none"
    return _text(value, "normalize_activations", origin) or ""
