"""How fast is an atlas built, how large is it, and how quickly does it answer?

    python -m benchmarks.atlas                        # 65,536 latents of a random model, ~15 min
    python -m benchmarks.atlas --d-sae 8192 --tokens 5_000
    python -m benchmarks.atlas --run runs/quickstart/topk --tokens 12_000

Answers are timed as a page asks for them: opening the folder anew, the card of a latent that was
not looked at before (and again), a filter with an order and a limit, and a search. Medians.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from saelab.activation_functions import TopK
from saelab.atlas import Atlas, AtlasConfig, build_atlas
from saelab.files import format_bytes
from saelab.models import LanguageModel, load_model
from saelab.run_folders import HarvestSource, dictionary_of, store_of
from saelab.sae import SAE
from saelab.store import ActivationStore
from saelab.tokens import Tokens

LENGTH, D_MODEL, D_VOCAB = 128, 64, 2000


def random_case(d_sae: int, n_tokens: int) -> tuple[SAE, LanguageModel, Tokens]:
    """A small random Llama, a random dictionary, and Zipfian tokens in documents of two rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=D_VOCAB,
        hidden_size=D_MODEL,
        intermediate_size=2 * D_MODEL,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=LENGTH,
    )
    model = load_model(LlamaForCausalLM(config).eval(), name="random", device="cpu")
    rows = max(1, n_tokens // LENGTH)
    weights = 1 / torch.arange(1, D_VOCAB).double()
    ids = 1 + torch.multinomial(weights, rows * LENGTH, replacement=True).reshape(rows, LENGTH)
    kept = torch.ones(rows, LENGTH, dtype=torch.bool)
    kept[:, 0] = False
    document = (torch.arange(rows) // 2).reshape(-1, 1).repeat(1, LENGTH)
    names = [f"document {number}" for number in range(rows // 2 + 1)]
    tokens = Tokens(ids, document, kept, names, None, {"name": "random tokens"})
    return SAE(D_MODEL, d_sae, TopK(32), hook="blocks.1.hook_resid_pre"), model, tokens


def run_case(run: Path) -> tuple[SAE, LanguageModel, Tokens]:
    """A trained run, its model and the text it was trained on."""
    store = store_of(run)
    tokens = ActivationStore.open(store).tokens
    if tokens is None:
        raise SystemExit(f"{store} holds no tokens.")
    return dictionary_of(run), load_model(HarvestSource.of(store).model), tokens


class Stages:
    """Notes when each stage of a build was last heard of."""

    def __init__(self) -> None:
        self.begun: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        self.total: dict[str, int] = {}
        self._last = time.perf_counter()

    def __call__(self, done: int, total: int, what: str) -> None:  # noqa: ARG002
        """A part is done."""
        now = time.perf_counter()
        self.begun.setdefault(what, self._last)
        self.ended[what], self.total[what] = now, total
        self._last = now

    def seconds(self, what: str) -> float:
        """From the end of the stage before."""
        return self.ended[what] - self.begun[what]


def median_ms(work: Callable[[int], Any], n: int) -> float:
    """Median milliseconds of work(0) to work(n - 1)."""
    times = []
    for number in range(n):
        started = time.perf_counter()
        work(number)
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def answers(folder: Path) -> list[tuple[str, str]]:
    """How long an atlas takes to answer."""
    opening = median_ms(lambda _: Atlas.open(folder).close(), 5)
    atlas = Atlas.open(folder)
    alive = atlas.latents("count > 0", "density DESC")["latent"].tolist()
    some = alive[:: max(1, len(alive) // 20)][:20]
    atlas.latent(alive[-1])
    first = median_ms(lambda number: atlas.latent(some[number]), len(some))
    again = median_ms(lambda number: atlas.latent(some[number]), len(some))
    bounds = [0.001, 0.003, 0.01, 0.03, 0.1]
    filtering = median_ms(
        lambda number: atlas.latents(
            "density < ? AND max > 0",
            "strongest DESC",
            50,
            parameters=[bounds[number]],
        ),
        len(bounds),
    )
    words = [atlas.latents("latent = ?", parameters=[one])["label"].iat[0][1:4] for one in some[:5]]
    searching = median_ms(lambda number: atlas.search(words[number]), len(words))
    atlas.close()
    return [
        ("open", f"{opening:,.0f} ms"),
        ("page, first time", f"{first:,.0f} ms"),
        ("page, again", f"{again:,.0f} ms"),
        ("filter, sort, 50 rows", f"{filtering:,.0f} ms"),
        ("search", f"{searching:,.0f} ms"),
    ]


def measure(case: tuple[SAE, LanguageModel, Tokens], config: AtlasConfig, folder: Path) -> None:
    """Build, then ask."""
    sae, model, tokens = case
    stages, started = Stages(), time.perf_counter()
    atlas = build_atlas(sae, model, tokens, folder, config, stages)
    seconds = time.perf_counter() - started
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    codes = sum(path.stat().st_size for path in files if path.parent.name == "codes")
    model_seconds, latent_seconds = (stages.seconds(what) for what in ("contexts", "latents"))
    rows = [
        ("latents", f"{atlas.d_sae:,}, {atlas.count('count > 0'):,} of them fire"),
        ("tokens measured", f"{atlas.n_tokens:,}"),
        ("build", f"{seconds:,.1f} s"),
        ("  model and codes", f"{stages.total['contexts'] / model_seconds:,.0f} tokens/s"),
        ("  tables", f"{atlas.d_sae / latent_seconds:,.0f} latents/s"),
        ("size", f"{format_bytes(size)}, {format_bytes(codes)} of it codes"),
    ]
    atlas.close()
    for name, value in [*rows, *answers(folder)]:
        print(f"{name:<24}{value}", flush=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--run", type=Path, help="a trained run; a random dictionary if not given")
    parser.add_argument("--d-sae", type=int, default=65536)
    parser.add_argument("--tokens", type=int, default=20_000)
    arguments = parser.parse_args()
    case = (
        run_case(arguments.run) if arguments.run else random_case(arguments.d_sae, arguments.tokens)
    )
    folder = Path(tempfile.mkdtemp(prefix="saelab-atlas-"))
    try:
        measure(case, AtlasConfig(max_tokens=arguments.tokens), folder / "atlas")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
