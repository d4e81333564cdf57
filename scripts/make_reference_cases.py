"""Makes reference cases: small random models of the authors' implementation, and what it answers.

    python make_reference_cases.py OUTPUT [--seed N] [--count N]   cases of the seeds N, N + 1, …
    python make_reference_cases.py OUTPUT --again CASE...          answers the inputs of given cases again, and compares

A seed decides everything about its case. Fourteen seeds in a row are one of each: four embedders (lookup, lookup with
projection, RoBERTa, RoBERTa with CLS tokens) by three token decoders (prefix, summation, cross-attention), and the two
vanilla GPT-NeoX. docs/reference-cases.md says what the files hold; see reference_model.py for what the Python must
have. The reference is run in float32 on one CPU thread, without dropout.
"""

import argparse
import contextlib
import io
import json
import math
import random
import warnings
from pathlib import Path

import reference_model

STEPS, PEAK, WARMUP, TOTAL, FLOOR = 5, 1e-3, 2, 10, 0.1
NEW_TOKENS = 13
CLEARLY_APART = 1e-3  # the least distance of the two best logits in a greedy continuation
EMBEDDERS = ("lookup", "lookup_projection", "roberta", "cls")
TOKEN_DECODERS = ("prefix", "summation", "cross_attention")
VANILLA = ("vanilla_gpt_neox", "vanilla_gpt_neox_sequential")
KINDS = [(embedder, decoder) for embedder in EMBEDDERS for decoder in TOKEN_DECODERS] + list(VANILLA)
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}


# Configurations


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


