"""What does each head of a layer do for the latents of an attention dictionary?

    saelab harvest --hook blocks.15.attn.hook_z --out runs/acts
    python -m trainers.attention_output runs/acts runs/attention
    python -m probes.head_roles runs/attention

Every active latent of a dictionary of heads' outputs gets its value from source positions, through
heads. Printed for every head, over rows of a text:

    adds       its part of what all heads add, 0 to 1
    weights    its mean part of the decoder rows, by length: what latents write, not what they read
    role       the kind of source that holds half of it and twice its chance, or mixed
    kinds      the part of each kind of source, signed; chance has it with every position alike

With --repeated every row is its own first half twice, where a head that looks for what followed an
earlier occurrence of a token can show itself. After Kissane et al. 2024 (arXiv 2406.17759).
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from saelab.attention_circuits import HeadRole, decoder_shares, head_roles
from saelab.attention_circuits.roles import KINDS
from saelab.cli.flags import Parser, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import Working
from saelab.cli.verbs import add_model, add_text, opened_model, say, text_source
from saelab.errors import ConfigError
from saelab.run_folders import dictionary_of
from saelab.tokens import from_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""

    def work() -> None:
        asked = parse(_flags(), argv)
        if asked.rows < 1 or asked.length < 4:
            raise ConfigError(
                f"--rows {asked.rows} --length {asked.length}: at least one row of four tokens."
            )
        sae, model = dictionary_of(asked.run), opened_model(asked.model, asked.device)
        budget = asked.rows * asked.length
        text = from_text(
            model, text_source(asked.text), length=asked.length, max_tokens=budget, seed=asked.seed
        )
        rows = text.ids[: asked.rows]
        rows = repeated(rows) if asked.repeated else rows
        with Working("Running the model"):
            found = head_roles(model, sae, rows)
        say(f"{sae.hook}, {sae.d_sae:,} latents; {len(rows)} rows of {rows.shape[1]} tokens")
        for line in table(found, decoder_shares(sae, len(found)).mean(0)):
            say(line)

    return run(work)


def repeated(rows: Int[Tensor, "row pos"]) -> Int[Tensor, "row same_pos"]:
    """Each row's first token, then half of the others twice.

    >>> repeated(torch.tensor([[0, 1, 2, 3, 4]])).tolist()
    [[0, 1, 2, 1, 2]]
    """
    half = rows[:, 1 : 1 + (rows.shape[1] - 1) // 2]
    return torch.cat([rows[:, :1], half, half], dim=1)


def table(found: Sequence[HeadRole], weights: Float[Tensor, " head"]) -> list[str]:
    """One line a head in Markdown, and one for what chance would give."""
    lines = [
        f"| head | adds | weights | role | {' | '.join(KINDS)} |",
        "|" + "---|" * (len(KINDS) + 4),
    ]
    for one, weight in zip(found, weights.tolist(), strict=True):
        kinds = " | ".join(f"{one.shares()[kind]:+.2f}" for kind in KINDS)
        lines.append(f"| {one.head} | {one.share:.2f} | {weight:.2f} | {one.role()} | {kinds} |")
    chance = " | ".join(f"{found[0].chance[kind]:.2f}" for kind in KINDS)
    return [*lines, f"| chance | | | | {chance} |"]


def _flags() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m probes.head_roles", description=__doc__)
    parser.add_argument("run", type=Path, help="run of a dictionary of attn.hook_z")
    parser.add_argument("--rows", type=int, default=64, help="rows of text (64)")
    parser.add_argument("--length", type=int, default=128, help="tokens in a row (128)")
    parser.add_argument("--seed", type=int, default=1, help="which documents are read (1)")
    parser.add_argument("--repeated", action="store_true", help="every row's first half twice")
    add_model(parser)
    add_text(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
