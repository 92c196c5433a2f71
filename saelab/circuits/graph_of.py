"""How does what was attributed become a graph of nodes and edges?

    latent          {layer}_{latent}_{position}
    error           {layer}_error_{place}_{position}, and {layer}_rest_{place}_{position} for the
                    active latents beyond the budget
    token           E_{token}_{position}
    position        P_{position}, one for all embeddings of the position
    bias            {layer}_bias_{place}, a dictionary's b_dec at all positions; bias, the model's
                    biases and the latents' b_enc
    logit, target   logit_{token}, target_{number}

Place is the part of the hook point's name that says what is written there: mlp_out, resid_post.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from saelab.circuits.attribution import Attribution
from saelab.circuits.replacement import LocalReplacement
from saelab.circuits.targets import LogitTarget
from saelab.graphs import AttributionGraph, Node

__all__ = ["graph_of"]


def graph_of(
    replacement: LocalReplacement,
    targets: Sequence[LogitTarget],
    found: Attribution,
    metadata: Mapping[str, Any],
) -> AttributionGraph:
    """The graph of targets and traced latents; sources that add nothing anywhere are left out."""
    latents = _latent_nodes(replacement, found)
    others, columns = _source_nodes(replacement, found)
    used = columns.abs().amax(dim=0) > 0
    used |= torch.tensor([node.kind == "token" for node in others], device=used.device)
    kept = used.nonzero().flatten()
    sources = [*latents, *(others[int(at)] for at in kept)]
    read_outs = _target_nodes(replacement, targets, found)
    # Row: targets, then latents. Column: traced latents, then what is no read-out.
    table = torch.cat([found.contributions.latents[:, found.traced], columns[:, kept]], dim=1).cpu()
    row, column = table.nonzero(as_tuple=True)
    place_of_row = torch.cat(
        [len(sources) + torch.arange(len(read_outs)), torch.arange(len(latents))]
    )
    nodes = (*sources, *read_outs)
    totals = torch.full((len(nodes),), torch.nan, dtype=torch.float64)
    totals[place_of_row] = found.totals.double().cpu()
    weights = torch.zeros(len(nodes), dtype=torch.float64)
    weights[len(sources) :] = weights.new_tensor([target.weight for target in targets])
    ids = replacement.tokens.tolist()
    return AttributionGraph(
        nodes=nodes,
        source=column,
        target=place_of_row[row],
        weight=table[row, column],
        totals=totals,
        weights=weights,
        tokens=tuple(replacement.model.token_strings(ids)),
        token_ids=tuple(ids),
        metadata=dict(metadata),
    )


def _latent_nodes(replacement: LocalReplacement, found: Attribution) -> list[Node]:
    layers, latents = replacement.dictionaries.layers, replacement.latents
    shared = len({layer.layer for layer in layers}) < len(layers)
    nodes = []
    for at in found.traced.tolist():
        layer = layers[int(latents.site[at])]
        position, index = int(latents.position[at]), int(latents.index[at])
        # Two dictionaries of one block need names that tell them apart.
        prefix = f"{layer.layer}_{_place(layer.writes[0])}" if shared else str(layer.layer)
        nodes.append(
            Node(
                id=f"{prefix}_{index}_{position}",
                kind="latent",
                layer=layer.layer,
                position=position,
                index=index,
                value=float(latents.value[at]),
                hook=layer.hook,
            )
        )
    return nodes


def _source_nodes(
    replacement: LocalReplacement, found: Attribution
) -> tuple[list[Node], Float[Tensor, "readout source"]]:
    """Everything that nothing explains, and what it adds to every row."""
    parts, ids = found.contributions, replacement.tokens.tolist()
    n_pos = len(ids)
    nodes: list[Node] = []
    columns = [_beyond_budget(replacement, found).flatten(1)]
    for layer in replacement.dictionaries.layers:
        place = _place(layer.writes[0])
        nodes += [
            Node(
                id=f"{layer.layer}_rest_{place}_{position}",
                kind="error",
                layer=layer.layer,
                position=position,
                label="latents beyond the budget",
                hook=layer.hook,
            )
            for position in range(n_pos)
        ]
    for cut in replacement.cuts:
        layer = _layer_of(replacement, cut)
        written = replacement.written.get(cut)
        label = "" if written is not None else "MLP without a dictionary"
        nodes += [
            Node(
                id=f"{layer}_error_{_place(cut)}_{position}",
                kind="error",
                layer=layer,
                position=position,
                label=label,
                hook=None if written is None else written.reads,
            )
            for position in range(n_pos)
        ]
    columns.append(parts.errors.flatten(1))
    nodes += [
        Node(id=f"E_{token}_{at}", kind="token", position=at, index=token)
        for at, token in enumerate(ids)
    ]
    nodes += [Node(id=f"P_{at}", kind="position", position=at) for at in range(n_pos)]
    nodes += [
        Node(
            id=f"{_layer_of(replacement, cut)}_bias_{_place(cut)}",
            kind="bias",
            layer=_layer_of(replacement, cut),
            label="b_dec",
        )
        for cut in replacement.cuts
    ]
    nodes.append(Node(id="bias", kind="bias", label="biases of the model and of the encoders"))
    columns += [parts.tokens, parts.positions, parts.decoder_biases, parts.bias[:, None]]
    return nodes, torch.cat(columns, dim=1)


def _beyond_budget(
    replacement: LocalReplacement, found: Attribution
) -> Float[Tensor, "readout site pos"]:
    """What active latents that were not traced add, by dictionary and position."""
    latents, n_pos = replacement.latents, len(replacement.tokens)
    n_sites = len(replacement.dictionaries.layers)
    untraced = torch.ones(len(latents), dtype=torch.bool, device=latents.site.device)
    untraced[found.traced] = False
    chosen = untraced.nonzero().flatten()
    cell = latents.site[chosen] * n_pos + latents.position[chosen]
    rows = found.contributions.latents
    total = rows.new_zeros(len(rows), n_sites * n_pos)
    total.index_add_(1, cell, rows[:, chosen])
    return total.reshape(len(rows), n_sites, n_pos)


def _target_nodes(
    replacement: LocalReplacement, targets: Sequence[LogitTarget], found: Attribution
) -> list[Node]:
    last = len(replacement.tokens) - 1
    return [
        Node(
            id=f"target_{n}" if target.token is None else f"logit_{target.token}",
            kind="target" if target.token is None else "logit",
            position=last,
            index=target.token,
            value=float(found.totals[n]),
            probability=target.probability,
            label=target.label,
        )
        for n, target in enumerate(targets)
    ]


def _layer_of(replacement: LocalReplacement, cut: str) -> int:
    layer = replacement.model.hook_point(cut).layer
    return 0 if layer is None else layer


def _place(hook: str) -> str:
    """mlp_out of "blocks.3.hook_mlp_out"; mlp of a module's path such as "model.layers.3.mlp"."""
    words = [word for word in hook.split(".") if word not in ("input", "output")]
    return words[-1].removeprefix("hook_")
