"""Along which heads and latents does a prompt reach an answer, and what holds the answer down?

    python -m probes.paths runs/set

The difference of two logits is taken apart into what reaches it directly, with the transcoders of a
set in place of the MLPs, and followed back along greedy paths. Printed for every prompt:

    difference   of the logits, by kind of what reaches it directly; the kinds sum to it
    unclosed     gap between it and all its terms, over it
    paths        kept in all, those that add and those that take away, and the strongest with two
                 steps or more: from the answer backwards
    looks        why the head that adds most directly looks where it does: its score of that
                 position above the mean of the others, and the pair of terms that adds most to it

After Dunefsky et al. 2024, Transcoders Find Interpretable LLM Feature Circuits.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from saelab.attention_circuits import DirectAttribution, Source, attention_contrast
from saelab.circuits import LocalReplacement, Term
from saelab.circuits.targets import read_out, resolve
from saelab.circuits.tracing import TraceConfig, prompt_tokens
from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.verbs import add_model, opened_model, say
from saelab.models import LanguageModel
from saelab.sae import SAE
from saelab.transcoder_circuits import Path as Chain
from saelab.transcoder_circuits import PathConfig, greedy_paths
from saelab.transcoder_sets import load_set

PROMPTS = {
    "indirect object": (
        "When Mary and John went to the store, John gave a drink to",
        (" Mary", " John"),
    ),
    "agreement": ("The keys to the old wooden cabinet", (" are", " is")),
    "capital": ("The capital of France is", (" Paris", " London")),
}
"""Prompt, and the two answers whose logits are compared."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""

    def work() -> None:
        asked = parse(flags(), argv)
        dictionaries = load_set(asked.set)
        model = opened_model(asked.model, asked.device)
        prompts = {"given": (asked.prompt, tuple(asked.answers))} if asked.prompt else PROMPTS
        config = PathConfig(depth=asked.depth, branches=asked.branches)
        for name, (prompt, answers) in prompts.items():
            for line in measured(model, dictionaries, name, prompt, answers, config):
                say(line)

    return run(work)


def flags() -> argparse.ArgumentParser:
    """What may follow the program's name."""
    parser = Parser(prog="python -m probes.paths", description=__doc__)
    parser.add_argument("set", type=Path, help="folder of a transcoder set")
    parser.add_argument("--prompt", help="instead of the three that are built in")
    parser.add_argument("--answers", nargs=2, default=["a", "b"], help="two tokens, with it")
    parser.add_argument("--depth", type=int, default=3, help="most steps of a path (3)")
    parser.add_argument("--branches", type=int, default=15, help="paths kept a step (15)")
    add_model(parser)
    return parser


def measured(
    model: LanguageModel,
    dictionaries: dict[str, SAE],
    name: str,
    prompt: str,
    answers: tuple[str, ...],
    config: PathConfig,
) -> list[str]:
    """Take one difference apart and follow it back."""
    started = time.perf_counter()
    tokens = prompt_tokens(model, prompt, TraceConfig())
    replacement = LocalReplacement(model, dictionaries, tokens, cut_heads=True)
    targets = resolve(model, replacement.map.logits, [(answers[0], answers[1])])
    target = read_out(replacement.map.head, targets, len(tokens) - 1)
    value = float(target.values(replacement.map.reads)[0])
    direct = DirectAttribution(replacement)
    terms = direct.terms([target])
    kinds = {
        "heads": terms.heads.sum() + terms.value_biases.sum(),
        "latents": terms.latents.sum(),
        "errors": terms.errors.sum(),
        "embedding": terms.tokens.sum() + terms.positions.sum(),
        "biases": terms.decoder_biases.sum() + terms.model_biases.sum() + terms.offsets.sum(),
    }
    unclosed = abs(float(terms.sums()[0]) - value) / abs(value)
    paths = greedy_paths(replacement, target, config)
    up = [path for path in paths if path.contribution > 0]
    strings = model.token_strings(tokens.tolist())
    parts = " ".join(f"{kind} {float(part):+.2f}" for kind, part in kinds.items())
    lines = [
        f"{name}: {prompt!r}, {answers[0]!r} minus {answers[1]!r}",
        f"  difference {value:+.2f} = {parts}; unclosed {unclosed:.1e}",
        f"  {len(paths)} paths, {len(up)} add and {len(paths) - len(up)} take away; "
        f"{time.perf_counter() - started:.0f} s",
    ]
    long = [path for path in paths if len(path.steps) > 1]
    lines += [f"  {told(path, strings)}" for path in long[:3]]
    down = [path for path in long if path.contribution < 0]
    lines += [f"  {told(path, strings)}" for path in down[:1] if path not in long[:3]]
    return lines + looks(replacement, paths, strings)


def told(path: Chain, strings: Sequence[str]) -> str:
    """A path in words."""
    steps = " < ".join(step(source, strings) for source in path.steps)
    return f"{path.contribution:+.3f}  {steps}"


def step(source: Source, strings: Sequence[str]) -> str:
    """A source in words."""
    at = "" if source.position is None else f" at {strings[source.position]!r}"
    number = "" if source.number is None or source.kind == "token" else f" {source.number}"
    layer = "" if source.layer is None else f" of layer {source.layer}"
    return f"{source.kind}{number}{layer}{at}"


def looks(
    replacement: LocalReplacement, paths: Sequence[Chain], strings: Sequence[str]
) -> list[str]:
    """Why the first head that reaches the answer directly looks where it looks."""
    last = len(strings) - 1
    head = next((path.steps[0] for path in paths if path.steps[0].kind == "head"), None)
    if head is None or head.position is None or head.layer is None or head.number is None:
        return []
    found = attention_contrast(replacement, head.layer, head.number, last, head.position)
    ((query, key, weight),) = found.top_pairs(1)
    pattern = float(replacement.map.held.patterns[head.layer][0, head.number, last, head.position])
    return [
        f"  head {head.number} of layer {head.layer} looks at {strings[head.position]!r} "
        f"({pattern:.2f}), score {found.value:+.1f} above the mean of the others; largest pair "
        f"{weight:+.1f}: {term(query, strings)} with {term(key, strings)}"
    ]


def term(one: Term, strings: Sequence[str]) -> str:
    """A term in words."""
    at = "" if one.position is None else f" at {strings[one.position]!r}"
    where = "" if one.hook is None else f" of {one.hook}"
    return f"{one.kind}{where}{at}"


if __name__ == "__main__":
    sys.exit(main())
