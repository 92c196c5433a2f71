"""Where can a model be read or written, and what is each place called?

A hook point is one side (input or output) of one torch module, holding one vector per token. It
has one canonical name, in TransformerLens's spelling where that spelling has a word for it:

    hook_embed                    the token embedding
    blocks.L.hook_resid_pre       residual stream entering block L
    blocks.L.attn.hook_in         what attention reads: the normalized residual stream
    blocks.L.attn.hook_z          heads before W_O, concatenated: n_heads * d_head wide
    blocks.L.hook_attn_out        what attention adds to the residual stream
    blocks.L.hook_resid_mid       residual stream between attention and MLP; a block that runs
                                  the two in parallel has none
    blocks.L.mlp.hook_in          what the MLP reads: the normalized residual stream
    blocks.L.mlp.hook_post        MLP neurons after the activation function (and its gate)
    blocks.L.hook_mlp_out         what the MLP adds to the residual stream
    blocks.L.hook_resid_post      residual stream leaving block L

"What is added" is meant literally: where a model normalizes an output before adding it (Gemma 2,
OLMo 2), the hook point lies after that norm. A model that multiplies what it adds (Granite) does
so after the hook point.

Any other module is reached by its path: "model.layers.3.self_attn.q_proj" is its output, with
".output" or ".input" to say which. A path from the base model ("layers.3") works too. Spellings
that mean one place resolve to one `HookPoint`. When a module has a child that is itself called
"output", "m.output" is still the output of m; the child's is "m.output.output".
"""

from saelab.hook_points.describe import hook_table, widths_of
from saelab.hook_points.layouts import KINDS
from saelab.hook_points.table import HookPoint, HookTable, Place, near_misses

__all__ = ["KINDS", "HookPoint", "HookTable", "Place", "hook_table", "near_misses", "widths_of"]