def trainer_file(rng, embedder, decoder):
    """A trainer file of the authors' schema."""
    length = rng.randint(2, 8)
    n_cls = rng.randint(1, 4)
    embedded = n_cls if embedder == "cls" else length  # what the projection takes
    # Concatenation keeps the positions of a block; RoBERTa has a projection layer unless told otherwise.
    concat = embedder == "lookup" or (embedder in ("roberta", "cls") and rng.random() < 0.35)
    # The reference stumbles over the memory layout of two embedding tokens that a projection layer made.
    divisible = embedded % 2 == 0 and (decoder != "summation" or length % 2 == 0)
    n_embedding = 2 if concat and divisible and rng.random() < 0.5 else 1
    joined = embedded // n_embedding if concat else 1
    heads, width = heads_and_width(rng, joined)
    vocabulary = rng.randint(40, 200)
    embedding = {"vocab_size": vocabulary}
    if embedder in ("roberta", "cls"):
        dims = [(heads, width // joined) for heads in range(1, 5) if width // joined % heads == 0]
        encoder_heads, encoder_width = (
            rng.choice(dims) if concat else (lambda heads: (heads, heads * rng.randint(4, 11)))(rng.randint(1, 4))
        )
        embedding |= {
            "hidden_size": encoder_width, "num_hidden_layers": rng.randint(1, 3), "num_attention_heads": encoder_heads,
        }
    else:
        embedding["hidden_size"] = width // joined if concat else rng.randint(5, 40)
    repeat = rng.random() < 0.2  # instead of an expansion layer: only between equal widths
    neox = {"cls": "gpt-neo-x", "model_name_or_path": "EleutherAI/pythia-410m-deduped", "use_pretrained_weights": False}
    if decoder == "cross_attention":
        layers, t5_heads = rng.randint(1, 3), rng.randint(1, 4)
        token_width = width if repeat else rng.randint(10, 60)
        token_decoder = {
            "cls": "t5", "model_name_or_path": "t5-small", "use_pretrained_weights": False,
            "config": {
                "d_model": token_width, "d_ff": rng.randint(20, 150), "d_kv": rng.randint(4, 20), "num_layers": layers,
                "num_decoder_layers": layers, "num_heads": t5_heads, "vocab_size": vocabulary,
            },
        }
        ratio = rng.randint(1, 4) if rng.random() < 0.3 else None
    else:
        token_heads, token_width = (heads, width) if repeat else heads_and_width(rng)
        token_decoder = {
            **neox, "config": {**neox_config(rng, token_heads, token_width), "vocab_size": vocabulary},
        }
        ratio = rng.randint(1, 4) if decoder == "prefix" else None if n_embedding == 1 else length // n_embedding
    token_decoder["expansion_method"] = None if repeat else "expansion_layer"
    if ratio is not None:
        token_decoder["expansion_ratio"] = ratio
    token_decoder["decoding_strategy"] = decoder
    block_loss = rng.choice(["mse", "contrastive"]) if rng.random() < 0.3 else None
    auto_encoding = rng.random() < 0.25
    name = "_".join(
        [f"cls_{NUMBERS[n_cls]}" if embedder == "cls" else embedder, decoder, f"b{length}"]
        + ["two_embedding_tokens"] * (n_embedding == 2) + ([block_loss] if block_loss else [])
        + ["auto_encoding"] * auto_encoding
    )
    return {
        "name": name,
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
        "block_decoder": {**neox, "config": neox_config(rng, heads, width)},
        "token_decoder": token_decoder,
        "token_decoding_loss": {"enable": True},
        "block_decoding_loss": {
            "enable": block_loss is not None, **({"type": block_loss} if block_loss else {}),
            "weight": round(rng.uniform(0.2, 1.5), 2) if block_loss else 1.0,
        },
        "auto_encoding_loss": {
            "enable": auto_encoding, "weight": round(rng.uniform(0.2, 1.5), 2) if auto_encoding else 1.0,
        },
        "precision": "fp32",
    }


def vanilla_config(rng, kind):
    heads, width = heads_and_width(rng)
    return {
        **neox_config(rng, heads, width), "vocab_size": rng.randint(40, 200),
        "use_parallel_residual": kind == "vanilla_gpt_neox",
    }


# Models


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
        config = GPTNeoXConfig(vocab_size=8, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
                               bos_token_id=0, eos_token_id=0)
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


# Inputs


def contents(rng, vocabulary, n):
    return [rng.randrange(3, vocabulary) for _ in range(n)]


def full_rows(rng, vocabulary, rows, n_blocks, length):
    return [([1] * (n_blocks * length), contents(rng, vocabulary, n_blocks * length)) for _ in range(rows)]


def padded_rows(rng, vocabulary, rows, n_blocks, length):
    """Two documents a row; in the first row the first ends inside a block, the second begins inside one, and the last
    block is padding."""
    batch = []
    for row in range(rows):
        blocks = n_blocks - (row == 0)
        first = rng.randint(2, blocks - 2)
        front = rng.choice([0, rng.randint(0, length - 1)])
        behind = rng.randint(1, length - 1) if row == 0 else rng.randint(0, length - 1)
        between = rng.randint(1, length - 1) if row == 0 else rng.randint(0, length - 1)
        mask = [0] * front + [1] * (first * length - front - behind) + [0] * (behind + between)
        mask += [1] * (blocks * length - len(mask)) + [0] * ((n_blocks - blocks) * length)
        ids = [id * real for id, real in zip(contents(rng, vocabulary, len(mask)), mask)]
        ids[first * length - behind - 1] = 0  # the end of text, which is real
        batch.append((mask, ids))
    return batch


def inputs_of_block_transformer(rng, trainer):
    """The batches and prompts, without greedy continuations."""
    import torch

    length, vocabulary = trainer["block_length"], trainer["embedder"]["config"]["vocab_size"]
    rows, n_blocks = rng.choice([2, 2, 3]), rng.randint(5, 8)
    without_padding = trainer["block_decoding_loss"]["enable"]
    batches = {"full": full_rows} | ({} if without_padding else {"padded": padded_rows})
    batches |= {f"train.{step}": full_rows if without_padding else padded_rows for step in range(STEPS)}
    tensors = {}
    for name, make in batches.items():
        mask, ids = zip(*make(rng, vocabulary, rows, n_blocks, length))
        tensors[f"{name}.input_ids"] = torch.tensor(ids).view(rows, n_blocks, length)
        tensors[f"{name}.attention_mask"] = torch.tensor(mask).view(rows, n_blocks, length)
    return tensors


def prompts(rng, vocabulary, length):
    """Endless prompts: of whole blocks, with a ragged first block, and of less than a block."""
    import torch

    lengths = [2 * length, 2 * length + rng.randint(1, length - 1), rng.randint(1, length - 1)]
    for n in lengths:
        yield (torch.tensor([contents(rng, vocabulary, n) for _ in range(2)]) for _ in iter(int, 1))


# Answers


def learning_rate(step):
    if step < WARMUP:
        return PEAK * (step + 1) / WARMUP
    progress = (step + 1 - WARMUP) / (TOTAL - WARMUP)
    return PEAK * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def batch_of(tensors, name):
    ids, mask = tensors[f"{name}.input_ids"], tensors[f"{name}.attention_mask"]
    return {
        "input_ids": ids, "attention_mask": mask, "block_attention_mask": mask.any(-1).long(),
    }


def labels_of(batch):
    return batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)


def check_finite(tensors, expected):
    for name, value in tensors.items():
        assert value.isfinite().all(), f"{name} is not finite"
    for name, value in expected.items():
        values = value if isinstance(value, list) else [value]
        assert all(isinstance(value, str) or math.isfinite(value) for value in values), f"{name} is not finite"


def answer_batches(model, tensors, expected):
    import torch

    names = [name for name in ("full", "padded") if f"{name}.input_ids" in tensors]
    for name in names:
        batch = batch_of(tensors, name)
        tensors[f"{name}.block_attention_mask"] = batch["block_attention_mask"]
        tensors[f"{name}.labels"] = labels_of(batch)
        with torch.no_grad():
            embeddings = model.embed_blocks(batch["input_ids"], batch["attention_mask"])
            flat = embeddings.flatten(1, 2)
            contexts = model.block_decoder(
                inputs_embeds=flat, block_attention_mask=batch["block_attention_mask"], return_dict=True
            ).hidden_states
            tensors[f"{name}.block_embeddings"] = embeddings
            tensors[f"{name}.context_embeddings"] = contexts.view_as(embeddings)
            tensors[f"{name}.logits"] = model(**batch)["logits"]
            losses = model(**batch, labels=labels_of(batch))
        for part in ("loss", "token_decoding_loss", "block_decoding_loss", "auto_encoding_loss"):
            if losses[part] is not None:
                expected[f"{name}.{part}"] = float(losses[part])
    batch = batch_of(tensors, names[-1])
    model.zero_grad(set_to_none=True)
    model(**batch, labels=labels_of(batch))["loss"].backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            tensors[f"grad.{name}"] = parameter.grad.clone()


def answer_training(model, tensors, expected):
    import torch

    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses, norms, rates = [], [], [learning_rate(step) for step in range(STEPS)]
    for step, rate in enumerate(rates):
        batch = batch_of(tensors, f"train.{step}")
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss = model(**batch, labels=labels_of(batch))["loss"]
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        losses.append(float(loss))
        optimizer.step()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            tensors[f"trained.{name}"] = parameter.detach().flatten()[:32].clone()
    model.load_state_dict(before)
    expected |= {"train.grad_norm": norms, "train.losses": losses, "train.lrs": rates}
    return expected


def next_logits(model, ids, padding):
    """Of the token behind `ids`, after `padding` masked zeros: a pass over everything, without caches."""
    import torch

    rows, length = ids.shape[0], model.block_length
    n = ids.shape[1] + padding
    blocks = n // length + 1
    padded = torch.zeros(rows, blocks * length, dtype=torch.long)
    mask = torch.ones_like(padded)
    padded[:, padding:n] = ids
    mask[:, :padding] = 0
    batch = batch_of(
        {"x.input_ids": padded.view(rows, blocks, length), "x.attention_mask": mask.view(rows, blocks, length)}, "x"
    )
    with torch.no_grad():
        return model(**batch)["logits"][:, -1, n % length]


def greedy(prompt, n_new, logits_of):
    """The continuation, and how close the choice ever was."""
    import torch

    ids, margin = prompt, math.inf
    for _ in range(n_new):
        best = logits_of(ids).topk(2)
        margin = min(margin, float((best.values[:, 0] - best.values[:, 1]).min()))
        ids = torch.cat([ids, best.indices[:, :1]], dim=1)
    return ids, margin


def answer_prompt(candidates, n_new, logits_of):
    """The first prompt whose continuation is no near tie."""
    for prompt in candidates:
        continuation, margin = greedy(prompt, n_new, lambda ids: logits_of(ids, prompt))
        if margin >= CLEARLY_APART:
            break
    return prompt, continuation, margin


def answer_prompts(model, all_candidates, news, tensors, expected):
    import torch

    length = model.block_length
    for index, (candidates, n_new) in enumerate(zip(all_candidates, news)):
        name = f"generate.{index}"
        prompt, continuation, margin = answer_prompt(
            candidates, n_new, lambda ids, prompt: next_logits(model, ids, -prompt.shape[1] % length)
        )
        tensors[f"{name}.prompt"], tensors[f"{name}.greedy"] = prompt, continuation
        expected[f"{name}.smallest_top2_margin"] = margin
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
                tensors[f"{name}.reference_positions"] = model.generate(
                    prompt, attention_mask=torch.ones_like(prompt), max_length=prompt.shape[1] + n_new
                ).clone()
        except Exception as error:  # whatever it stumbles over
            expected[f"{name}.reference_raises"] = type(error).__name__


def answer_vanilla(model, candidates, n_new, tensors, expected):
    import torch

    with torch.no_grad():
        output = model(tensors["input_ids"], labels=tensors["input_ids"])
        tensors["logits"], expected["loss"] = output.logits, float(output.loss)
        prompt, continuation, _ = answer_prompt(candidates, n_new, lambda ids, _: model(ids).logits[:, -1])
    tensors["generate.0.prompt"], tensors["generate.0.greedy"] = prompt, continuation


# Cases


def save(folder, model, configuration, tensors, expected):
    from safetensors.torch import save_file

    check_finite(tensors, expected)
    reference_model.save(model, folder)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / "cases.safetensors")
    (folder / "expected.json").write_text(json.dumps(expected, indent=1))
    if isinstance(configuration, dict):
        (folder / "trainer.json").write_text(json.dumps(configuration, indent=1))
    else:
        configuration.to_json_file(folder / "config.json")


