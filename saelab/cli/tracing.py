"""The verb that explains what a model says next: `trace`."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from saelab.circuits import TraceConfig, trace
from saelab.circuits.dictionaries import Dictionaries
from saelab.cli.flags import add_flags, from_flags
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import DEFAULT_MODEL, Verb, opened_model, say
from saelab.cross_layer import CrossLayerTranscoder
from saelab.errors import CheckpointError
from saelab.graphs import AttributionGraph
from saelab.latents import plain
from saelab.run_folders import dictionary_of
from saelab.sae import SAE
from saelab.transcoder_sets import load_set

__all__ = ["TRACE"]

N_SHOWN = 5


def _add_trace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "dictionaries",
        type=Path,
        nargs="+",
        metavar="RUN_OR_SET",
        help="a set of transcoders, a cross-layer transcoder, or the run folders of one or more "
        "transcoders or autoencoders",
    )
    parser.add_argument("--prompt", required=True, help="the text whose next token is explained")
    parser.add_argument("--out", type=Path, required=True, help="file of the graph")
    parser.add_argument(
        "--target",
        action="append",
        metavar="TOKEN",
        help="a token to explain, its leading space included; repeatable (default: the likeliest)",
    )
    parser.add_argument(
        "--prune",
        type=float,
        default=None,
        metavar="SHARE",
        help="keep only the nodes that hold this share of the influence (default: keep all)",
    )
    parser.add_argument(
        "--format", default=None, help="also write FILE.FORMAT, such as neuronpedia or graphml"
    )
    parser.add_argument(
        "--model", default=None, help="the model to run (default: the one that was trained on)"
    )
    parser.add_argument("--device", default=None, help="where the model computes")
    add_flags(parser, TraceConfig)


def _trace(arguments: argparse.Namespace) -> None:
    config = from_flags(TraceConfig, arguments)
    dictionaries = _opened(arguments.dictionaries)
    model = opened_model(arguments.model or _model_of(dictionaries), arguments.device)
    with ProgressBar("Tracing", unit="latent") as bar:
        graph = trace(
            model, dictionaries, arguments.prompt, config, targets=arguments.target, progress=bar
        )
    if arguments.prune is not None:
        graph = graph.prune(arguments.prune)
    path = graph.save(arguments.out)
    if arguments.format is not None:
        other = path.with_suffix(f".{arguments.format}")
        say(f"For another program: {graph.export(other, arguments.format)}")
    for line in _summary(graph):
        say(line)
    say(f"Graph: {path}; in Python: saelab.graphs.AttributionGraph.load({str(path)!r})")


def _opened(folders: list[Path]) -> Dictionaries:
    """What the folders hold: one set, one cross-layer transcoder, or a dictionary each."""
    if len(folders) == 1:
        folder = folders[0]
        if (folder / "set.json").exists():
            return load_set(folder)
        for place in (folder, folder / "clt"):
            if (place / "layer_0.safetensors").exists():
                return CrossLayerTranscoder.load(place)
    return [dictionary_of(folder) for folder in folders]


def _model_of(dictionaries: Dictionaries) -> str:
    """The name of the model that the dictionaries were trained on.

    Raises:
        CheckpointError: They were trained on different ones.
    """
    if isinstance(dictionaries, CrossLayerTranscoder | SAE):
        parts: list[SAE | CrossLayerTranscoder] = [dictionaries]
    elif isinstance(dictionaries, Mapping):
        parts = list(dictionaries.values())
    else:
        parts = list(dictionaries)
    names = sorted(
        {str(name) for one in parts if (name := (one.metadata.get("model") or {}).get("name"))}
    )
    if len(names) > 1:
        raise CheckpointError(
            f"The dictionaries were trained on {' and '.join(names)}. Give dictionaries of one "
            "model, or name it with --model."
        )
    return names[0] if names else DEFAULT_MODEL


def _summary(graph: AttributionGraph) -> list[str]:
    counts = graph.metadata
    lines = [
        f"{counts['traced_latents']:,} of {counts['active_latents']:,} active latents traced; "
        f"{len(graph)} nodes, {graph.n_edges} edges.",
        f"Replacement score {graph.replacement_score():.3f} (share of influence from the prompt, "
        "the rest is error).",
    ]
    read_outs = [node for node in graph.nodes if node.kind in ("logit", "target")]
    for node in read_outs[:N_SHOWN]:
        share = "" if node.probability is None else f"  p {node.probability:.3f}"
        lines.append(f"  {plain(node.label)!r}{share}  made of")
        for edge in graph.into(node)[:N_SHOWN]:
            name = f"{edge.source.name} {plain(edge.source.label)}".strip()
            lines.append(f"    {edge.weight:+8.3f}  {name}")
    return lines


TRACE = Verb(
    name="trace",
    summary="Explain what a model says next: which latents, on this prompt, added what.",
    example='saelab trace runs/set --prompt "The capital of France is" --out paris.json',
    add_flags=_add_trace,
    run=_trace,
)
