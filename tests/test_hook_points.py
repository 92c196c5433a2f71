from typing import Any

import pytest
import torch
from torch import nn

from saelab.errors import HookPointError
from saelab.hook_points import HookPoint, HookTable, hook_table, near_misses
from tests.tiny_models import (
    D_MODEL,
    TinyPlainModel,
    random_tokens,
    tiny_gemma2,
    tiny_gpt2,
    tiny_llama,
    tiny_neox,
)

SEQUENTIAL_KINDS = [
    "resid_pre",
    "attn_in",
    "attn_z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_post",
    "mlp_out",
    "resid_post",
]


def table_of(module: nn.Module) -> HookTable:
    return hook_table(module, "tiny", D_MODEL)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama, tiny_gemma2])
def test_a_sequential_block_has_every_named_place_in_running_order(build):
    points = [point for point in table_of(build()) if point.layer == 1]
    assert [point.kind for point in points] == SEQUENTIAL_KINDS


def test_a_parallel_block_has_no_residual_stream_between_attention_and_mlp():
    table = table_of(tiny_neox())
    kinds = [point.kind for point in table if point.layer == 1]
    assert kinds == [kind for kind in SEQUENTIAL_KINDS if kind != "resid_mid"]
    with pytest.raises(HookPointError, match="attention and MLP in parallel"):
        table.find("blocks.1.hook_resid_mid")


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        (
            "blocks.1.hook_resid_post",
            ["model.layers.1", "model.layers.1.output", "layers.1", "blocks.1.hook_out"],
        ),
        ("blocks.1.hook_resid_pre", ["model.layers.1.input", "layers.1.input", "blocks.1.hook_in"]),
        ("blocks.1.hook_resid_mid", ["model.layers.1.post_attention_layernorm.input"]),
        ("blocks.1.attn.hook_z", ["model.layers.1.self_attn.o_proj.input"]),
        ("blocks.1.hook_attn_out", ["model.layers.1.self_attn", "blocks.1.attn.hook_out"]),
        ("blocks.1.mlp.hook_in", ["model.layers.1.mlp.input"]),
        ("blocks.1.mlp.hook_post", ["model.layers.1.mlp.down_proj.input"]),
        ("blocks.1.hook_mlp_out", ["model.layers.1.mlp", "blocks.1.mlp.hook_out"]),
        ("hook_embed", ["model.embed_tokens", "model.embed_tokens.output", "embed.hook_out"]),
    ],
)
def test_equivalent_spellings_are_one_hook_point(name, spellings):
    table = table_of(tiny_llama())
    assert table.find(name).name == name
    for spelling in spellings:
        assert table.find(spelling) == table.find(name)


def test_any_other_module_is_named_by_its_path_and_side():
    table = table_of(tiny_llama())
    expected = HookPoint(
        "model.layers.2.self_attn.k_proj.output",
        "model.layers.2.self_attn.k_proj",
        "output",
        2,
        "module",
        16,  # two key heads of 8
    )
    assert table.find("model.layers.2.self_attn.k_proj") == expected
    assert table.find(expected.name) == expected
    assert table.find("model.layers.2.self_attn.k_proj.input").width == D_MODEL


def test_every_canonical_name_finds_its_own_hook_point():
    for build in (tiny_gpt2, tiny_llama, tiny_neox, tiny_gemma2):
        table = table_of(build())
        for point in table:
            assert table.find(point.name) == point


def test_where_outputs_are_normalized_before_they_are_added_the_hook_point_is_after_the_norm():
    table = table_of(tiny_gemma2())
    assert table.find("blocks.0.hook_attn_out").module == "model.layers.0.post_attention_layernorm"
    assert table.find("blocks.0.hook_mlp_out").module == "model.layers.0.post_feedforward_layernorm"
    # The module's own output is another place.
    assert table.find("blocks.0.mlp.hook_out").name == "model.layers.0.mlp.output"


@pytest.mark.parametrize(
    ("build", "z", "post"),
    [(tiny_gpt2, 32, 128), (tiny_llama, 32, 48), (tiny_neox, 32, 64), (tiny_gemma2, 64, 48)],
)
def test_widths_are_those_of_the_projections(build, z, post):
    table = table_of(build())
    assert table.find("blocks.0.attn.hook_z").width == z
    assert table.find("blocks.0.mlp.hook_post").width == post
    assert table.find("blocks.0.hook_resid_post").width == D_MODEL


