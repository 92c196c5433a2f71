"""The verb that pushes latents while the model writes, and says what that changed: `steer`."""

import argparse
from pathlib import Path

from saelab import tokens
from saelab.cli.flags import reader
from saelab.cli.progress import ProgressBar, Working
from saelab.cli.verbs import Verb, add_text, opened_model, say, text_source
from saelab.errors import ConfigError
from saelab.latents import plain
from saelab.models import LanguageModel
from saelab.run_folders import HarvestSource, dictionary_of, held_out_of, store_of
from saelab.sae import SAE
from saelab.steering import (
    Direction,
    Intervention,
    Push,
    PushAlong,
    SideBySide,
    SteeringConfig,
    SteeringReport,
    latent_direction,
    load_interventions,
    measure_steering,
    save_interventions,
    side_by_side,
)
from saelab.steering.output_scores import promoted_words

__all__ = ["STEER"]

PROMPTS = (
    "The weather today is",
    "My friend told me that",
    "In the morning we",
    "The best thing about it is",
    "Last year, the company",
    "She opened the door and",
)
"""What a sweep continues where no prompt is given."""
HELD_OUT_TOKENS, HELD_OUT_ROWS = 64, 4


def _add_steer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="a run folder, or a dictionary's folder")
    parser.add_argument(
        "--latent", type=int, action="append", metavar="N", help="a latent to push; repeatable"
    )
    parser.add_argument(
        "--strength",
        type=reader(float),
        action="append",
        metavar="X",
        help="how far, in the latent's own units, below 0 for the other way; one for each "
        "--latent, or one for all. With --sweep: in multiples of the mean |h|, repeatable",
    )
    parser.add_argument(
        "--prompt", action="append", metavar="TEXT", help="a text to continue; repeatable"
    )
    parser.add_argument(
        "--max-new-tokens", type=int, default=40, help="tokens to write (default: 40)"
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="a JSON file of interventions: written with --latent, read without",
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="measure several strengths, and random pushes as controls, and write a page",
    )
    parser.add_argument(
        "--word",
        action="append",
        metavar="WORD",
        help="a word of the concept a sweep looks for; repeatable (default: the words the "
        "latent promotes)",
    )
    parser.add_argument(
        "--out", type=Path, help="where a sweep's page goes (default: RUN/steering/latent-N.html)"
    )
    add_text(parser, "the text the harvest held out")
    parser.add_argument("--model", default=None, help="the model to run (default: the harvest's)")
    parser.add_argument("--device", default=None, help="where the model computes")


def _steer(arguments: argparse.Namespace) -> None:
    sae = dictionary_of(arguments.run)
    if arguments.sweep:
        _sweep(arguments, sae)
        return
    if not arguments.prompt:
        raise ConfigError('saelab steer needs a text to continue: --prompt "..."')
    interventions = _interventions(arguments, sae)
    model = _model(arguments)
    for prompt in arguments.prompt:
        with Working("Writing"):
            found = side_by_side(
                model, interventions, prompt, max_new_tokens=arguments.max_new_tokens
            )
        _show(found)
    if arguments.recipe is not None and arguments.latent:
        save_interventions(arguments.recipe, interventions)
        say(f"{arguments.recipe}: the recipe; saelab steer {arguments.run} --recipe reads it.")


def _interventions(arguments: argparse.Namespace, sae: SAE) -> list[Intervention]:
    if arguments.latent:
        strengths = arguments.strength or []
        if len(strengths) == 1:
            strengths = strengths * len(arguments.latent)
        if len(strengths) != len(arguments.latent):
            raise ConfigError(
                f"{len(arguments.latent)} latents and {len(strengths)} strengths were given: give "
                "one --strength for all latents, or one for each, in the same order."
            )
        return [Push(sae, dict(zip(arguments.latent, strengths, strict=True)))]
    if arguments.recipe is None:
        raise ConfigError("Nothing to push: give --latent N --strength X, or --recipe FILE.")
    return load_interventions(arguments.recipe, [sae])


def _model(arguments: argparse.Namespace) -> LanguageModel:
    source = arguments.model
    return opened_model(source or HarvestSource.of(store_of(arguments.run)).model, arguments.device)


