"""How does a name, a folder, a file or a module become a model saelab can use?"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from saelab.errors import ConfigError, ModelError
from saelab.hook_points import near_misses
from saelab.models.bridge_model import BridgeModel, boot, is_bridge
from saelab.models.default_model import (
    ALIASES,
    SMOLLM2_BOS,
    SMOLLM2_SHA256,
    converted_gguf,
)
from saelab.models.protocol import LanguageModel
from saelab.models.torch_model import TorchModel

__all__ = ["load_model", "sensible_device", "sensible_dtype"]

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


def load_model(
    source: str | os.PathLike[str] | nn.Module | Any = "smollm2",
    *,
    tokenizer: Any | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    name: str | None = None,
    bos_token_id: int | Literal["auto"] | None = "auto",
    backend: str = "transformers",
) -> LanguageModel:
    """Load a language model.

    Args:
        source: What to load:
            "smollm2", the default model (SmolLM2-135M-Instruct, Apache-2.0, offline);
            a transformers folder; a .gguf file; a hub name such as "openai-community/gpt2";
            a transformers model or any torch module that maps token ids [row, pos] to logits;
            a TransformerLens bridge. A module is put in eval mode, and moved or cast only if
            `device` or `dtype` is given.
        tokenizer: A transformers tokenizer or a folder of one; None takes the source's own. A
            module or a folder without one leaves token ids to stand for text.
        device: "cuda", "mps", "cpu" or a torch device; None takes the best there is.
        dtype: "float32", "bfloat16", "float16" or a torch dtype; None is `sensible_dtype(device)`.
        name: What to call the model; None takes the source's name.
        bos_token_id: The token put first in every row. "auto" is the tokenizer's (the
            configuration's, where there is no tokenizer); None puts none.
        backend: "transformers" hooks the model directly; "transformer_lens" boots a bridge.

    Returns:
        A `LanguageModel`.

    Raises:
        ModelError: The source cannot be loaded; the message says what would work.
        ConfigError: A device or dtype that does not exist here.
    """
    if backend not in ("transformers", "transformer_lens"):
        raise ConfigError(
            f"backend must be 'transformers' or 'transformer_lens'; found {backend!r}."
        )
    tokenizer = _tokenizer_from(tokenizer)
    chosen = {"tokenizer": tokenizer, "name": name, "bos_token_id": bos_token_id}
    if isinstance(source, nn.Module):
        return _from_module(source, device, dtype, backend=backend, **chosen)
    if not isinstance(source, str | os.PathLike):
        raise ModelError(
            "load_model needs an alias, a path, a hub name or a torch module; found "
            f"{type(source).__name__}."
        )
    place = sensible_device(device)
    kind = _dtype(dtype) or sensible_dtype(place)
    origin, path, weights, own_bos = _locate(os.fspath(source))
    module = _pretrained(path, kind, local=origin != "hub").to(place)
    if tokenizer is None:
        tokenizer = _tokenizer_beside(path, local=origin != "hub")
    if origin == "hub":
        weights = _snapshot(path)
    if bos_token_id == "auto":
        bos_token_id = own_bos if own_bos is not None else _bos(tokenizer, module)
    name = name or (Path(source).name if origin in ("folder", "gguf") else os.fspath(source))
    known = {"tokenizer": tokenizer, "bos_token_id": bos_token_id, "source": origin}
    if backend == "transformer_lens":
        return _booted(module, name, weights=weights, **known)
    return TorchModel(module, name=name, weights=weights, **known)


def sensible_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, or the best there is: cuda, then mps, then cpu.

    Raises:
        ConfigError: The device asked for is unknown or absent.
    """
    present = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device is None or device == "auto":
        return torch.device(next(kind for kind, here in present.items() if here))
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"Unknown device {device!r}. Use 'cuda', 'mps' or 'cpu'.") from None
    if not present.get(wanted.type, True):
        here = ", ".join(kind for kind, is_here in present.items() if is_here)
        raise ConfigError(f"The device {str(device)!r} is not available here; found: {here}.")
    return wanted


def sensible_dtype(device: str | torch.device) -> torch.dtype:
    """bfloat16 on a CUDA device that computes in it, float32 anywhere else.

    A CPU without matrix instructions for bfloat16 runs it many times slower than float32, so on a
    CPU it is never chosen unasked.

    >>> sensible_dtype("cpu")
    torch.float32
    """
    kind = torch.device(device).type
    native = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float32


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto" or isinstance(dtype, torch.dtype):
        return None if dtype == "auto" else dtype  # pyright: ignore[reportReturnType]
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype not in known:
        raise ConfigError(f"Unknown dtype {dtype!r}. Use {', '.join(known)} or a torch dtype.")
    return known[dtype]


