"""Learn which latents to push so that one kind of answer is preferred to another.

    loss = -log sigmoid( m beta (delta - delta_0) )       delta = log P(chosen) - log P(rejected)

YaPO (MBZUAI-Paris/YaPO) learns v over the latents of a frozen dictionary and pushes
h + D (relu(f + m v) - f); BiPO, Cao et al. 2024, "Personalized steering of large language models:
versatile steering vectors through bi-directional preference optimization", is `--dense`: v in the
model's own space. Different: one process, short rows, and for a signed dictionary the pushed code
is selected again (`--keep select`), for relu would drop its negative latents. PAIRS is a .jsonl
file of objects with prompt, chosen and rejected. The push is written as a recipe, which
`saelab steer RUN --recipe RECIPE` reads.

    python -m trainers.yapo runs/topk pairs.jsonl runs/polite.json --steps 150
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from saelab.cli.flags import Parser, add_flags, from_flags, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import opened_model, say
from saelab.errors import DataError
from saelab.run_folders import HarvestSource, dictionary_of, store_of
from saelab.steering import LearnConfig, Preference, learn_push, save_interventions


def read_pairs(path: Path) -> list[Preference]:
    """Pairs of answers, one JSON object a line.

    Raises:
        DataError: The file is missing, or a line is not such an object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.") from None
    pairs = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            names = ("prompt", "chosen", "rejected")
            pairs.append(Preference(**{name: str(found[name]) for name in names}))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: each line must be a JSON object with prompt, chosen and "
                f"rejected; {type(error).__name__}: {error}."
            ) from None
    return pairs


def main(argv: Sequence[str] | None = None) -> int:
    """Learn a push from the command line."""

    def work() -> None:
        parser = Parser(prog="python -m trainers.yapo", description=__doc__ or "")
        parser.add_argument("run", type=Path, help="folder of a finished training run")
        parser.add_argument("pairs", type=Path, help=".jsonl of prompt, chosen, rejected")
        parser.add_argument("out", type=Path, help="the recipe to write, a .json file")
        parser.add_argument(
            "--dense", action="store_true", help="learn in the model's own space (BiPO)"
        )
        parser.add_argument("--model", default=None, help="the model (default: the harvest's)")
        parser.add_argument("--device", default=None, help="where the model computes")
        add_flags(parser, LearnConfig)
        asked = parse(parser, argv)
        config, pairs = from_flags(LearnConfig, asked), read_pairs(asked.pairs)
        sae = dictionary_of(asked.run)
        source = asked.model or HarvestSource.of(store_of(asked.run)).model
        model = opened_model(source, asked.device)
        with ProgressBar("Learning", unit="update") as bar:
            found = learn_push(
                model,
                pairs,
                sae=None if asked.dense else sae,
                hook=sae.hook_out or sae.hook if asked.dense else None,
                config=config,
                progress=bar,
            )
        save_interventions(asked.out, [found.intervention()])
        last = found.losses[-10:]
        say(
            f"loss {found.losses[0]:.4f} -> {sum(last) / len(last):.4f} nats (mean of the last "
            f"{len(last)} updates); {found.support():,} of {len(found.vector):,} numbers moved."
        )
        say(f"Next: saelab steer {asked.run} --recipe {asked.out} --prompt TEXT")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
