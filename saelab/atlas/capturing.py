"""How do a model's activations become shards of sparse codes? The only pass that runs the model."""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Bool
from torch import Tensor

from saelab.atlas.codes import CodeShards
from saelab.atlas.config import AtlasConfig
from saelab.errors import DataError
from saelab.fidelity import edited_positions
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes
from saelab.tokens import Tokens

__all__ = ["capture"]

Progress = Callable[[int, int, str], None]


def capture(
    sae: SAE,
    model: LanguageModel,
    tokens: Tokens,
    shards: CodeShards,
    todo: list[int],
    norm_limit: float | None,
    config: AtlasConfig,
    progress: Progress | None,
) -> None:
    """Write the shards `todo`; what is measured is what `saelab.look` measures.

    Raises:
        DataError: An activation is not finite.
    """
    sizes = {shard: shards.range(shard)[1] - shards.range(shard)[0] for shard in todo}
    total = sum(sizes.values()) * tokens.length
    done = 0
    for shard in todo:
        first, stop = shards.range(shard)
        reader = _Reader(sae, model, norm_limit)
        for start in range(first, stop, config.rows_per_batch):
            part = tokens[start : min(start + config.rows_per_batch, stop)]
            reader.read(part)
            done += part.n_tokens
            if progress is not None:
                progress(done, total, "contexts")
        shards.write(shard, SparseCodes.cat(reader.codes), torch.cat(reader.measured))


@final
class _Reader:
    """Codes of some token rows."""

    def __init__(self, sae: SAE, model: LanguageModel, norm_limit: float | None) -> None:
        self.sae, self.model, self.norm_limit = sae, model, norm_limit
        self.codes: list[SparseCodes] = []
        self.measured: list[Bool[Tensor, "row pos"]] = []

    def read(self, part: Tokens) -> None:
        hook = str(self.sae.hook)
        ids = part.ids.to(self.model.device, torch.int64)
        mask = part.mask if part.padded else None
        found = self.model.activations(ids, [hook], mask)[hook]
        measured = edited_positions(found, part.kept, self.norm_limit)
        codes = self.sae.encode(found[measured].to(self.sae.device).float()).to("cpu")
        if not bool(codes.values.isfinite().all()):
            raise DataError(
                f"Latents of {hook} are not finite (NaN or infinite) in the rows of "
                f"{part.document_names[int(part.document.max())]!r}. Check the model's and the "
                "dictionary's weights."
            )
        self.codes.append(codes)
        self.measured.append(measured.cpu())
