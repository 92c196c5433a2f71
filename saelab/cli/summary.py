"""What do the numbers of an evaluation mean, in a line each?"""

from saelab.evaluation import Evaluation

__all__ = ["evaluation_lines"]


def evaluation_lines(report: Evaluation) -> list[str]:
    """The headline numbers, each with its meaning; what is not known is left out."""
    one, losses = report.reconstruction, report.losses
    rows: list[tuple[str, str, str]] = []
    if report.fvu is not None:
        meaning = "of the activations' variance is missed by the reconstruction (0 is perfect)"
        rows.append(("fvu", f"{report.fvu:.4f}", meaning))
    if one.cosine is not None:
        rows.append(("cosine", f"{one.cosine:.4f}", "between activation and reconstruction"))
    if report.l0 is not None:
        d_sae = report.dictionary["d_sae"]
        rows.append(("l0", f"{report.l0:.1f}", f"of {d_sae:,} latents are active on a token"))
    if report.dead_share is not None:
        meaning = f"of the latents fired on none of these {one.n_tokens:,} tokens"
        rows.append(("dead", f"{report.dead_share:.2%}", meaning))
    if losses is not None:
        rows += _loss_rows(report)
    width = max(len(name) for name, _, _ in rows)
    lines = [f"  {name:<{width}}  {value:>9}  {meaning}" for name, value, meaning in rows]
    return [*lines, *(f"  Note: {note}" for note in report.warnings)]


def _loss_rows(report: Evaluation) -> list[tuple[str, str, str]]:
    losses = report.losses
    assert losses is not None
    rows = [
        (
            "loss",
            f"{losses.ce_spliced:.3f}",
            f"nats per token with the reconstruction in place; {losses.ce_clean:.3f} without, "
            f"{losses.ce_zero:.3f} with zeros, {losses.ce_mean:.3f} with the mean",
        )
    ]
    for name, value in (
        ("zeros", report.ce_recovered_zero),
        ("the mean", report.ce_recovered_mean),
    ):
        if value is not None:
            meaning = f"of the loss that {name} in its place would cost is saved"
            rows.append(("recovered", f"{value:.4f}", meaning))
    rows.append(("kl", f"{losses.kl_spliced:.4f}", "nats from the model's own predictions"))
    return rows