def make(output, seed):
    import torch

    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    kind, expected = KINDS[seed % len(KINDS)], {}
    if kind in VANILLA:
        config = vanilla_config(rng, kind)
        model = vanilla(config)
        name, configuration = f"{kind}_seed{seed}", model.config
        draw_weights(model, generator)
        ids, vocabulary = rng.randint(10, 30), config["vocab_size"]
        tensors = {"input_ids": torch.tensor([contents(rng, vocabulary, ids) for _ in range(2)])}
        _, _, candidates = prompts(rng, vocabulary, 12)
        answer_vanilla(model, candidates, NEW_TOKENS, tensors, expected)
    else:
        configuration = trainer_file(rng, *kind)
        name = configuration["name"] = f"{configuration['name']}_seed{seed}"
        model = block_transformer(configuration)
        draw_weights(model, generator)
        tensors = inputs_of_block_transformer(rng, configuration)
        answer_batches(model, tensors, expected)
        answer_training(model, tensors, expected)
        vocabulary = configuration["embedder"]["config"]["vocab_size"]
        candidates = prompts(rng, vocabulary, configuration["block_length"])
        answer_prompts(model, candidates, [NEW_TOKENS] * 3, tensors, expected)
    save(output / name, model, configuration, tensors, expected)
    return name


