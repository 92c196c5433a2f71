"""Tiny random language models for every test: built in memory, nothing downloaded.

Each function gives a fresh model in eval mode on the CPU in float32. The weights are larger than a
training run would start from and the norms' gains are not all one, so that a test that reads the
wrong place or forgets a gain sees a different number.

    tiny_gpt2      learned positions, LayerNorm, sequential blocks, biases, Conv1D weights
    tiny_llama     rotary, RMSNorm, grouped keys and values, gated MLP
    tiny_neox      rotary, LayerNorm, attention and MLP in parallel
    tiny_gemma2    norms before and after attention and MLP, soft-capped logits, scaled embedding
    TinyPlainModel a torch module that knows nothing of transformers
    tiny_bridge    a TransformerLens bridge over its native model
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from saelab.models import LanguageModel

END_OF_TEXT = "<|endoftext|>"
BYTE_VOCABULARY = 257
D_MODEL = 32
N_LAYERS = 3
N_CTX = 128

_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def tiny_gpt2(seed: int = 0, d_vocab: int = BYTE_VOCABULARY) -> "PreTrainedModel":
    """GPT-2 of 3 layers: d_model 32, 4 heads, d_mlp 128."""
    from transformers import GPT2Config, GPT2LMHeadModel

    return _filled(
        GPT2LMHeadModel,
        GPT2Config(
            vocab_size=d_vocab,
            n_embd=D_MODEL,
            n_layer=N_LAYERS,
            n_head=4,
            n_positions=N_CTX,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        ),
        seed,
    )


def tiny_llama(seed: int = 0, d_vocab: int = BYTE_VOCABULARY) -> "PreTrainedModel":
    """Llama of 3 layers: d_model 32, 4 heads sharing 2 keys and values, d_mlp 48."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return _filled(
        LlamaForCausalLM,
        LlamaConfig(
            vocab_size=d_vocab,
            hidden_size=D_MODEL,
            intermediate_size=48,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=N_CTX,
            bos_token_id=0,
            eos_token_id=0,
        ),
        seed,
    )


def tiny_neox(seed: int = 0, d_vocab: int = BYTE_VOCABULARY) -> "PreTrainedModel":
    """GPT-NeoX (Pythia) of 3 layers with parallel blocks: d_model 32, 4 heads, d_mlp 64."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return _filled(
        GPTNeoXForCausalLM,
        GPTNeoXConfig(
            vocab_size=d_vocab,
            hidden_size=D_MODEL,
            intermediate_size=64,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=N_CTX,
            use_parallel_residual=True,
            bos_token_id=0,
            eos_token_id=0,
        ),
        seed,
    )


def tiny_gemma2(seed: int = 0, d_vocab: int = BYTE_VOCABULARY) -> "PreTrainedModel":
    """Gemma 2 of 3 layers: d_model 32, 4 heads of 16 (so heads concatenate to 64), d_mlp 48."""
    from transformers import Gemma2Config, Gemma2ForCausalLM

    return _filled(
        Gemma2ForCausalLM,
        Gemma2Config(
            vocab_size=d_vocab,
            hidden_size=D_MODEL,
            intermediate_size=48,
            num_hidden_layers=N_LAYERS,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            query_pre_attn_scalar=16,
            max_position_embeddings=N_CTX,
            sliding_window=64,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        ),
        seed,
    )


class TinyPlainModel(nn.Module):
    """A recurrent model of 3 blocks called as `model(tokens) -> logits`; no config, no tokenizer.

    Each block is residual: `x + mix(running mean of x)`, so a later token never changes an
    earlier position.
    """

    def __init__(self, seed: int = 0, d_vocab: int = 50, d_model: int = 16) -> None:
        """Build it with weights drawn from `seed`."""
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(d_vocab, d_model)
            self.blocks = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(3))
            self.head = nn.Linear(d_model, d_vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [row, pos, d_vocab]."""
        x = self.embedding(tokens)
        count = torch.arange(1, x.shape[1] + 1, device=x.device).reshape(1, -1, 1)
        for block in self.blocks:
            x = x + torch.tanh(block(x.cumsum(dim=1) / count))
        return self.head(x)


def tiny_tokenizer(words: Iterable[str] | None = None) -> "PreTrainedTokenizerBase":
    """A tokenizer made offline, with `<|endoftext|>` as id 0 and a chat template.

    Args:
        words: None gives one token per byte (257 ids: any text round-trips). A list gives one
            token per word, split at white space: ids 2, 3, ... in the order given; id 1 is `<unk>`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if words is None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocabulary = {END_OF_TEXT: 0} | {piece: 1 + i for i, piece in enumerate(alphabet)}
        inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        unknown = {}
    else:
        vocabulary = {END_OF_TEXT: 0, "<unk>": 1} | {word: 2 + i for i, word in enumerate(words)}
        inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        unknown = {"unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, **unknown
    )
    fast.chat_template = _CHAT_TEMPLATE
    # TransformerLens would fetch a tokenizer again by name to add a BOS; this one needs no change.
    fast.init_kwargs |= {"name_or_path": "tiny", "add_bos_token": True}
    return fast


def tiny_language_model(seed: int = 0) -> "LanguageModel":
    """A saelab model over `tiny_llama` with the byte tokenizer, on the CPU in float32."""
    from saelab.models import load_model

    return load_model(
        tiny_llama(seed), tokenizer=tiny_tokenizer(), name=f"tiny-llama-{seed}", device="cpu"
    )


def tiny_bridge(seed: int = 0) -> Any:
    """A TransformerLens bridge over its own native model: 2 layers, d_model 32, no tokenizer."""
    from transformer_lens import TransformerBridge, TransformerBridgeConfig

    boot_native: Any = getattr(TransformerBridge, "boot_native")  # noqa: B009 - untyped in its stubs
    bridge = boot_native(
        TransformerBridgeConfig(
            d_model=D_MODEL,
            d_head=8,
            n_heads=4,
            n_layers=2,
            n_ctx=N_CTX,
            d_vocab=40,
            d_mlp=64,
            act_fn="gelu",
            normalization_type="LN",
            seed=seed,
            device="cpu",
        )
    )
    bridge.eval()
    return bridge


def random_tokens(rows: int = 2, length: int = 12, d_vocab: int = 50, seed: int = 0) -> Tensor:
    """Token ids drawn uniformly from 1 to `d_vocab - 1`: id 0 is left to the BOS."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, d_vocab, (rows, length), generator=generator)


def sentences(count: int = 8) -> Sequence[str]:
    """A few short English documents, all different."""
    animals = ("cat", "dog", "owl", "fox", "hen", "bee", "ant", "elk")
    places = ("house", "river", "hill", "barn")
    return [
        f"The {animals[i % 8]} number {i} sat near the {places[i % 4]} and looked around. "
        f"Then {i + 1} more came by, and all of them slept until the morning."
        for i in range(count)
    ]


def _filled(model_class: Any, config: Any, seed: int) -> "PreTrainedModel":
    """Build the model and draw every weight from `seed`, leaving the global generator alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = model_class(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn_like(parameter)
                if parameter.dim() > 1:
                    parameter.copy_(noise * (1.0 if "emb" in name or "wte" in name else 0.15))
                elif "bias" in name:
                    parameter.copy_(noise * 0.1)
                else:  # the gain of a norm
                    parameter.add_(noise * 0.3)
    return model.eval()
