"""What the tests of the atlas share: a tiny model, dictionaries, text, and a dense reference."""

import atexit
import shutil
import tempfile
from pathlib import Path

import torch

from saelab.activation_functions import AbsTopK, ActivationFunction, TopK
from saelab.atlas import Atlas, AtlasConfig, build_atlas
from saelab.models import LanguageModel
from saelab.models.identity import hash_of_tensors
from saelab.sae import SAE
from saelab.tokens import Tokens
from tests.tiny_models import tiny_language_model

HOOK = "blocks.1.hook_resid_post"
D = 32
CONFIG = AtlasConfig(
    outlier_factor=None,
    tokens_per_shard=200,
    rows_per_batch=4,
    band_pairs=900,
    before=4,
    after=3,
    top=4,
    per_interval=2,
    per_quantile=2,
    bins=10,
    cooccurring=6,
    neighbors=4,
    profile=5,
)

_MODELS: dict[int, LanguageModel] = {}


def model() -> LanguageModel:
    """The tiny Llama, loaded once."""
    if not _MODELS:
        _MODELS[0] = tiny_language_model()
    return _MODELS[0]


def dictionary(
    activation: ActivationFunction | None = None, d_sae: int = 40, seed: int = 0, hook: str = HOOK
) -> SAE:
    """Random directions of different lengths, a bias, encoder and decoder not parallel."""
    generator = torch.Generator().manual_seed(seed)
    sae = SAE(D, d_sae, activation or TopK(4), hook=hook)
    with torch.no_grad():
        sae.W_dec.copy_(torch.randn(d_sae, D, generator=generator))
        sae.W_enc.copy_(sae.W_dec.T + 0.2 * torch.randn(D, d_sae, generator=generator))
        sae.b_enc.copy_(torch.randn(d_sae, generator=generator))
    return sae


def signed(d_sae: int = 40, seed: int = 0) -> SAE:
    """An AbsTopK dictionary."""
    return dictionary(AbsTopK(5), d_sae, seed)


def text(rows: int = 40, length: int = 18, seed: int = 0) -> Tokens:
    """BOS, two documents with a separator between them, one special token inside the second.

    Few different tokens, so that tokens, bigrams and near misses all occur often.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(60, 72, (rows, length), generator=generator)
    ids[:, [0, 8]] = 0
    document = torch.arange(rows)[:, None] + torch.zeros(length, dtype=torch.int64)
    document[:, 9:] += 1
    document[:, [0, 8]] = -1
    kept = document >= 0
    kept[:, 11] = False
    names = [f"doc {i}" for i in range(rows + 1)]
    return Tokens(ids, document, kept, names, 0, {"name": "random"})


def dense_latents(sae: SAE, tokens: Tokens, hook: str = HOOK) -> torch.Tensor:
    """[place, latent], zero where not measured: the whole thing at once, as a reference."""
    x = model().activations(tokens.ids.long(), [hook])[hook]
    dense = sae.encode(x).dense().detach()
    return dense * tokens.kept.reshape(-1, 1)


_BUILT: dict[tuple, Path] = {}


def built(
    folder: Path,
    sae: SAE | None = None,
    tokens: Tokens | None = None,
    *,
    fresh: bool = False,
    **changes,
) -> Atlas:
    """An atlas with the small configuration; a copy of one built before, unless `fresh`."""
    sae, tokens = sae or signed(), tokens or text()
    config = AtlasConfig(**{**CONFIG.to_json(), **changes})
    weights = hash_of_tensors(dict(sae.state_dict()))
    key = (weights, repr(sae.activation), sae.hook, tokens.sha256, repr(config))
    if fresh:
        return build_atlas(sae, model(), tokens, folder, config)
    if key not in _BUILT:
        _BUILT[key] = Path(tempfile.mkdtemp(prefix="saelab-atlas-")) / "atlas"
        atexit.register(shutil.rmtree, _BUILT[key].parent, ignore_errors=True)
        build_atlas(sae, model(), tokens, _BUILT[key], config).close()
    shutil.copytree(_BUILT[key], folder, dirs_exist_ok=True)
    return Atlas.open(folder)