def _show(found: SideBySide) -> None:
    say(plain(found.prompt))
    for name, text in (("clean", found.clean), ("steered", found.steered)):
        say(f"  {name:<8} {plain(text)}")
    say("  next token, most changed first:")
    for one in found.next_tokens:
        say(f"    {one.clean:7.2%} -> {one.steered:7.2%}  {plain(one.token)!r}")
    say(
        f"  KL(clean || steered): {found.kl_prompt:.3f} nats after the prompt, "
        f"{found.kl_text:.3f} over the steered text"
    )
    say(
        f"  perplexity under the unsteered model: {found.perplexity_steered:,.1f} steered, "
        f"{found.perplexity_clean:,.1f} clean"
    )
    say()


def _sweep(arguments: argparse.Namespace, sae: SAE) -> None:
    directions = _directions(arguments, sae)
    model = _model(arguments)
    words = arguments.word or promoted_words(model, directions[0])
    config = SteeringConfig(
        strengths=tuple(arguments.strength or SteeringConfig().strengths),
        max_new_tokens=arguments.max_new_tokens,
    )
    page = arguments.out or arguments.run / "steering" / f"{_file_name(directions[0])}.html"
    with ProgressBar("Steering", unit="point") as bar:
        report = measure_steering(
            model,
            directions,
            prompts=arguments.prompt or PROMPTS,
            concept=words,
            held_out=_held_out(arguments, model),
            sae=sae,
            config=config,
            folder=page.with_suffix("") / "points",
            progress=bar,
        )
    report.save(page.with_suffix(".json"))
    report.save_html(page)
    _summary(report, words)
    say(f"{page}: the page; {page.with_suffix('.json').name} beside it holds the numbers.")


def _directions(arguments: argparse.Namespace, sae: SAE) -> list[Direction]:
    if arguments.latent:
        return [latent_direction(sae, latent) for latent in arguments.latent]
    if arguments.recipe is None:
        raise ConfigError("Nothing to sweep: give --latent N, or --recipe FILE.")
    found: list[Direction] = []
    for one in load_interventions(arguments.recipe, [sae]):
        if isinstance(one, PushAlong):
            found.append(one.direction)
        elif isinstance(one, Push):
            found += [latent_direction(one.sae, latent) for latent in one.values]
    if not found:
        raise ConfigError(f"{arguments.recipe} pushes nothing: a sweep needs pushes.")
    return found


def _held_out(arguments: argparse.Namespace, model: LanguageModel) -> list[str]:
    """A few rows of --text, or of the text that was held out, as text."""
    if arguments.text is None:
        found = held_out_of(store_of(arguments.run))
    else:
        found = tokens.from_text(model, text_source(arguments.text), length=HELD_OUT_TOKENS)
    rows = found.ids[:HELD_OUT_ROWS, :HELD_OUT_TOKENS].tolist()
    return [model.decode([i for i in row if i not in model.special_token_ids]) for row in rows]


def _file_name(direction: Direction) -> str:
    return "".join(one if one.isalnum() else "-" for one in direction.name)


def _summary(report: SteeringReport, words: list[str]) -> None:
    say(f"Concept: {', '.join(plain(word) for word in words)}")
    head = ("direction", "strength", "score of 2", "gain", "CE held out", "perplexity")
    say(f"{head[0]:<24}" + "".join(f"{name:>13}" for name in head[1:]))
    for curve in report.curves:
        chosen = report.chosen(curve)
        point = curve.at(chosen.strength)
        numbers = (
            f"{chosen.strength:g}",
            f"{chosen.score:.2f}",
            f"{report.gain(point):+.2f}",
            f"{report.ce_change(point):+.3f}",
            f"{point.perplexity:.1f}",
        )
        say(f"{plain(curve.name):<24}" + "".join(f"{number:>13}" for number in numbers))


STEER = Verb(
    name="steer",
    summary="Push latents while the model writes, and see what changes and what it costs.",
    example='saelab steer runs/topk --latent 123 --strength 8 --prompt "The weather today is"',
    add_flags=_add_steer,
    run=_steer,
)