def again(output, case):
    """The answers to the inputs of a case."""
    import torch
    from safetensors.torch import load_file

    given, expected = load_file(case / "cases.safetensors"), {}
    weights = load_file(case / "model.safetensors")
    asked = [name for name in given if name.startswith("generate.") and name.endswith(".prompt")]
    asked = [(given[name], given[name.replace("prompt", "greedy")]) for name in sorted(asked)]
    candidates, news = [[prompt] for prompt, _ in asked], [full.shape[1] - prompt.shape[1] for prompt, full in asked]
    if (case / "trainer.json").exists():
        configuration = json.loads((case / "trainer.json").read_text())
        model = block_transformer(configuration)
        model.load_state_dict(weights)
        inputs = [name for name in given if name.endswith((".input_ids", ".attention_mask"))]
        tensors = {name: given[name] for name in inputs}
        answer_batches(model, tensors, expected)
        answer_training(model, tensors, expected)
        answer_prompts(model, candidates, news, tensors, expected)
    else:
        model = vanilla(json.loads((case / "config.json").read_text()))
        configuration = model.config
        model.load_state_dict(weights)
        tensors = {"input_ids": given["input_ids"]}
        answer_vanilla(model, candidates[0], news[0], tensors, expected)
    save(output / case.name, model, configuration, tensors, expected)


