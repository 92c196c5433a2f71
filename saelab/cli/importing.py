"""Verbs about other libraries' dictionaries: read theirs (`import`), write theirs (`export`)."""

import argparse
from pathlib import Path

from saelab import formats
from saelab.cli.progress import Working
from saelab.cli.verbs import Verb, say
from saelab.cross_layer import CrossLayerTranscoder
from saelab.errors import ConfigError
from saelab.formats.checking import check
from saelab.formats.hub import download, upload, write_card
from saelab.formats.registry import KnownDictionary, find
from saelab.run_folders import dictionary_of
from saelab.sae import SAE
from saelab.store import ActivationStore

__all__ = ["EXPORT", "IMPORT"]


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="a folder or file, or RELEASE/ID of a known public dictionary"
    )
    parser.add_argument("--out", type=Path, default=None, help="save it here, as saelab's own")
    parser.add_argument(
        "--format",
        default="auto",
        help=f"auto, or one of {', '.join(formats.FORMATS)} (default: auto)",
    )
    parser.add_argument("--hook", default=None, help="hook point it reads, if the files do not say")
    parser.add_argument("--hook-out", default=None, help="hook point a transcoder writes")
    parser.add_argument("--layer", type=int, default=None, help="which layer of a set")
    parser.add_argument(
        "--input-scale",
        type=float,
        default=None,
        help="what activations are multiplied by, where the files say only that they are",
    )
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KEY",
        help="an unknown setting that you checked to change no number; repeatable",
    )
    parser.add_argument(
        "--check",
        type=Path,
        default=None,
        metavar="STORE",
        help="measure L0 and explained variance on a harvested store",
    )
    parser.add_argument(
        "--check-tokens", type=int, default=16_384, help="tokens measured (default: 16_384)"
    )
    parser.add_argument(
        "--registry", type=Path, default=None, help="a list of known dictionaries of your own"
    )
    parser.add_argument("--revision", default=None, help="branch, tag or commit on the hub")


def _import(arguments: argparse.Namespace) -> None:
    known = _known(arguments)
    sae = _read(arguments, known)
    for line in _described(sae):
        say(line)
    if known is not None and known.model_settings:
        say(
            f"Note: it was trained on a model loaded with {known.model_settings}; on the model as "
            "published its numbers are worse."
        )
    if arguments.check is not None:
        _check(sae, arguments.check, arguments.check_tokens)
    if arguments.out is not None:
        sae.save(arguments.out)
        say(f"Saved: {arguments.out}")


def _known(arguments: argparse.Namespace) -> KnownDictionary | None:
    """The registry's entry, unless the source is a path or looks like one."""
    source = arguments.source
    is_path = Path(source).expanduser().exists() or source.startswith((".", "/", "~"))
    if is_path or "/" not in source:
        return None
    return find(source, arguments.registry)


def _read(arguments: argparse.Namespace, known: KnownDictionary | None) -> SAE:
    hook, form, scale = arguments.hook, arguments.format, arguments.input_scale
    path = Path(arguments.source)
    if known is not None:
        with Working(f"Fetching {known.repo_id}/{known.path}"):
            path = download(known, arguments.revision)
        hook, scale = hook or known.hook, scale or known.input_scale
        form = known.format if form == "auto" else form
    with Working("Reading"):
        sae = formats.read(
            path,
            form,
            hook=hook,
            hook_out=arguments.hook_out,
            layer=arguments.layer,
            input_scale=scale,
            ignore=arguments.ignore,
        )
    if known is not None:
        about = sae.metadata["imported"]
        about["recorded"] = {**about["recorded"], **known.recorded}
        about["from"] = f"{known.repo_id}/{known.path}"
        about["model_settings"] = known.model_settings
        if sae.metadata["model"]["name"] is None:
            sae.metadata["model"]["name"] = known.model
    return sae


