"""The verbs that look at every latent of a run, and draw a map of them: `atlas` and `map`."""

import argparse
from pathlib import Path

from saelab import tokens
from saelab.atlas import Atlas, AtlasConfig, MapConfig, build_atlas, make_map
from saelab.atlas.decoder_map import FEWEST
from saelab.cli.flags import add_flags, from_flags
from saelab.cli.progress import ProgressBar, Working
from saelab.cli.verbs import Verb, add_text, opened_model, say, text_source
from saelab.errors import CheckpointError
from saelab.files import format_bytes
from saelab.models import LanguageModel
from saelab.run_folders import HarvestSource, dictionary_of, held_out_of, store_of
from saelab.store import ActivationStore
from saelab.tokens import Tokens

__all__ = ["ATLAS", "MAP"]

N_SHOWN = 5


def _add_atlas(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder, or a dictionary's folder")
    parser.add_argument(
        "--out", type=Path, default=None, help="where the atlas goes (default: RUN/atlas)"
    )
    parser.add_argument("--model", default=None, help="the model to run (default: the harvest's)")
    parser.add_argument("--device", default=None, help="where the model computes")
    add_text(parser, "the text the run was trained on")
    parser.add_argument(
        "--held-out",
        action="store_true",
        help="use the text the harvest held out, which is shorter",
    )
    parser.add_argument(
        "--length", type=int, default=128, help="tokens in a row of --text (default: 128)"
    )
    parser.add_argument(
        "--rebuild",
        action="store_true",
        help="replace an atlas of other settings or text; labels and notes are kept",
    )
    add_flags(parser, AtlasConfig)


def _atlas(arguments: argparse.Namespace) -> None:
    config = from_flags(AtlasConfig, arguments)
    sae = dictionary_of(arguments.run)
    store = _store(arguments)
    model = opened_model(
        arguments.model or HarvestSource.of(_needed(store, arguments.run)).model, arguments.device
    )
    text = _text(arguments, store, model)
    folder: Path = arguments.out or arguments.run / "atlas"
    with ProgressBar("Building the atlas", unit="part") as bar:
        atlas = build_atlas(sae, model, text, folder, config, bar, rebuild=arguments.rebuild)
    if atlas.decoder_map is None and atlas.count("count > 0") >= FEWEST:
        atlas = make_map(atlas, MapConfig(method="pca"))  # a second's work, and no other package
    _report(atlas)


def _store(arguments: argparse.Namespace) -> Path | None:
    """The store the run was trained on, where it is recorded and needed."""
    if arguments.model is not None and arguments.text is not None:
        return None
    return store_of(arguments.run) if (arguments.run / "sources.json").exists() else None


def _needed(store: Path | None, run: Path) -> Path:
    if store is None:
        raise CheckpointError(
            f"{run} does not say which store it was trained on, so its model and text are unknown. "
            "Give both: --model NAME --text SOURCE."
        )
    return store


def _text(arguments: argparse.Namespace, store: Path | None, model: LanguageModel) -> Tokens:
    if arguments.text is not None:
        with Working("Reading the text"):
            return tokens.from_text(model, text_source(arguments.text), length=arguments.length)
    store = _needed(store, arguments.run)
    if arguments.held_out:
        return held_out_of(store)
    text = ActivationStore.open(store).tokens
    return text if text is not None else held_out_of(store)


def _report(atlas: Atlas) -> None:
    alive = atlas.count("count > 0")
    size = sum(path.stat().st_size for path in atlas.folder.rglob("*") if path.is_file())
    say(
        f"{atlas.folder}: {alive:,} of {atlas.d_sae:,} latents fire on {atlas.n_tokens:,} tokens; "
        f"{format_bytes(size)}."
    )
    say("The best described of those that fire on fewer than 1 in 100 tokens:")
    shown = atlas.latents(
        "density < 0.01 AND count >= 20 AND auto_score_name = 'F1'", "auto_score DESC", N_SHOWN
    )
    for row in shown.to_dict("records"):
        label = "".join(one if one.isprintable() else "�" for one in str(row["label"]))
        say(f"  {row['latent']:>7}  F1 {row['auto_score']:.2f}  {label}")
    say("Next: saelab explore, or in Python:")
    say(f"  atlas = saelab.Atlas.open({str(atlas.folder)!r}); atlas.search('war')")


ATLAS = Verb(
    name="atlas",
    summary="Look at every latent of a dictionary and keep what it does, to browse and search.",
    example="saelab atlas runs/topk --max-tokens 100_000",
    add_flags=_add_atlas,
    run=_atlas,
)


def _add_map(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder with an atlas, or an atlas's folder")
    add_flags(parser, MapConfig)


def _map(arguments: argparse.Namespace) -> None:
    config = from_flags(MapConfig, arguments)
    run: Path = arguments.run
    atlas = Atlas.open(run if (run / "atlas.json").exists() else run / "atlas")
    name = "Making the map"
    with Working(name) as clock, ProgressBar(name, unit="latent", replaces=clock) as bar:
        atlas = make_map(atlas, config, bar)
    about = atlas.decoder_map or {}
    share = f", {about['explained']:.1%} of their variance" if "explained" in about else ""
    say(f"{atlas.folder}: {about['describe']}{share}; {len(atlas.arrow('decoder_map')):,} latents.")
    say("Next: saelab explore shows it on the page of the latents.")


MAP = Verb(
    name="map",
    summary="Draw a map of an atlas's latents on which those of similar directions lie together.",
    example="saelab map runs/topk --method umap",
    add_flags=_add_map,
    run=_map,
)
