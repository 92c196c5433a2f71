"""Is harvesting with saelab as fast as plain transformers with a hook that stops at the layer?

    python -m benchmarks.harvest                    # random weights, SmolLM2-135M's shape, ~3 min
    python -m benchmarks.harvest --model smollm2    # the default model's own weights

Five ways to get the same activations, run in turn in one process on the same token rows, in the
same batches, after one untimed round:

    plain           transformers, a hook that keeps the activation and raises: the least there is
    plain + save    the same, then position 0 dropped, cast to bfloat16 and saved in one file
    saelab store    harvest() to disk: outliers and NaN checked, shards hashed, synced, listed
    saelab stream   ActivationStore.stream(): the same checks, shuffled batches, nothing stored
    TransformerLens bridge, run_with_cache(names_filter=..., stop_at_layer=...)

On a machine that others use too, set OMP_NUM_THREADS=1: threads that wait for each other spin.
Each way is measured in CPU seconds (all threads) and in wall seconds. The
ratio is speed relative to "plain" in the same repetition: its median, least and greatest.
"""

import argparse
import contextlib
import copy
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from saelab.harvesting import harvest
from saelab.models import LanguageModel, load_model
from saelab.store import ActivationStore, HarvestConfig
from saelab.tokens import Tokens

Way = Callable[[], Tensor]


class _Enough(Exception):
    """The layer has been reached."""


def random_llama() -> nn.Module:
    """SmolLM2-135M's shape with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def random_rows(rows: int, length: int, d_vocab: int) -> Tokens:
    """Uniform token ids; position 0 of each row is not kept."""
    ids = torch.randint(3, d_vocab, (rows, length), generator=torch.Generator().manual_seed(0))
    kept = torch.ones(rows, length, dtype=torch.bool)
    kept[:, 0] = False
    document = torch.arange(rows).reshape(-1, 1).repeat(1, length)
    names = [str(row) for row in range(rows)]
    return Tokens(ids, document, kept, names, None, {"name": "random", "sha256": ""})


def plain(module: nn.Module, tokens: Tokens, layer: int, batch: int) -> Tensor:
    """Transformers with a hook that raises; keeps everything in memory."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Enough

    base: Any = module.base_model
    handle = base.layers[layer].register_forward_hook(keep)
    try:
        with torch.no_grad():
            for ids in tokens.ids.long().split(batch):
                with contextlib.suppress(_Enough):
                    base(ids, use_cache=False)
    finally:
        handle.remove()
    return torch.cat(found)


def plain_and_save(
    module: nn.Module, tokens: Tokens, layer: int, batch: int, folder: Path
) -> Tensor:
    """What a short script does: run, drop position 0, cast, save."""
    x = plain(module, tokens, layer, batch)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(x[:, 1:].to(torch.bfloat16).contiguous(), folder / "activations.pt")
    return x


def with_store(model: LanguageModel, tokens: Tokens, hook: str, batch: int, folder: Path) -> Tensor:
    """Harvest to an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    harvest(model, tokens, hook, folder, rows_per_batch=batch)
    return torch.empty(0)


def with_stream(model: LanguageModel, tokens: Tokens, hook: str, batch: int) -> Tensor:
    """One epoch of shuffled batches."""
    config = HarvestConfig(rows_per_batch=batch)
    store = ActivationStore.stream(model, tokens, [hook], config)
    size = batch * (tokens.length - 1)
    for served in store.batches(size, window_tokens=4 * size):
        if served.cursor >= store.n_tokens:
            break
    return torch.empty(0)


def with_bridge(bridge: Any, tokens: Tokens, layer: int, batch: int) -> Tensor:
    """TransformerLens, stopping at the layer and keeping one hook point."""
    name = f"blocks.{layer}.hook_resid_post"
    found = []
    with torch.no_grad():
        for ids in tokens.ids.long().split(batch):
            _, cache = bridge.run_with_cache(
                ids, names_filter=lambda n: n == name, stop_at_layer=layer + 1
            )
            found.append(cache[name])
    return torch.cat(found)


def measure(ways: dict[str, Way], repetitions: int) -> dict[str, list[tuple[float, float]]]:
    """(CPU, wall) seconds of every way, in turn, `repetitions` times after one untimed round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name, way in ways.items():
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            spent = time.process_time() - cpu, time.perf_counter() - wall
            if repetition:
                times[name].append(spent)
    return times


def show(times: dict[str, list[tuple[float, float]]], n_tokens: int) -> None:
    """Print a table."""
    print(f"{'way':16} {'CPU s':>8} {'wall s':>8} {'tok/CPU s':>10}  speed / plain, by CPU time")
    for name, spent in times.items():
        cpu = statistics.median(c for c, _ in spent)
        wall = statistics.median(w for _, w in spent)
        ratios = [p / c for (p, _), (c, _) in zip(times["plain"], spent, strict=True)]
        print(
            f"{name:16} {cpu:8.2f} {wall:8.2f} {n_tokens / cpu:10.0f}  "
            f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        )


def prepare(arguments: argparse.Namespace, scratch: Path) -> tuple[dict[str, Way], Tokens]:
    """The ways to compare, checked to agree."""
    if arguments.model == "smollm2":
        model = load_model("smollm2", device="cpu", dtype="float32")
        module: Any = model.module  # pyright: ignore[reportAttributeAccessIssue]
    else:
        module = random_llama()
        model = load_model(module, name="random llama", device="cpu")
    tokens = random_rows(arguments.rows, 128, model.d_vocab)
    layer, batch = arguments.layer, arguments.batch
    hook = f"blocks.{layer}.hook_resid_post"
    ways: dict[str, Way] = {
        "plain": lambda: plain(module, tokens, layer, batch),
        "plain + save": lambda: plain_and_save(module, tokens, layer, batch, scratch / "plain"),
        "saelab store": lambda: with_store(model, tokens, hook, batch, scratch / "store"),
        "saelab stream": lambda: with_stream(model, tokens, hook, batch),
    }
    truth = plain(module, tokens[:batch], layer, batch)
    ours = model.activations(tokens.ids[:batch].long(), [hook])[hook]
    assert torch.allclose(ours, truth, rtol=1e-4, atol=1e-4), "saelab reads something else"
    if not arguments.without_transformer_lens:
        from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

        again = copy.deepcopy(module)
        bridge = build_bridge_from_module(
            again, architecture="LlamaForCausalLM", hf_config=again.config, tokenizer=None
        ).eval()
        theirs = with_bridge(bridge, tokens[:batch], layer, batch)
        assert torch.allclose(theirs, truth, rtol=1e-3, atol=1e-3), "the bridge reads other things"
        ways["TransformerLens"] = lambda: with_bridge(bridge, tokens, layer, batch)
    return ways, tokens


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=["random", "smollm2"], default="random")
    parser.add_argument("--layer", type=int, default=15, help="block whose output is read (15)")
    parser.add_argument("--rows", type=int, default=32, help="rows of 128 tokens (32)")
    parser.add_argument("--batch", type=int, default=16, help="rows per forward pass (16)")
    parser.add_argument("--repetitions", type=int, default=3, help="timed repetitions (3)")
    parser.add_argument("--without-transformer-lens", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        ways, tokens = prepare(arguments, Path(scratch))
        times = measure(ways, arguments.repetitions)
    print(f"{tokens.n_tokens} tokens, layer {arguments.layer}, {torch.get_num_threads()} threads")
    show(times, tokens.n_tokens)


if __name__ == "__main__":
    main()