def _described(sae: SAE) -> list[str]:
    about = sae.metadata.get("imported", {"format": "saelab", "recorded": {}})
    places = sae.hook or "an unnamed hook point"
    if sae.is_transcoder:
        places += f" -> {sae.hook_out or 'an unnamed hook point'}"
    model = (sae.metadata.get("model") or {}).get("name") or "not recorded"
    lines = [
        f"{about['format']}: {sae.d_in} -> {sae.d_sae} latents -> {sae.d_out}, {sae.activation}",
        f"Hook point: {places}. Model: {model}.",
    ]
    recorded = about["recorded"]
    if recorded:
        lines.append(
            "Recorded: " + ", ".join(f"{name} {value:g}" for name, value in recorded.items())
        )
    return lines


def _check(sae: SAE, folder: Path, n_tokens: int) -> None:
    with Working("Checking"):
        found = check(sae, ActivationStore.open(folder), n_tokens)
    say(f"On {found.n_tokens:,} tokens of {folder}:")
    rows = (
        ("l0", found.l0, found.recorded_l0, ".1f"),
        (
            "explained variance",
            found.explained_variance,
            found.recorded_explained_variance,
            ".3f",
        ),
    )
    for name, got, recorded, style in rows:
        number = "undefined" if got is None else format(got, style)
        beside = "not recorded" if recorded is None else f"recorded {format(recorded, style)}"
        say(f"  {name:<20}{number:>9}  ({beside})")
    for doubt in found.doubts:
        say(
            f"Doubt: {doubt}. Compare model, hook point, how the model was loaded, and whether "
            "position 0 counts."
        )


IMPORT = Verb(
    name="import",
    summary="Read a dictionary of another library, check it, and save it as saelab's own.",
    example="saelab import downloads/sae --out runs/theirs --check runs/acts",
    add_flags=_add_import,
    run=_import,
)


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=Path,
        nargs="+",
        help="a run folder, or a dictionary's folder; for circuit-tracer one for every layer, or "
        "one cross-layer transcoder",
    )
    parser.add_argument(
        "--format",
        default="saelens",
        help=f"one of {', '.join(formats.FORMATS)} (default: saelens)",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the exported files")
    parser.add_argument(
        "--to-hub",
        default=None,
        metavar="REPO",
        help="also upload them to this repository of a model hub, such as you/your-dictionaries",
    )
    parser.add_argument(
        "--path-in-repo", default="", help="folder in that repository (default: its root)"
    )
    parser.add_argument(
        "--private", action="store_true", help="make the repository private, if it is new"
    )


def _export(arguments: argparse.Namespace) -> None:
    if found := [place for run in arguments.run if (place := _cross_layer_in(run))]:
        _export_cross_layer(arguments, found)
        return
    dictionaries = [dictionary_of(run) for run in arguments.run]
    with Working("Exporting"):
        written = formats.export(dictionaries, arguments.out, arguments.format)
    say(f"{arguments.out}: {', '.join(path.name for path in written)}")
    if arguments.to_hub is None:
        return
    write_card(arguments.out, dictionaries[0], arguments.format)
    with Working(f"Uploading to {arguments.to_hub}"):
        address = upload(
            arguments.out,
            arguments.to_hub,
            path=arguments.path_in_repo,
            private=arguments.private,
        )
    say(f"Uploaded: {address}")


def _cross_layer_in(run: Path) -> Path | None:
    return next((p for p in (run, run / "clt") if CrossLayerTranscoder.is_in(p)), None)


def _export_cross_layer(arguments: argparse.Namespace, holders: list[Path]) -> None:
    if len(arguments.run) > 1 or arguments.format != "circuit-tracer" or arguments.to_hub:
        raise ConfigError(
            f"{holders[0]} is a cross-layer transcoder, which only circuit-tracer has files for: "
            f"saelab export {holders[0]} --format circuit-tracer --out {arguments.out}"
        )
    with Working("Exporting"):
        clt = CrossLayerTranscoder.load(holders[0])
        written = formats.write_cross_layer(clt, arguments.out)
    say(f"{arguments.out}: {', '.join(path.name for path in written)}")


EXPORT = Verb(
    name="export",
    summary="Write a dictionary in another library's format, and to a model hub if asked.",
    example="saelab export runs/topk --format saelens --out runs/topk-saelens",
    add_flags=_add_export,
    run=_export,
)