def test_an_unknown_name_is_answered_with_near_misses():
    with pytest.raises(HookPointError) as caught:
        table_of(tiny_llama()).find("blocks.0.hook_resid_pst")
    message = str(caught.value)
    assert message.startswith("tiny has no hook point 'blocks.0.hook_resid_pst'. Did you mean ")
    assert "'blocks.0.hook_resid_post'" in message
    assert "hook_points() lists" in message


def test_a_misspelt_module_path_is_answered_with_module_paths():
    with pytest.raises(HookPointError, match=r"model\.layers\.0\.self_attn\.o_proj"):
        table_of(tiny_llama()).find("model.layers.0.self_attn.out_proj")


def test_a_layer_beyond_the_last_is_answered_with_the_number_of_layers():
    with pytest.raises(HookPointError, match=r"It has 3 layers: 0 to 2\."):
        table_of(tiny_llama()).find("blocks.3.hook_resid_post")


def test_a_name_like_nothing_gets_no_suggestion():
    with pytest.raises(HookPointError) as caught:
        table_of(tiny_llama()).find("zzzzzzzz")
    assert "Did you mean" not in str(caught.value)


def test_near_misses_read_as_a_sentence():
    assert near_misses("abcd", ["abce", "abcf", "abcg"]).count(" or ") == 1
    assert near_misses("xyz", ["abc"]) == ""


def test_a_plain_module_has_paths_and_no_names_of_blocks():
    table = table_of(TinyPlainModel())
    assert list(table) == []
    assert table.find("blocks.1.input").width == 16
    with pytest.raises(HookPointError):
        table.find("blocks.1.hook_resid_post")


def test_a_side_wins_over_a_child_of_that_name():
    outer = nn.Module()
    outer.block = nn.Module()
    outer.block.output = nn.Linear(2, 3)
    table = hook_table(outer, "odd")
    assert table.find("block.output").module == "block"
    assert table.find("block.output.output").module == "block.output"
    assert table.find("block.output.input").width == 2


def families() -> list:
    """Small models of further families: configuration, model class."""
    import transformers as t

    small: Any = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "bos_token_id": 0}
    small |= {"num_attention_heads": 2, "intermediate_size": 24, "eos_token_id": 0}
    small |= {"max_position_embeddings": 32, "pad_token_id": 0}
    return [
        (t.Qwen2Config(num_key_value_heads=1, **small), t.Qwen2ForCausalLM),
        (t.Olmo2Config(num_key_value_heads=1, **small), t.Olmo2ForCausalLM),
        (t.PhiConfig(**small), t.PhiForCausalLM),
        (t.CohereConfig(**small), t.CohereForCausalLM),
        (t.BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2), t.BloomForCausalLM),
        (
            t.GPTNeoConfig(
                vocab_size=50,
                hidden_size=16,
                num_layers=2,
                num_heads=2,
                attention_types=[[["global", "local"], 1]],
                max_position_embeddings=32,
            ),
            t.GPTNeoForCausalLM,
        ),
        (
            t.GPTJConfig(vocab_size=50, n_embd=16, n_layer=2, n_head=2, rotary_dim=4),
            t.GPTJForCausalLM,
        ),
    ]


def test_in_every_family_the_block_adds_exactly_what_its_hook_points_say():
    from saelab.models import load_model

    for config, model_class in families():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = model_class(config)
            for parameter in module.parameters():
                parameter.data.add_(0.2 * torch.randn_like(parameter))
        model = load_model(module, bos_token_id=None)
        block = {point.kind: point.name for point in model.hook_points() if point.layer == 1}
        seen = model.activations(random_tokens(), list(block.values()))
        at = {kind: seen[name] for kind, name in block.items()}
        added = at["resid_post"] - at["resid_pre"]
        label = model_class.__name__
        torch.testing.assert_close(
            added, at["attn_out"] + at["mlp_out"], atol=1e-5, rtol=1e-4, msg=label
        )
        if "resid_mid" in at:
            torch.testing.assert_close(
                at["resid_mid"], at["resid_pre"] + at["attn_out"], atol=1e-5, rtol=1e-4, msg=label
            )
        for name, activation in seen.items():
            assert activation.shape[-1] == model.hook_point(name).width, (label, name)
