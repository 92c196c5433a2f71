"""Transcoders of all MLPs of a model, from one pass that stores nothing.

Dunefsky, Chlenski, Nanda 2024, "Transcoders find interpretable LLM feature circuits"; with the skip
connection of Paulo, Shabalin, Belrose 2025. What tracing a circuit needs: every layer's stand-in,
trained alike on the same tokens. Interrupt it anywhere and run the same command again; it goes on
exactly there.

    python -m trainers.transcoder_set runs/set --preset ci             # two layers, a few minutes
    python -m trainers.transcoder_set runs/set --tokens 1_000_000 --d-sae 4608
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from saelab.cli.flags import Parser, add_flags, from_flags, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import add_model, add_text, opened_model, say, text_source
from saelab.files import write_bytes, write_json
from saelab.tokens import from_text
from saelab.transcoder_sets import TranscoderSetConfig, load_set, measure_set, train_set
from saelab.transcoder_sets_page import set_page, set_table

PRESETS = {
    "full": {},
    "ci": {
        "layers": (0, 1),
        "d_sae": 256,
        "k": 16,
        "tokens": 4096,
        "batch_size": 256,
        "window_tokens": 2048,
        "start_tokens": 1024,
    },
}
"""Settings that flags may still change."""
TEXT = {"full": 2_000_000, "ci": 60_000}
"""Tokens of text read, training and held-out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program."""

    def work() -> None:
        parser = Parser(prog="python -m trainers.transcoder_set", description=__doc__)
        parser.add_argument("out", type=Path, help="folder of the set")
        parser.add_argument(
            "--preset", choices=list(PRESETS), default="full", help="where flags start"
        )
        parser.add_argument("--max-text", type=int, help="tokens of text read")
        parser.add_argument("--length", type=int, default=128, help="tokens in a row")
        parser.add_argument("--held-out", type=float, default=0.05, help="share kept for measuring")
        parser.add_argument("--measure-rows", type=int, default=16, help="rows for the losses")
        add_model(parser)
        add_text(parser)
        add_flags(parser, TranscoderSetConfig)
        arguments = parse(parser, argv)
        for name, value in PRESETS[arguments.preset].items():
            if not hasattr(arguments, name):
                setattr(arguments, name, value)
        config = from_flags(TranscoderSetConfig, arguments)
        model = opened_model(arguments.model, arguments.device)
        tokens, held_out = from_text(
            model,
            text_source(arguments.text),
            length=arguments.length,
            max_tokens=arguments.max_text or TEXT[arguments.preset],
            seed=config.seed,
        ).split(arguments.held_out)
        with ProgressBar("Training") as bar:
            train_set(model, tokens, arguments.out, config, progress=bar)
        with ProgressBar("Measuring") as bar:
            quality = measure_set(
                model,
                load_set(arguments.out),
                held_out,
                replacement_rows=arguments.measure_rows,
                progress=bar,
            )
        write_json(arguments.out / "quality.json", quality.to_json())
        html = set_page(quality, model.name, config)
        write_bytes(arguments.out / "quality.html", html.encode())
        for line in set_table(quality):
            say(line)
        say(f"Page: {arguments.out / 'quality.html'}")

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
