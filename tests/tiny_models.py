"""Tiny random language models with a tokeniser that gives one token a byte, saved as transformers saves them."""

from pathlib import Path
from typing import Any

CHAT = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{{ m['content'] }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)
TRIMMING = CHAT.replace("m['content']", "m['content'] | trim")
DATED = "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}" + CHAT.replace(
    "{{ bos_token }}", "{{ bos_token }}Today: {{ date_string }}\n"
)
SPECIAL = ["<bos>", "<end>", "<turn>", "<pad>"]
NAMES = ("qwen2", "gemma2", "llama", "gpt2")


def byte_tokenizer(template: str | None = CHAT, *, pad: bool = True, **settings: Any) -> Any:
    """One token for each byte, besides four special ones; `<bos>` stands first where no template is used."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    make: Any = PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<end>",
        pad_token="<pad>" if pad else None,
        additional_special_tokens=["<turn>"],
        chat_template=template,
        **settings,
    )


def save_causal(folder: Path, name: str = "qwen2", *, tokenizer: Any = None, window: int = 256, seed: int = 0) -> Path:
    """A random causal language model of two layers, with its head."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        Gemma2Config,
        GPT2Config,
        LlamaConfig,
        PreTrainedConfig,
        Qwen2Config,
    )

    size: dict[str, Any] = {
        "vocab_size": 260,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": window,
        "initializer_range": 0.3,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    configs: dict[str, PreTrainedConfig] = {
        "qwen2": Qwen2Config(**size),
        "gemma2": Gemma2Config(**size, head_dim=4, sliding_window=32, query_pre_attn_scalar=4, pad_token_id=3),
        "llama": LlamaConfig(**size),
        "gpt2": GPT2Config(
            vocab_size=260, n_embd=16, n_layer=2, n_head=2, n_positions=window, initializer_range=0.3,
            bos_token_id=0, eos_token_id=1,
        ),
    }  # fmt: skip
    torch.manual_seed(seed)
    make: Any = AutoModelForCausalLM.from_config
    make(configs[name]).save_pretrained(folder)
    (byte_tokenizer() if tokenizer is None else tokenizer).save_pretrained(folder)
    return folder
