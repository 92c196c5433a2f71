"""What does the model compute on a prompt, and does it do what the graph says?

    python -m probes.circuits runs/set --out runs/circuits

Traces the difference of two logits on a few prompts with a set of transcoders, and checks each
graph against the running model. Printed for every prompt:

    difference    logit of the first answer minus that of the second, of the untouched model
    unclosed      largest gap between a read-out and the sum of its parts, over the largest read-out
    latents       traced, of those active on the prompt
    replacement   share of the influence that ends at the prompt and not at an error; in brackets
                  the same with every latent counted as error
    0.8 prune     nodes that hold four fifths of the influence
    agreement     cosine of predicted and measured change of the difference when the 20 most
                  influential latents are set to zero one by one: by direct edges and by all paths,
                  measured with attention patterns held, and with nothing held
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from saelab.circuits import TraceConfig, check_ablations, trace_terms
from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import add_model, opened_model, say
from saelab.graphs import save_page, scores
from saelab.models import LanguageModel
from saelab.sae import SAE
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
        parser = Parser(prog="python -m probes.circuits", description=__doc__)
        parser.add_argument("set", type=Path, help="folder of a transcoder set")
        parser.add_argument("--out", type=Path, required=True, help="folder for graphs and pages")
        parser.add_argument("--max-latents", type=int, default=400, help="latents traced (400)")
        add_model(parser)
        asked = parse(parser, argv)
        dictionaries = load_set(asked.set)
        model = opened_model(asked.model, asked.device)
        asked.out.mkdir(parents=True, exist_ok=True)
        for name in PROMPTS:
            for line in measured(model, dictionaries, name, asked.max_latents, asked.out):
                say(line)

    return run(work)


def measured(
    model: LanguageModel, dictionaries: dict[str, SAE], name: str, max_latents: int, out: Path
) -> list[str]:
    """Trace one prompt, keep graph and page, and say how good it is."""
    prompt, answers = PROMPTS[name]
    started = time.perf_counter()
    config = TraceConfig(max_latents=max_latents)
    with ProgressBar(name, unit="latent") as bar:
        traced = trace_terms(model, dictionaries, prompt, config, targets=[answers], progress=bar)
    graph = traced.graph()
    seconds = time.perf_counter() - started
    found = scores(graph)
    residuals = graph.residuals()
    known = ~residuals.isnan()
    largest = graph.totals[known].abs().max()
    pruned = graph.prune(0.8)
    stem = out / name.replace(" ", "_")
    graph.save(stem.with_suffix(".json"))
    save_page(pruned, stem.with_suffix(".html"))
    about = graph.metadata
    difference = float(graph.totals[known][-1])
    lines = [
        f"{name}: {prompt!r}, {answers[0]!r} minus {answers[1]!r}",
        f"  difference {difference:+.2f}; unclosed {residuals[known].abs().max() / largest:.1e}; "
        f"{about['traced_latents']:,} of {about['active_latents']:,} latents in {seconds:.0f} s",
        f"  replacement {found.replacement:.3f} ({found.replacement_floor:.3f}); "
        f"0.8 prune {len(pruned)} of {len(graph)} nodes",
    ]
    agreements = check_ablations(traced).summary().items()
    lines.append("  " + "; ".join(f"{what} cos {one.cosine:+.2f}" for what, one in agreements))
    return lines


if __name__ == "__main__":
    sys.exit(main())
