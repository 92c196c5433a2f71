r"""Which neurons or latents are dead, detect a token or an n-gram, or follow the position?

    python -m probes.neuron_roles --layer 15
    python -m probes.neuron_roles --dictionary runs/quickstart/topk \
        --out runs/quickstart/topk/roles.json

Neurons of gated MLPs are never exactly zero, so one counts as firing where its contribution
|a_i| |w_i| is beyond the threshold at which dropping the rest of this layer costs p percent of
perplexity (Luo et al. 2024, Sparsing Law); the threshold and the share active are printed. Latents
fire where they are not zero. The roles are those of Voita et al. 2023, Neurons in Large Language
Models: Dead, N-gram, Positional; how many units the shuffled text gives each role is printed beside
them, and "dead" always means: on so many tokens. Kept as roles.json in the folder of a run, they
are shown by the explorer on the page of its latents.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from saelab import tokens as token_rows
from saelab.cli.flags import Parser, add_flags, from_flags, parse
from saelab.cli.outcomes import run
from saelab.cli.progress import ProgressBar
from saelab.cli.verbs import add_model, add_text, opened_model, say, text_source
from saelab.errors import ConfigError
from saelab.models import LanguageModel
from saelab.probing import (
    Firings,
    MlpLayer,
    RoleConfig,
    Roles,
    find_roles,
    save_roles,
    sparsity_profile,
)
from saelab.run_folders import dictionary_of
from saelab.sae import SAE
from saelab.sparse_codes import SparseCodes


def main(argv: Sequence[str] | None = None) -> int:
    """Run the probe."""

    def work() -> None:
        asked = parse(flags(), argv)
        if (asked.layer is None) == (asked.dictionary is None):
            raise ConfigError("Name either --layer, for its neurons, or --dictionary.")
        config = from_flags(RoleConfig, asked)
        model = opened_model(asked.model, asked.device)
        text = token_rows.from_text(
            model,
            text_source(asked.text),
            length=asked.length,
            max_tokens=asked.max_tokens,
            seed=config.seed,
        )
        if asked.dictionary is not None:
            sae = dictionary_of(asked.dictionary)
            encode, hook, d = sae.encode, sae.hook or "", _written(sae, model)
        else:
            encode, hook, d = neurons_of(model, asked.layer, text.ids.long(), asked.p)
        counts = text.kept.clone()
        counts[:, 0] = False
        codes = read(model, hook, encode, text.ids.long(), counts)
        firings = Firings.of_rows(codes, text.ids, counts, text.document)
        effects = None if d is None else lambda units: model.logit_effects(d[list(units)])
        found = find_roles(firings, config, effects)
        shuffled = find_roles(mixed(firings, config.seed), config)
        for line in report(model, found, shuffled, hook, asked.show):
            say(line)
        if asked.out is not None:
            save_roles(asked.out, hook, found, shuffled, model.decode)
            say(f"All units: {asked.out}")

    return run(work)


def flags() -> argparse.ArgumentParser:
    """What may follow the program's name."""
    parser = Parser(prog="python -m probes.neuron_roles", description=__doc__)
    parser.add_argument("--layer", type=int, help="the block whose neurons are looked at")
    parser.add_argument("--dictionary", type=Path, help="a run whose latents are looked at instead")
    parser.add_argument("--out", type=Path, help="JSON file of every unit")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row (128)")
    parser.add_argument("--max-tokens", type=int, default=50_000, help="tokens read (50_000)")
    parser.add_argument("--p", type=float, default=1.0, help="percent of perplexity (1)")
    parser.add_argument("--show", type=int, default=10, help="detectors shown (10)")
    add_model(parser)
    add_text(parser)
    add_flags(parser, RoleConfig)
    return parser


def neurons_of(
    model: LanguageModel, layer: int, ids: Int[Tensor, "row pos"], p: float
) -> tuple[Callable[[Tensor], SparseCodes], str, Float[Tensor, "neuron d"]]:
    """How a layer's neurons become codes, their hook point, and what each writes."""
    hook = f"blocks.{layer}.mlp.hook_post"
    W_out = output_weights(model, hook)
    with ProgressBar("Finding the threshold", unit="step") as bar:
        profile = sparsity_profile(
            model, [MlpLayer(hook=hook, W_out=W_out)], ids[:8], p=p, tolerance=2e-3, max_steps=8,
            progress=bar,
        )  # fmt: skip
    point, norms = profile.point, W_out.norm(dim=1)
    threshold = point.thresholds[hook]
    say(
        f"At {p:g} % more perplexity ({100 * (point.ppl_ratio - 1):.2f} % reached), "
        f"{point.ratio:.1%} of the neurons are active: |a||w| >= {threshold:.3g}, "
        f"CETT {point.cett:.3f}."
    )

    def encode(x: Tensor) -> SparseCodes:
        return SparseCodes.from_dense(torch.where(x.abs() * norms >= threshold, x, 0.0).float())

    return encode, hook, W_out


