"""Models of the authors' implementation with random weights, and their checkpoints.

REFERENCE_PATH names a checkout of https://github.com/itsnamgyu/block-transformer. Needs Python 3.11 with torch,
transformers==4.39.3, accelerate==0.33.0, omegaconf, safetensors and numpy<2.
"""

import json
import os
import sys
import types
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Size:
    """Of a Block Transformer (`layers` in each decoder) or of a vanilla transformer."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    max_length: int
    block_length: int = 4


def layers(size, vocabulary):
    """GPT-NeoX layers as in the paper."""
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(
        vocab_size=vocabulary, hidden_size=size.width, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, intermediate_size=4 * size.width, hidden_act="gelu", rotary_pct=0.25,
        rotary_emb_base=10000, max_position_embeddings=max(2048, size.max_length), layer_norm_eps=1e-5,
        tie_word_embeddings=False, use_parallel_residual=True, attention_bias=True, bos_token_id=0, eos_token_id=0,
        attn_implementation="eager",
    )


def find_reference():
    """Makes the modules of the authors' implementation importable."""
    sys.path.insert(0, os.environ["REFERENCE_PATH"])
    import util

    # It loads tokenizers from the network when imported; none is needed here.
    tokenizers = types.ModuleType("util.tokenizer")
    tokenizers.TOKENIZERS = {}
    tokenizers.load_tokenizer_and_mapper_from_block_config = lambda config: (None, None)
    sys.modules["util.tokenizer"] = util.tokenizer = tokenizers


def block_transformer(size):
    """Lookup embedder, prefix token decoder with an expansion layer of ratio 2, as in the paper's main models."""
    find_reference()
    from model.block_decoder.gpt_neo_x import GPTNeoXBlockDecoder
    from model.block_transformer import BlockTransformer
    from model.embedder.lookup import LookupConfig, LookupEmbedder
    from model.token_decoder.gpt_neo_x import GPTNeoXTokenDecoder

    blocks = GPTNeoXBlockDecoder._from_config(
        layers(size, 8), n_embedding_tokens=1, use_block_decoding_loss=False, block_decoding_loss_type="mse"
    )
    embedder = LookupEmbedder(
        LookupConfig(vocab_size=size.vocabulary, hidden_size=size.width // size.block_length),
        block_length=size.block_length, n_embedding_tokens=1, projection_method="concat",
        projection_hidden_size=size.width,
    )
    tokens = GPTNeoXTokenDecoder._from_config(
        layers(size, size.vocabulary), block_length=size.block_length, n_embedding_tokens=1,
        projection_hidden_size=size.width, expansion_method="expansion_layer", expansion_ratio=2,
        decoding_strategy="prefix",
    )
    tokens.config.pad_token_id = tokens.generation_config.pad_token_id = 1
    tokens.generation_config.eos_token_id = None
    return BlockTransformer(
        embedder=embedder, block_decoder=blocks, token_decoder=tokens, token_mapper=None,
        use_token_decoding_loss=True, use_block_decoding_loss=False, block_decoding_loss_weight=1.0,
        use_auto_encoding_loss=False, auto_encoding_loss_weight=1.0, decoding_strategy="prefix",
    )


def vanilla(size):
    from transformers import GPTNeoXForCausalLM

    model = GPTNeoXForCausalLM(layers(size, size.vocabulary))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 1
    return model


def save(model, directory):
    """The weights as the authors' trainer saves them."""
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(weights, directory / "model.safetensors")


def save_block_transformer(size, directory):
    """A model with random weights, and the trainer file that says what it is."""
    import torch

    torch.manual_seed(0)
    save(block_transformer(size), directory)
    part = {
        "num_hidden_layers": size.layers, "hidden_size": size.width, "num_attention_heads": size.heads,
        "max_position_embeddings": max(2048, size.max_length),
    }
    neox = {"cls": "gpt-neo-x", "model_name_or_path": "EleutherAI/pythia-410m-deduped", "use_pretrained_weights": False}
    trainer = {
        "name": "beside_reference",
        "block_length": size.block_length,
        "block_split": {"distribution": "fixed", "distribution_kwargs": {"length": size.block_length}},
        "max_length": size.max_length,
        "random_pad_first_block": True,
        "pad_to_block_boundary": True,
        "tokenizer": {"embedder": "pythia", "token_decoder": "pythia"},
        "embedder": {
            "cls": "lookup", "model_name_or_path": None, "n_embedding_tokens": 1, "use_pretrained_weights": False,
            "projection_method": "concat",
            "config": {"vocab_size": size.vocabulary, "hidden_size": size.width // size.block_length},
        },
        "block_decoder": {**neox, "config": part},
        "token_decoder": {
            **neox, "config": {**part, "vocab_size": size.vocabulary}, "expansion_method": "expansion_layer",
            "expansion_ratio": 2, "decoding_strategy": "prefix",
        },
        "token_decoding_loss": {"enable": True},
        "block_decoding_loss": {"enable": False, "weight": 1.0},
        "auto_encoding_loss": {"enable": False, "weight": 1.0},
        "precision": "fp32",
    }
    (directory / "trainer.json").write_text(json.dumps(trainer, indent=1))


def load_block_transformer(size, directory):
    from safetensors.torch import load_file

    model = block_transformer(size)
    model.load_state_dict(load_file(Path(directory) / "model.safetensors"))
    return model
