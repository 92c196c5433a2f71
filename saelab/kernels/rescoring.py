"""Top-k chosen by a bfloat16 matmul and settled in float32, where bfloat16 is really faster.

The encoder matmul is most of a training step, and all it decides is which k latents of a token
count. So it may run in half precision if a few candidates more than k are taken and scored again
exactly: pre-activations, latents and gradients are then the float32 ones, and only which latents
are selected can differ. That this keeps the exact k is a measurement, not a proof, so a sample of
rows is selected exactly now and then, and missed pairs are counted.

Whether it pays depends on the machine. With matrix units for bfloat16 (AMX, GPUs) the matmul is
about four times faster; on a CPU without them it is a hundred times slower. "auto" times both.
"""

import functools
import time
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.errors import ConfigError
from saelab.kernels.encoding import Selection, chunk_rows, join
from saelab.kernels.pairs import Pairs, pair_products
from saelab.kernels.selection import Selected, top_k, top_k_pairs

__all__ = ["Bfloat16Selection", "bfloat16_speed"]

FASTER = 1.5
"""bfloat16 is used from this measured speed on, relative to float32; casts and rescoring cost."""
MARGIN = 16
"""Candidates beyond k. With 8 none of 32,768 pairs was missed, at the start and after 40 steps."""


@functools.cache
def bfloat16_speed(device: str = "cpu") -> float:
    """How many times faster a bfloat16 matmul of encoder shape is than float32; measured once.

    Returns:
        Best of three over best of three; 0 where bfloat16 does not run.
    """
    best = []
    for dtype in (torch.float32, torch.bfloat16):
        seconds = []
        try:
            x = torch.ones(256, 512, dtype=dtype, device=device)
            weight = torch.ones(1024, 512, dtype=dtype, device=device)
            for _ in range(4):  # the first one is not counted
                _wait(device)
                started = time.perf_counter()
                torch.mm(x, weight.T)
                _wait(device)
                seconds.append(time.perf_counter() - started)
        except RuntimeError:
            return 0.0
        best.append(min(seconds[1:]))
    return best[0] / best[1]