def output_weights(model: LanguageModel, hook: str) -> Float[Tensor, "neuron d"]:
    """What one unit of each neuron writes, from the module whose input the hook point is.

    Raises:
        ConfigError: The hook point is no such input.
    """
    point = model.hook_point(hook)
    root = getattr(model, "module", None)
    if point.side != "input" or not isinstance(root, nn.Module) or point.width is None:
        raise ConfigError(f"The output weights behind {hook} of {model.name} are not known.")
    weight = root.get_submodule(point.module).weight
    if not isinstance(weight, Tensor) or point.width not in weight.shape:
        raise ConfigError(f"{point.module} of {model.name} has no weight of {point.width} neurons.")
    # nn.Linear keeps [out, in]; GPT-2's Conv1D keeps [in, out]
    rows = weight if type(root.get_submodule(point.module)).__name__ == "Conv1D" else weight.T
    return rows.detach().float().cpu()


def _written(sae: SAE, model: LanguageModel) -> Float[Tensor, "latent d"] | None:
    """Decoder directions in the model's units, if they are in the residual stream."""
    directions = sae.W_dec.detach().float() / sae.normalization.scale_out
    return directions if directions.shape[1] == model.d_model else None


def read(
    model: LanguageModel,
    hook: str,
    encode: Callable[[Tensor], SparseCodes],
    ids: Int[Tensor, "row pos"],
    counts: Bool[Tensor, "row pos"],
    rows_per_batch: int = 16,
) -> SparseCodes:
    """Codes of the tokens that count, row by row."""
    parts = []
    with ProgressBar("Reading", unit="row") as bar:
        for start in range(0, len(ids), rows_per_batch):
            some = slice(start, start + rows_per_batch)
            x = model.activations(ids[some], [hook])[hook]
            parts.append(encode(x[counts[some].to(x.device)].cpu()).to("cpu"))
            bar(min(start + rows_per_batch, len(ids)), len(ids))
    return SparseCodes.cat(parts)


def mixed(firings: Firings, seed: int) -> Firings:
    """The control: the same tokens at the same places, with the codes of other tokens."""
    order = torch.randperm(firings.n_tokens, generator=torch.Generator().manual_seed(seed))
    codes = firings.codes
    mixed_codes = SparseCodes.from_pairs(
        order[codes.tokens.long()], codes.indices.long(), codes.values, codes.n_tokens, codes.d_sae
    )
    return Firings(mixed_codes, firings.ids, firings.row, firings.position, firings.document)


def report(model: LanguageModel, found: Roles, shuffled: Roles, hook: str, show: int) -> list[str]:
    """The counts, and some detectors with their triggers."""
    n = len(found.units)
    lines = [f"{n:,} units of {hook} on {found.n_tokens:,} tokens", ""]
    lines.append(f"{'role':12}{'units':>8}{'share':>9}{'shuffled':>10}")
    control = shuffled.counts()
    for role, count in found.counts().items():
        lines.append(f"{role:12}{count:>8,}{count / n:>9.1%}{control[role]:>10,}")
    detectors = [one for one in found.units if one.triggers]
    known = [one for one in detectors if one.trigger_effect is not None]
    if known:
        share = len(found.suppressors) / len(known)
        lines.append(f"{share:.0%} of {len(known):,} detectors lower the logits of their triggers.")
    ranked = sorted(known or detectors, key=lambda one: one.trigger_effect or 0.0)
    half = (show + 1) // 2
    shown = ranked if len(ranked) <= show else [*ranked[:half], *ranked[-(show - half) :]]
    for one in shown:
        words = ", ".join(repr(model.decode(list(gram))) for gram in one.triggers)
        effect = "" if one.trigger_effect is None else f", effect {one.trigger_effect:+.2f}"
        lines.append(f"{one.role} {one.unit}: {words} ({one.density:.2%} of tokens{effect})")
    return lines


if __name__ == "__main__":
    sys.exit(main())
