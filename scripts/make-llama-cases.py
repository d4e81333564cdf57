"""Makes the reference cases of the Llama family: tiny random models, and what Hugging Face's transformers answers.

Needs torch, transformers (4.51.3 was used) and safetensors. Writes folders below the directory given:

    python scripts/make-llama-cases.py tests/reference-cases
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

VOCAB, ROWS, LENGTH, PROMPT, NEW = 96, 2, 20, 5, 12

SIZES = dict(
    vocab_size=VOCAB,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=2,
    num_attention_heads=6,
    max_position_embeddings=64,
    initializer_range=0.2,
    bos_token_id=None,
    eos_token_id=0,
    attn_implementation="eager",
)

# name: (configuration, class, size of a shard)
CASES = {
    # As SmolLM2: grouped queries, tied tables, another rotary base.
    "vanilla_llama_grouped_query": (
        LlamaConfig(**SIZES, num_key_value_heads=2, rope_theta=100_000.0, rms_norm_eps=1e-5, tie_word_embeddings=True),
        LlamaForCausalLM,
        "1GB",
    ),
    # Biases everywhere, heads wider than d_model / n_heads, an output projection of its own.
    "vanilla_llama_biases": (
        LlamaConfig(**SIZES, num_key_value_heads=6, head_dim=16, attention_bias=True, mlp_bias=True),
        LlamaForCausalLM,
        "1GB",
    ),
    # Biases on queries, keys and values; several shards.
    "vanilla_qwen2_shards": (
        Qwen2Config(**SIZES, num_key_value_heads=3, rope_theta=1_000_000.0, tie_word_embeddings=True),
        Qwen2ForCausalLM,
        "60KB",
    ),
    # A window of attention that nothing here reaches beyond.
    "vanilla_mistral_window": (
        MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=32),
        MistralForCausalLM,
        "1GB",
    ),
}


def randomize(model):
    """Gives norms and biases, which start at one and zero, values that matter."""
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
        elif "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)


def greedy(model, prompt):
    """The continuation by whole forward passes, and how close the choice ever was."""
    ids, margin = prompt, float("inf")
    for _ in range(NEW):
        top = model(ids, use_cache=False).logits[:, -1].topk(2)
        margin = min(margin, (top.values[:, 0] - top.values[:, 1]).min().item())
        ids = torch.cat([ids, top.indices[:, :1]], dim=1)
    return ids, margin


@torch.no_grad()
def make(folder, config, cls, shard):
    torch.manual_seed(7)
    model = cls(config).eval()
    randomize(model)
    model.save_pretrained(folder, max_shard_size=shard)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = torch.randint(VOCAB, (ROWS, LENGTH))
    output = model(ids, labels=ids)
    continued, margin = greedy(model, ids[:, :PROMPT])
    arrays = {
        "input_ids": ids,
        "logits": output.logits,
        "generate.0.prompt": ids[:, :PROMPT].contiguous(),
        "generate.0.greedy": continued,
    }
    save_file(arrays, folder / "cases.safetensors")
    expected = {"loss": output.loss.item(), "generate.0.smallest_top2_margin": margin}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    print(folder.name, expected)


for name, (config, cls, shard) in CASES.items():
    folder = Path(sys.argv[1]) / name
    folder.mkdir(parents=True, exist_ok=True)
    make(folder, config, cls, shard)
