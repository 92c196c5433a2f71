"""What do ten latents mean that nobody picked? A page of them, unclear ones included.

    python -m probes.ten_latents runs/quickstart/topk/atlas --out docs/ten_latents.md

The rule: of the latents that fire on at least 20 measured tokens and on no more than one in a
hundred, ten drawn at random with seed 0, shown in the order of their numbers. Labels are the
automatic ones with the highest score, and the score stands beside each; nothing is edited.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from saelab.atlas import Atlas, Example, LatentCard
from saelab.errors import DataError

WHERE = "count >= 20 AND density <= 0.01"
N_LATENTS = 10
N_EXAMPLES = 3
SHOWN = 9
"""Tokens shown before and after a peak."""


def main(argv: Sequence[str] | None = None) -> int:
    """Draw ten latents and write the page."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0],
        epilog="example: python -m probes.ten_latents runs/quickstart/topk/atlas --out ten.md",
    )
    parser.add_argument("atlas", type=Path, help="folder of an atlas")
    parser.add_argument("--out", type=Path, default=None, help="where the page goes (printed)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw (0)")
    arguments = parser.parse_args(argv)
    text = page(Atlas.open(arguments.atlas), arguments.seed)
    if arguments.out is None:
        print(text)
    else:
        arguments.out.write_text(text, encoding="utf-8")
        print(arguments.out)
    return 0


def page(atlas: Atlas, seed: int = 0) -> str:
    """The whole page as Markdown."""
    found = sorted(int(i) for i in atlas.latents(WHERE)["latent"])
    if len(found) < N_LATENTS:
        raise DataError(
            f"Only {len(found)} latents of {atlas.folder} fire often enough; "
            f"{N_LATENTS} are needed. Build the atlas on more text."
        )
    drawn = sorted(random.Random(seed).sample(found, N_LATENTS))
    about = atlas.about
    lead = (
        f"Of the {atlas.d_sae:,} latents of {about['hook']} of {_name(about['model'])}, "
        f"{len(found):,} fire on at least 20 of the {atlas.n_tokens:,} measured tokens and on no "
        "more than one in a hundred. These ten were drawn from them at random with seed "
        f"{seed}. Labels are automatic, and the score beside each says how well it does: F1 of the "
        "tokens it names, balanced accuracy of the contexts, or the z of the tokens it promotes. "
        "Where it is low, or the examples have little in common, the latent is unclear."
    )
    parts = [f"# Ten latents, drawn at random\n\n{lead}\n\nMade by `python -m probes.ten_latents`."]
    parts += [_section(atlas.latent(latent)) for latent in drawn]
    return "\n\n".join(parts) + "\n"


def _section(card: LatentCard) -> str:
    tail = card.positive
    best = next((one for one in tail.labels if one.text == card.label), None)
    score = f"{best.score:.2f} {best.score_name}, {best.kind}" if best and best.score else "none"
    promoted = " ".join(_code(one.token) for one in tail.promoted[:6]) or "not known"
    lines = [
        f"## Latent {card.latent}: {_plain(card.label) or 'no label'}",
        "",
        f"Score {score}. Fires on 1 in {round(1 / card.density):,} tokens, at most {card.max:.2f}; "
        f"in {tail.n_documents:,} documents. Promotes {promoted}.",
        "",
    ]
    lines += [f"- {one.strength:.2f}: {_example(one)}" for one in tail.top()[:N_EXAMPLES]]
    return "\n".join(lines)


def _example(one: Example) -> str:
    before = "".join(one.tokens[max(0, one.peak - SHOWN) : one.peak])
    after = "".join(one.tokens[one.peak + 1 : one.peak + 1 + SHOWN])
    return f"…{_plain(before)} **{_plain(one.tokens[one.peak]).strip()}** {_plain(after)}…"


def _name(model: object) -> str:
    return str(model.get("name")) if isinstance(model, dict) else str(model)


def _plain(text: str) -> str:
    """Text that Markdown will not act on, in one line."""
    quoted = "".join(f"\\{c}" if c in "\\`*_{}[]<>#|~$" else c for c in text)
    return " ".join(quoted.split())


def _code(token: str) -> str:
    return f"`{token.strip().replace('`', ' ') or '␣'}`"


if __name__ == "__main__":
    sys.exit(main())
