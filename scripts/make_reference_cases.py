"""Makes reference cases: small random models of the authors' implementation, and what it answers.

    python make_reference_cases.py OUTPUT [--seed N] [--count N]   cases of the seeds N, N + 1, …
    python make_reference_cases.py OUTPUT --again CASE...          answers the inputs of given cases again, and compares

A seed decides everything about its case, and is in its name unless it is the only one. Fourteen seeds in a row are
one of each: four embedders (lookup, lookup with projection, RoBERTa, RoBERTa with CLS tokens) by three token decoders
(prefix, summation, cross-attention), and the two vanilla GPT-NeoX. docs/reference-cases.md says what the files hold;
see reference_model.py for what the Python must have. The reference is run in float32 on one CPU thread, without
dropout.
"""

import argparse
import json
import math
import random
from pathlib import Path

import reference_model
from reference_answers import STEPS, answer_batches, answer_prompts, answer_training, answer_vanilla
from reference_configurations import (
    KINDS, VANILLA, block_transformer, draw_weights, trainer_file, vanilla, vanilla_config,
)

NEW_TOKENS = 13


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


def check_finite(tensors, expected):
    for name, value in tensors.items():
        assert value.isfinite().all(), f"{name} is not finite"
    for name, value in expected.items():
        values = value if isinstance(value, list) else [value]
        assert all(isinstance(value, str) or math.isfinite(value) for value in values), f"{name} is not finite"


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


def make(output, seed, suffix):
    import torch

    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    kind, expected = KINDS[seed % len(KINDS)], {}
    if kind in VANILLA:
        config = vanilla_config(rng, kind)
        model = vanilla(config)
        name, configuration = kind + suffix, model.config
        draw_weights(model, generator)
        ids, vocabulary = rng.randint(10, 30), config["vocab_size"]
        tensors = {"input_ids": torch.tensor([contents(rng, vocabulary, ids) for _ in range(2)])}
        _, _, candidates = prompts(rng, vocabulary, 12)
        answer_vanilla(model, candidates, NEW_TOKENS, tensors, expected)
    else:
        configuration = trainer_file(rng, *kind)
        name = configuration["name"] = configuration["name"] + suffix
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
        suffix = f"_seed{seed}" if arguments.count > 1 else ""
        print(make(arguments.output, seed, suffix), flush=True)


if __name__ == "__main__":
    main()