def _locate(source: str) -> tuple[str, str, str | Path | None, int | None]:
    """Kind of source, folder or hub name, identity of the weights if known, and its BOS."""
    path = Path(source).expanduser()
    if source == "smollm2":
        folder, sha256 = converted_gguf(None, SMOLLM2_SHA256)
        return "alias", str(folder), f"sha256:{sha256}", SMOLLM2_BOS
    if path.suffix == ".gguf" and path.is_file():
        folder, sha256 = converted_gguf(path)
        return (
            "gguf",
            str(folder),
            f"sha256:{sha256}",
            SMOLLM2_BOS if sha256 == SMOLLM2_SHA256 else None,
        )
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(
                f"{path} is no transformers folder: config.json is missing. Such a folder holds "
                "config.json, the weights (*.safetensors) and a tokenizer; save_pretrained "
                "makes one."
            )
        return "folder", str(path), path, None
    is_path = source.startswith((os.sep, "~", ".")) or path.suffix == ".gguf" or path.exists()
    if is_path or source.count("/") > 1:
        raise ModelError(
            f"No model at {source}: there is no such folder or .gguf file. "
            "Check the path; the alias 'smollm2' works offline."
        )
    if "/" not in source and (near := near_misses(source, ALIASES)):
        raise ModelError(f"There is no model {source!r}. Did you mean {near}?")
    return "hub", source, None, None


def _pretrained(source: str, dtype: torch.dtype, *, local: bool) -> Any:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    with _quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(source, local_files_only=local)
            names = " ".join(config.architectures or ["ForCausalLM"])
            speaks = any(end in names for end in ("CausalLM", "LMHead", "ConditionalGeneration"))
            auto = AutoModelForCausalLM if speaks else AutoModel
            return auto.from_pretrained(source, dtype=dtype, local_files_only=local)
        except Exception as error:  # transformers raises many kinds; the user needs one message
            if local:
                raise ModelError(
                    f"{source} could not be loaded: {type(error).__name__}: {error}. Is every file "
                    "of the model complete? Save it again with save_pretrained."
                ) from error
            raise ModelError(
                f"The hub model {source!r} could not be fetched: {_first_line(error)} Without a "
                "network, use the alias 'smollm2' (its weights are a package), a local "
                "transformers folder, or a .gguf file."
            ) from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0].strip()
    return line if line.endswith(".") else f"{line}."


def _snapshot(hub_name: str) -> Path | None:
    """The local folder of a fetched hub model; None leaves the hash to the tensors."""
    from transformers.utils.hub import cached_file

    with contextlib.suppress(OSError):
        config = cached_file(hub_name, "config.json", local_files_only=True)
        if config is not None:
            folder = Path(config).parent
            if any(folder.glob("*.safetensors")) or any(folder.glob("*.bin")):
                return folder
    return None


def _tokenizer_from(tokenizer: Any) -> Any:
    if not isinstance(tokenizer, str | os.PathLike):
        return tokenizer
    folder = Path(tokenizer).expanduser()
    found = _tokenizer_beside(str(folder), local=True) if folder.is_dir() else None
    if found is None:
        raise ModelError(
            f"No tokenizer at {tokenizer}: it must be a folder with tokenizer.json, or a "
            "transformers tokenizer."
        )
    return found


def _tokenizer_beside(source: str, *, local: bool) -> Any | None:
    from transformers import AutoTokenizer

    if local and not any((Path(source) / file).is_file() for file in _TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source, local_files_only=local)
    except Exception as error:
        raise ModelError(
            f"The tokenizer of {source} could not be loaded: {type(error).__name__}: {error}. "
            "Give load_model a tokenizer."
        ) from error


def _from_module(
    module: nn.Module,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    *,
    tokenizer: Any | None,
    name: str | None,
    bos_token_id: int | str | None,
    backend: str,
) -> LanguageModel:
    if device is not None:
        module = module.to(sensible_device(device))
    if dtype is not None and (wanted := _dtype(dtype)):
        module = module.to(wanted)
    bridge = is_bridge(module)
    if bridge and tokenizer is None:
        tokenizer = getattr(module, "tokenizer", None)
    bos = _bos(tokenizer, module) if bos_token_id == "auto" else bos_token_id
    known: dict[str, Any] = {"tokenizer": tokenizer, "bos_token_id": bos}
    if bridge:
        return BridgeModel(module, name=name, **known)
    name = name or type(module).__name__
    if backend == "transformer_lens":
        return _booted(module, name, source="module", weights=None, **known)
    return TorchModel(module, name=name, **known)


def _booted(
    module: nn.Module, name: str, *, weights: str | Path | None, **known: Any
) -> BridgeModel:
    if not isinstance(weights, str):
        weights = TorchModel(module, name=name, weights=weights).identity.weights
    bridge = boot(module, known["tokenizer"], name)
    return BridgeModel(bridge, name=name, weights=weights, **known)


def _bos(tokenizer: Any | None, module: Any) -> int | None:
    if tokenizer is not None:
        return tokenizer.bos_token_id
    bos = getattr(getattr(module, "config", None), "bos_token_id", None)
    return bos if isinstance(bos, int) else None


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar of its own: a library does not write to the terminal."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
