"""Open files of Gemma Scope and circuit-tracer with the loaders that SAELens has for them.

Called by make.py. The loaders ask a model hub for the files; here they are given local ones.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub.errors import EntryNotFoundError
from sae_lens.loading import pretrained_sae_loaders as loaders
from sae_lens.registry import get_sae_class
from safetensors import safe_open

FOLDER = Path(__file__).parent / "elsewhere"
SIZES = {"d_in": 6, "d_sae": 16}
LOADERS: dict[str, tuple[str, dict[str, int]]] = {
    "gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71": ("gemma_2", SIZES),
    "gemma-scope-2b-pt-res/embedding/width_4k/average_l0_44": ("gemma_2", SIZES),
    "gemma-scope-2b-pt-transcoders/layer_3/width_16k/average_l0_76": (
        "gemma_2_transcoder",
        {**SIZES, "d_out": 6},
    ),
    "gemma-scope-2-270m-pt/resid_post/layer_12_width_16k_l0_big": ("gemma_3", {}),
    "gemma-scope-2-270m-pt/transcoder/layer_15_width_16k_l0_big_affine": ("gemma_3", {}),
    "qwen3-0.6b-transcoders/layer_0.safetensors": ("mwhanna_transcoder", {}),
}


def local(repo_id: str, filename: str, subfolder: str = "", **_: Any) -> str:
    """What hf_hub_download returns, for a repository that lies in FOLDER."""
    path = FOLDER / repo_id.rpartition("/")[2] / subfolder / filename
    if not path.exists():
        raise EntryNotFoundError(str(path))
    return str(path)


def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
    with safe_open(local(repo_id, filename), framework="pt") as file:
        return {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def main(record: Callable[[Path, Any], None]) -> None:
    loaders.hf_hub_download = local
    loaders.get_safetensors_tensor_shapes = shapes
    for place, (name, overrides) in LOADERS.items():
        repo, _, folder = place.partition("/")
        load = loaders.NAMED_PRETRAINED_SAE_LOADERS[name]
        config, state, _ = load(
            repo_id=f"google/{repo}", folder_name=folder, device="cpu", cfg_overrides=overrides
        )
        config["normalize_activations"] = config.get("normalize_activations") or "none"
        kind, config_kind = get_sae_class(config["architecture"])
        sae = kind(config_kind.from_dict(config))
        sae.load_state_dict(state)
        path = FOLDER / place
        record(path if path.is_dir() else path.parent, sae)
