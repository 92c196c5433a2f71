"""The verb that lets a language model describe latents and judge its descriptions: `explain`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from saelab.atlas import Atlas, Endpoint, ExplainConfig, explain, explain_cost
from saelab.cli.flags import add_flags, from_flags
from saelab.cli.progress import ProgressBar, Working
from saelab.cli.verbs import Verb, say
from saelab.errors import ConfigError

if TYPE_CHECKING:
    import pandas

__all__ = ["EXPLAIN", "numbered"]

N_SHOWN = 10


def _add_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder with an atlas, or an atlas's folder")
    parser.add_argument(
        "--latents",
        required=True,
        metavar="WHICH",
        help="numbers and ranges such as 3,14,20-29; 'starred'; 'all'; or a condition on the "
        "atlas's columns such as 'density < 0.001'",
    )
    parser.add_argument(
        "--endpoint",
        required=True,
        metavar="URL",
        help="address of an OpenAI-compatible service, such as http://localhost:11434/v1; the "
        "texts of examples are sent there",
    )
    parser.add_argument(
        "--judge-endpoint", metavar="URL", help="another service for judging (default: --endpoint)"
    )
    parser.add_argument(
        "--judge-model", metavar="NAME", help="another model for judging (default: --model)"
    )
    parser.add_argument(
        "--yes", action="store_true", help="send; without it only the cost is shown"
    )
    add_flags(parser, Endpoint, skip=("url",))
    add_flags(parser, ExplainConfig)


def _explain(arguments: argparse.Namespace) -> None:
    config = from_flags(ExplainConfig, arguments)
    endpoint = from_flags(Endpoint, arguments, url=arguments.endpoint)
    judge = from_flags(
        Endpoint,
        arguments,
        url=arguments.judge_endpoint or arguments.endpoint,
        model=arguments.judge_model or endpoint.model,
    )
    atlas = _atlas_of(arguments.run)
    latents = _chosen(atlas, arguments.latents)
    with Working("Counting what would be sent"):
        cost = explain_cost(atlas, endpoint, latents, config, judge)
    to = endpoint.url if judge.url == endpoint.url else f"{endpoint.url} and {judge.url}"
    say(f"{len(latents):,} latent{'s' if len(latents) != 1 else ''} of {atlas.folder}, to {to}")
    say(cost.describe())
    if cost.requests and not arguments.yes:
        say("Nothing was sent. Add --yes to send it.")
        return
    with ProgressBar("Explaining", unit="side") as bar:
        table = explain(atlas, endpoint, latents, config, judge, bar)
    _report(table, config)


def _atlas_of(run: Path) -> Atlas:
    return Atlas.open(run if (run / "atlas.json").exists() else run / "atlas")


def _chosen(atlas: Atlas, which: str) -> list[int]:
    """The latents that `--latents` means; dead ones are left out of all but a list of numbers."""
    if which[:1].isdecimal():
        return numbered(which, atlas.d_sae)
    condition = {"all": "true", "starred": "starred"}.get(which, which)
    found = atlas.latents(f"count > 0 AND ({condition})")["latent"].tolist()
    if not found:
        raise ConfigError(
            f"--latents {which!r} selects no latent that fires. Give numbers such as 3,14,20-29, "
            "'all', or another condition."
        )
    return found


def numbered(which: str, d_sae: int) -> list[int]:
    """The latents of a list of numbers and ranges, in order, each once.

    >>> numbered("3, 14, 5-7, 6", 20)
    [3, 14, 5, 6, 7]

    Raises:
        ConfigError: It is not such a list, or names a latent that the dictionary does not have.
    """
    found: dict[int, None] = {}
    for part in which.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        last = last if dash else first
        if not (first.isdecimal() and last.isdecimal()) or int(first) > int(last):
            raise ConfigError(
                f"--latents {which!r}: {part!r} is neither a number nor a range such as 20-29."
            )
        if int(last) >= d_sae:
            raise ConfigError(
                f"--latents {which!r}: there is no latent {last}; the dictionary has 0 to "
                f"{d_sae - 1}."
            )
        found |= dict.fromkeys(range(int(first), int(last) + 1))
    return list(found)


def _report(table: "pandas.DataFrame", config: ExplainConfig) -> None:
    say(f"{len(table):,} sides described.")
    for name in config.scorers:
        scored = table[name].dropna()
        mean = f"mean {scored.mean():.2f}" if len(scored) else "no score"
        say(f"  {name:<12}{mean} over {len(scored):,} of them")
    for row in table.head(N_SHOWN).to_dict("records"):
        side = "-" if row["sign"] < 0 else " "
        text = "".join(one if one.isprintable() else "�" for one in str(row["text"]))
        say(f"  {side}{row['latent']:>6}  {text}")
    if len(table) > N_SHOWN:
        say(f"  and {len(table) - N_SHOWN:,} more: saelab explore shows them.")


EXPLAIN = Verb(
    name="explain",
    summary="Let a language model describe latents of an atlas, and judge the descriptions.",
    example="saelab explain runs/topk --latents 3,14,20-29 --endpoint http://localhost:11434/v1 "
    "--model qwen3:8b",
    add_flags=_add_explain,
    run=_explain,
)
