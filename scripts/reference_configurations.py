"""Random small configurations over all that the authors' implementation can do, and the models they describe."""

import argparse
import contextlib
import io
import warnings

import reference_model

EMBEDDERS = ("lookup", "lookup_projection", "roberta", "cls")
TOKEN_DECODERS = ("prefix", "summation", "cross_attention")
VANILLA = ("vanilla_gpt_neox", "vanilla_gpt_neox_sequential")
KINDS = [(embedder, decoder) for embedder in EMBEDDERS for decoder in TOKEN_DECODERS] + list(VANILLA)
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
GPT_NEOX = {"cls": "gpt-neo-x", "model_name_or_path": "EleutherAI/pythia-410m-deduped", "use_pretrained_weights": False}


def heads_and_width(rng, multiple_of=1):
    """Heads of GPT-NeoX and their width in all. A quarter of a head is rotated, which must be an even number."""
    head_dims = [dim for dim in range(8, 28) if dim // 4 % 2 == 0]
    while True:
        heads, head_dim = rng.randint(1, 8), rng.choice(head_dims)
        if 16 <= heads * head_dim <= 72 and heads * head_dim % multiple_of == 0:
            return heads, heads * head_dim


def neox_config(rng, heads, width):
    config = {"num_hidden_layers": rng.randint(1, 3), "hidden_size": width, "num_attention_heads": heads}
    if rng.random() < 0.2:
        config["use_parallel_residual"] = False
    if rng.random() < 0.2:
        config["intermediate_size"] = rng.randint(1, 3) * width + rng.randint(1, 9)
    if rng.random() < 0.2 and width // heads % 4 == 0:
        config["rotary_pct"] = rng.choice([0.5, 1.0])
    return config


def embedding_config(rng, embedder, joined, width):
    """`joined` hidden states make one of `width`, or one where there is a projection layer."""
    config = {"vocab_size": rng.randint(40, 200)}
    if embedder == "lookup":
        return config | {"hidden_size": width // joined}
    if embedder == "lookup_projection":
        return config | {"hidden_size": rng.randint(5, 40)}
    if joined:
        hidden = width // joined
        heads = rng.choice([heads for heads in range(1, 5) if hidden % heads == 0])
    else:
        heads = rng.randint(1, 4)
        hidden = heads * rng.randint(4, 11)
    return config | {"hidden_size": hidden, "num_hidden_layers": rng.randint(1, 3), "num_attention_heads": heads}


def token_decoder_section(rng, decoder, length, n_embedding, vocabulary, heads, width):
    # Repetition instead of an expansion layer takes equal widths. Cross-attention to repetitions of one embedding is
    # the same whatever queries and keys are; their gradients are rounding, and Adam makes whole steps of it.
    repeat = rng.random() < 0.2 and (decoder != "cross_attention" or n_embedding > 1)
    if decoder == "cross_attention":
        layers, t5_heads = rng.randint(1, 3), rng.randint(1, 4)
        config = {
            "d_model": width if repeat else rng.randint(10, 60), "d_ff": rng.randint(20, 150),
            "d_kv": rng.randint(4, 20), "num_layers": layers, "num_decoder_layers": layers, "num_heads": t5_heads,
        }
        section = {"cls": "t5", "model_name_or_path": "t5-small", "use_pretrained_weights": False}
        ratio = rng.randint(1, 4) if rng.random() < 0.3 else None
    else:
        config = neox_config(rng, *((heads, width) if repeat else heads_and_width(rng)))
        section = GPT_NEOX
        ratio = rng.randint(1, 4) if decoder == "prefix" else None if n_embedding == 1 else length // n_embedding
    return section | {
        "config": config | {"vocab_size": vocabulary},
        "expansion_method": None if repeat else "expansion_layer",
        **({} if ratio is None else {"expansion_ratio": ratio}),
        "decoding_strategy": decoder,
    }


def loss_sections(rng, block_loss, auto_encoding):
    weight = lambda enable: round(rng.uniform(0.2, 1.5), 2) if enable else 1.0
    block = {"enable": block_loss is not None, **({"type": block_loss} if block_loss else {})}
    return {
        "token_decoding_loss": {"enable": True},
        "block_decoding_loss": block | {"weight": weight(block_loss)},
        "auto_encoding_loss": {"enable": auto_encoding, "weight": weight(auto_encoding)},
    }


def trainer_file(rng, embedder, decoder):
    """A trainer file of the authors' schema."""
    length, n_cls = rng.randint(2, 8), rng.randint(1, 4)
    embedded = n_cls if embedder == "cls" else length  # what the projection takes
    # Concatenation keeps the positions of a block; RoBERTa has a projection layer unless told otherwise.
    concat = embedder == "lookup" or (embedder in ("roberta", "cls") and rng.random() < 0.35)
    # The reference stumbles over the memory layout of two embedding tokens of a projection layer or of CLS tokens.
    two = concat and embedder != "cls" and embedded % 2 == 0 and (decoder != "summation" or length % 2 == 0)
    n_embedding = 2 if two and rng.random() < 0.5 else 1
    joined = embedded // n_embedding if concat else 0
    heads, width = heads_and_width(rng, joined or 1)
    embedding = embedding_config(rng, embedder, joined, width)
    token_decoder = token_decoder_section(rng, decoder, length, n_embedding, embedding["vocab_size"], heads, width)
    block_loss = rng.choice(["mse", "contrastive"]) if rng.random() < 0.3 else None
    auto_encoding = rng.random() < 0.25
    block_decoder = GPT_NEOX | {"config": neox_config(rng, heads, width)}
    name = [f"cls_{NUMBERS[n_cls]}" if embedder == "cls" else embedder, decoder, f"b{length}"]
    name += ["two_embedding_tokens"] * (n_embedding == 2) + [block_loss] * (block_loss is not None)
    return {
        "name": "_".join(name + ["auto_encoding"] * auto_encoding),
        "block_length": length,
        "block_split": {"distribution": "fixed", "distribution_kwargs": {"length": length}},
        "max_length": 2048,
        "random_pad_first_block": True,
        "pad_to_block_boundary": True,
        "tokenizer": {"embedder": "pythia", "token_decoder": "pythia"},
        "embedder": {
            "cls": {"cls": "roberta_cls", "roberta": "roberta"}.get(embedder, "lookup"),
            "model_name_or_path": None if embedder.startswith("lookup") else "roberta-base",
            "n_embedding_tokens": n_embedding,
            "use_pretrained_weights": False,
            "projection_method": "concat" if concat else "projection_layer" if "projection" in embedder else None,
            "config": embedding,
            **({"n_cls_tokens": n_cls} if embedder == "cls" else {}),
        },
        "block_decoder": block_decoder,
        "token_decoder": token_decoder,
        **loss_sections(rng, block_loss, auto_encoding),
        "precision": "fp32",
    }


def vanilla_config(rng, kind):
    heads, width = heads_and_width(rng)
    return {
        **neox_config(rng, heads, width), "vocab_size": rng.randint(40, 200),
        "use_parallel_residual": kind == "vanilla_gpt_neox",
    }


def published_config(name, **options):
    """The configuration that the authors' code would fetch by name."""
    from transformers import GPTNeoXConfig, RobertaConfig, T5Config

    if name == "roberta-base":
        config = RobertaConfig(max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5,
                               bos_token_id=0, pad_token_id=1, eos_token_id=2)
    elif name == "t5-small":
        config = T5Config(d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_decoder_layers=6, num_heads=8,
                          pad_token_id=0, eos_token_id=1, decoder_start_token_id=0)
    else:
        assert name == "EleutherAI/pythia-410m-deduped", name
        # The block decoder has a table of token embeddings that nothing uses; as small as that of the given cases.
        config = GPTNeoXConfig(vocab_size=8, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
                               intermediate_size=4096, bos_token_id=0, eos_token_id=0)
    del options["return_unused_kwargs"], options["attn_implementation"]
    return config, options


def block_transformer(trainer):
    """The model that the authors' trainer builds of the file."""
    reference_model.find_reference()
    import model.utils
    from model.block_transformer import BlockTransformer
    from omegaconf import OmegaConf
    from util.config import preprocess_config

    model.utils.AutoConfig = argparse.Namespace(from_pretrained=published_config)
    config = OmegaConf.create(trainer)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
        preprocess_config(config, check_mode="block")
        blocks = model.utils.load_block_decoder_from_config(config)
        embedder = model.utils.load_embedder_from_config(config, blocks)
        tokens = model.utils.load_token_decoder_from_config(config, blocks)
    if config.token_decoder.cls == "gpt-neo-x":
        # Not the id of the padding in the cases: with its own, the reference would not count ends of text as losses.
        tokens.config.pad_token_id = tokens.generation_config.pad_token_id = 1
        tokens.generation_config.eos_token_id = None
    if config.auto_encoding_loss.enable:
        # The auto-encoding loss is asked for with an argument that the token decoder calls by another name.
        forward = tokens.forward
        tokens.forward = lambda *arguments, log_loss_per_position=None, **options: forward(*arguments, **options)
    return BlockTransformer(
        embedder=embedder, block_decoder=blocks, token_decoder=tokens, token_mapper=None,
        use_token_decoding_loss=True, use_block_decoding_loss=config.block_decoding_loss.enable,
        block_decoding_loss_weight=config.block_decoding_loss.weight,
        use_auto_encoding_loss=config.auto_encoding_loss.enable,
        auto_encoding_loss_weight=config.auto_encoding_loss.weight,
        decoding_strategy=config.token_decoder.decoding_strategy,
    ).eval()


def vanilla(config):
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = {"intermediate_size": 4 * config["hidden_size"], "bos_token_id": 0, "eos_token_id": 0, **config}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**config)).eval()


def draw_weights(model, generator):
    """Weights large enough to matter: with the usual first ones, logits are hardly apart."""
    import torch

    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            values = 0.1 * values + float("norm" in name.lower() and name.endswith("weight"))
        elif "shared" in name:
            values *= 1.5  # T5 divides its output by the root of the width
        elif "embed" in name.split(".")[-2]:
            values *= 0.5
        elif "relative_attention_bias" not in name:
            values /= parameter[0].numel() ** 0.5
        parameter.data.copy_(values)