def without_key_bias(folder, name, values):
    """The bias of keys has no gradient but rounding, of which Adam makes whole steps."""
    if name.endswith(".key.bias"):
        return values * 0
    if name.endswith("query_key_value.bias"):
        config = json.loads((folder / "trainer.json").read_text())[name.split(".")[1]]["config"]
        head_dim = config["hidden_size"] // config["num_attention_heads"]
        values = values.clone()
        values[[index for index in range(len(values)) if index // head_dim % 3 == 1]] = 0
    return values


def compare(ours, given):
    """Prints what two folders of the same inputs do not have in common."""
    from safetensors.torch import load_file

    for file in ("model.safetensors", "cases.safetensors"):
        ours_file, given_file = load_file(ours / file), load_file(given / file)
        for name in sorted(ours_file.keys() ^ given_file.keys()):
            print(f"{given.name}: {name} only in the {'new' if name in ours_file else 'given'} {file}")
        families = {}
        for name in ours_file.keys() & given_file.keys():
            a, b = ours_file[name], given_file[name]
            if a.shape != b.shape or a.dtype != b.dtype:
                print(f"{given.name}: {name} is {a.dtype} {list(a.shape)}, was {b.dtype} {list(b.shape)}")
                continue
            if name.startswith("trained."):
                a, b = (without_key_bias(given, name, values) for values in (a, b))
            family = name.split(".")[0]
            families[family] = max(families.get(family, 0.0), float((a - b).abs().max()))
        for family, difference in sorted(families.items()):
            if file != "model.safetensors" or difference > 0:
                print(f"{given.name}: {family} differs by {difference:.1e}")
    a, b = (json.loads((folder / "expected.json").read_text()) for folder in (ours, given))
    for name in sorted(a.keys() ^ b.keys()):
        print(f"{given.name}: {name} only in the {'new' if name in a else 'given'} expected.json")
    pairs = [(name, a[name], b[name]) for name in a.keys() & b.keys()]
    for name, ours_value, given_value in pairs:
        if isinstance(given_value, str):
            assert ours_value == given_value, f"{given.name}: {name} is {ours_value}, was {given_value}"
    numbers = [(x, y) if isinstance(x, list) else ([x], [y]) for _, x, y in pairs if not isinstance(x, str)]
    worst = max(abs(x - y) for xs, ys in numbers for x, y in zip(xs, ys, strict=True))
    print(f"{given.name}: scalars differ by {worst:.1e}")


def main():
    import torch
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=len(KINDS))
    parser.add_argument("--again", type=Path, nargs="+", metavar="CASE")
    arguments = parser.parse_args()
    if arguments.again:
        for case in arguments.again:
            again(arguments.output, case)
            compare(arguments.output / case.name, case)
        return
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        print(make(arguments.output, seed), flush=True)


if __name__ == "__main__":
    main()