@final
class Bfloat16Selection:
    """Encodes with candidates from bfloat16, and counts what that misses.

    Args:
        mode: "on", "off", or "auto" for where it is measured to be faster. A run should record
            `enabled`, not "auto": the decision belongs to its bits.
        device: Where the matmul runs.
        margin: Candidates beyond k.
        check_every: Calls between two checks; 0 for none.
        check_rows: Rows of each check.

    Raises:
        ConfigError: A number is negative, or the mode is not one of the three.
    """

    def __init__(
        self,
        mode: str = "auto",
        device: torch.device | str = "cpu",
        margin: int = MARGIN,
        check_every: int = 100,
        check_rows: int = 64,
    ) -> None:
        if mode not in ("auto", "on", "off"):
            raise ConfigError(f"Bfloat16Selection(mode={mode!r}): use 'auto', 'on' or 'off'.")
        if min(margin, check_every, check_rows) < 0:
            raise ConfigError("Bfloat16Selection: margin, check_every and check_rows are counts.")
        kind = torch.device(device).type
        self.enabled = mode == "on" or (mode == "auto" and bfloat16_speed(kind) >= FASTER)
        self.margin, self.check_every, self.check_rows = margin, check_every, check_rows
        self.calls = 0
        """Batches encoded."""
        self.checked_pairs = 0
        """Pairs of exactly selected rows that were compared so far."""
        self.missed_pairs = 0
        """How many of them the candidates did not contain."""

    @property
    def missed_share(self) -> float:
        """Missed of checked pairs, 0 to 1."""
        return self.missed_pairs / max(self.checked_pairs, 1)

    @torch.no_grad()
    def encode(
        self,
        x: Float[Tensor, "token d_in"],
        rows: Float[Tensor, "d_sae d_in"],
        bias: Float[Tensor, " d_sae"],
        k: int,
        extra: list[Selection] | None = None,
        signed: bool = False,
    ) -> list[tuple[Pairs, Tensor]]:
        """What `encode_pairs` returns for a top-k selection followed by extra ones.

        Extra selections (of dead latents, say) choose by the bfloat16 values; the pre-activations
        returned for their pairs are exact too.

        Args:
            x: Encoder input, already centred and scaled.
            rows: Encoder directions, one latent a row, contiguous.
            bias: Encoder bias.
            k: Latents kept per token, if positive.
            extra: Selections as in `encode_pairs`.
            signed: Keep the largest by size instead of by value.
        """
        extra = extra or []
        n_tokens, d_sae = len(x), len(rows)
        step = chunk_rows(d_sae, x.shape[1], rows.element_size())
        half = rows.to(torch.bfloat16).T
        shape = min(step, n_tokens), d_sae
        buffer = torch.empty(shape, dtype=torch.bfloat16, device=x.device)
        wide = torch.empty(shape, dtype=x.dtype, device=x.device)
        found: list[list[Selected]] = [[] for _ in range(1 + len(extra))]
        for start in range(0, n_tokens, step):
            chunk = x[start : start + step]
            product = torch.mm(chunk.to(torch.bfloat16), half, out=buffer[: len(chunk)])
            # The bias is added in full precision: bfloat16 has too few values to order them by.
            coarse = torch.add(product, bias, out=wide[: len(chunk)])
            row, latent, value = self._settle(coarse, chunk, rows, bias, k, signed)
            found[0].append((row + start, latent, value))
            for parts, select in zip(found[1:], extra, strict=True):
                row, latent, _ = select(coarse)
                pairs, _ = join([(row, latent, bias[latent])], len(chunk), d_sae, x)
                parts.append((row + start, latent, _scores(pairs, chunk, rows, bias)))
        if self.check_every and self.calls % self.check_every == 0 and n_tokens:
            self._check(x, rows, bias, k, signed, found[0])
        self.calls += 1
        return [join(parts, n_tokens, d_sae, x) for parts in found]

    def _settle(
        self, coarse: Tensor, x: Tensor, rows: Tensor, bias: Tensor, k: int, signed: bool
    ) -> Selected:
        """The exact top k of the candidates that the coarse pre-activations suggest."""
        wide = min(k + self.margin, coarse.shape[1])
        _, latents = top_k(coarse.abs() if signed else coarse, wide)
        latents = latents.sort(1).values  # ties are then broken alike, whatever the backend
        offsets = torch.arange(0, latents.numel() + 1, wide, device=x.device)
        pairs = Pairs(offsets, latents.reshape(-1), coarse.shape[1])
        exact = _scores(pairs, x, rows, bias).view(len(x), wide)
        row, place, value = top_k_pairs(exact, k, signed)
        return row, latents[row, place], value

    def _check(
        self,
        x: Tensor,
        rows: Tensor,
        bias: Tensor,
        k: int,
        signed: bool,
        found: list[Selected],
    ) -> None:
        """Select evenly spaced rows in float32 and count the pairs that are missing."""
        every = max(1, len(x) // max(self.check_rows, 1))
        sample = torch.arange(len(x), device=x.device)[::every][: self.check_rows]
        exact = torch.addmm(bias, x[sample], rows.T)
        row, latent, _ = top_k_pairs(exact, k, signed)
        wanted = sample[row] * len(rows) + latent
        have = torch.cat([part[0] * len(rows) + part[1] for part in found])
        self.checked_pairs += len(wanted)
        self.missed_pairs += int((~torch.isin(wanted, have)).sum())


def _scores(pairs: Pairs, x: Tensor, rows: Tensor, bias: Tensor) -> Float[Tensor, " pair"]:
    return pair_products(pairs, x, rows) + bias[pairs.indices]


def _wait(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
