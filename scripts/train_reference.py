"""The PyTorch side of scripts/train-beside-reference.sh.

    python train_reference.py make MODEL                 a small model of the authors' implementation, random weights
    python train_reference.py train MODEL RUN [THREADS]  trains it on RUN/batches.i32, writes RUN/reference.csv
    python train_reference.py compare RUN...             losses side by side, and tokens a second

REFERENCE_PATH names a checkout of https://github.com/itsnamgyu/block-transformer. Needs Python 3.11 with torch,
transformers==4.39.3, accelerate==0.33.0, omegaconf, safetensors and numpy<2.
"""

import csv
import json
import os
import statistics
import sys
import time
import types
from pathlib import Path

VOCABULARY, BLOCK_LENGTH, MAX_LENGTH, WIDTH, LAYERS, HEADS = 2048, 4, 256, 128, 2, 4


def build():
    """A model of the authors' code with the sizes above, GPT-NeoX layers as in the paper."""
    sys.path.insert(0, os.environ["REFERENCE_PATH"])
    import util

    # It loads tokenizers from the network when imported; none is needed here.
    tokenizers = types.ModuleType("util.tokenizer")
    tokenizers.TOKENIZERS = {}
    tokenizers.load_tokenizer_and_mapper_from_block_config = lambda config: (None, None)
    sys.modules["util.tokenizer"] = util.tokenizer = tokenizers
    from model.block_decoder.gpt_neo_x import GPTNeoXBlockDecoder
    from model.block_transformer import BlockTransformer
    from model.embedder.lookup import LookupConfig, LookupEmbedder
    from model.token_decoder.gpt_neo_x import GPTNeoXTokenDecoder
    from transformers import GPTNeoXConfig

    def layers(vocabulary):
        return GPTNeoXConfig(
            vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH, hidden_act="gelu", rotary_pct=0.25, rotary_emb_base=10000,
            max_position_embeddings=2048, layer_norm_eps=1e-5, tie_word_embeddings=False,
            use_parallel_residual=True, attention_bias=True, bos_token_id=0, eos_token_id=0,
            attn_implementation="eager",
        )

    blocks = GPTNeoXBlockDecoder._from_config(
        layers(8), n_embedding_tokens=1, use_block_decoding_loss=False, block_decoding_loss_type="mse"
    )
    embedder = LookupEmbedder(
        LookupConfig(vocab_size=VOCABULARY, hidden_size=WIDTH // BLOCK_LENGTH), block_length=BLOCK_LENGTH,
        n_embedding_tokens=1, projection_method="concat", projection_hidden_size=WIDTH,
    )
    tokens = GPTNeoXTokenDecoder._from_config(
        layers(VOCABULARY), block_length=BLOCK_LENGTH, n_embedding_tokens=1, projection_hidden_size=WIDTH,
        expansion_method="expansion_layer", expansion_ratio=2, decoding_strategy="prefix",
    )
    tokens.config.pad_token_id = 1
    return BlockTransformer(
        embedder=embedder, block_decoder=blocks, token_decoder=tokens, token_mapper=None,
        use_token_decoding_loss=True, use_block_decoding_loss=False, block_decoding_loss_weight=1.0,
        use_auto_encoding_loss=False, auto_encoding_loss_weight=1.0, decoding_strategy="prefix",
    )


def make(directory):
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous().clone() for name, value in build().state_dict().items()}
    save_file(weights, directory / "model.safetensors")
    part = {"num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": HEADS}
    neox = {"cls": "gpt-neo-x", "model_name_or_path": "EleutherAI/pythia-410m-deduped", "use_pretrained_weights": False}
    trainer = {
        "name": "beside_reference",
        "block_length": BLOCK_LENGTH,
        "block_split": {"distribution": "fixed", "distribution_kwargs": {"length": BLOCK_LENGTH}},
        "max_length": MAX_LENGTH,
        "random_pad_first_block": True,
        "pad_to_block_boundary": True,
        "tokenizer": {"embedder": "pythia", "token_decoder": "pythia"},
        "embedder": {
            "cls": "lookup", "model_name_or_path": None, "n_embedding_tokens": 1, "use_pretrained_weights": False,
            "projection_method": "concat", "config": {"vocab_size": VOCABULARY, "hidden_size": WIDTH // BLOCK_LENGTH},
        },
        "block_decoder": {**neox, "config": part},
        "token_decoder": {
            **neox, "config": {**part, "vocab_size": VOCABULARY}, "expansion_method": "expansion_layer",
            "expansion_ratio": 2, "decoding_strategy": "prefix",
        },
        "token_decoding_loss": {"enable": True},
        "block_decoding_loss": {"enable": False, "weight": 1.0},
        "auto_encoding_loss": {"enable": False, "weight": 1.0},
        "precision": "fp32",
    }
    (directory / "trainer.json").write_text(json.dumps(trainer, indent=1))


def train(model_directory, run, threads):
    import numpy
    import torch
    from safetensors.torch import load_file

    torch.set_num_threads(threads)
    model = build()
    model.load_state_dict(load_file(model_directory / "model.safetensors"))
    model.train()
    for module in model.modules():  # the authors train small models without dropout
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    settings = json.loads((run / "run.json").read_text())
    batches = numpy.memmap(run / "batches.i32", dtype="<i4", mode="r", shape=tuple(settings["shape"]))
    with open(run / "reference.csv", "w") as file:
        file.write("step,loss,learning_rate,gradient_norm,tokens,seconds\n")
        for step, rate in enumerate(settings["learning_rates"]):
            started = time.perf_counter()
            ids = torch.from_numpy(batches[step].astype("int64"))
            real = torch.ones_like(ids)
            for group in optimizer.param_groups:
                group["lr"] = rate
            output = model(
                input_ids=ids, attention_mask=real, block_attention_mask=torch.ones(ids.shape[:2], dtype=torch.long),
                labels=ids,
            )
            optimizer.zero_grad(set_to_none=True)
            output.loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss, norm = float(output.loss), float(norm)
            predicted = ids.shape[0] * (ids.shape[1] - 1) * ids.shape[2]
            file.write(f"{step},{loss!r},{rate!r},{norm!r},{predicted},{time.perf_counter() - started}\n")


def rows(path):
    with open(path) as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def compare(runs):
    """The largest relative difference of the losses, and the medians of tokens a second of all runs."""
    speeds, waits = {"losses.csv": [], "reference.csv": []}, []
    for run in runs:
        ours, theirs = rows(run / "losses.csv"), rows(run / "reference.csv")
        assert len(ours) == len(theirs), "runs of different lengths"
        differences = [abs(a["loss"] / b["loss"] - 1) for a, b in zip(ours, theirs)]
        step = max(range(len(ours)), key=lambda i: differences[i])
        print(f"{run}: {len(ours)} steps, loss {ours[0]['loss']:.4f} to {ours[-1]['loss']:.4f} (reference "
              f"{theirs[-1]['loss']:.4f}), largest difference {100 * differences[step]:.4f} % at step {step}")
        for name, steps in (("losses.csv", ours), ("reference.csv", theirs)):
            speeds[name].append(statistics.median(row["tokens"] / row["seconds"] for row in steps))
        waits.append(sum(row["data_seconds"] for row in ours) / sum(row["seconds"] for row in ours))
    ours, theirs = statistics.median(speeds["losses.csv"]), statistics.median(speeds["reference.csv"])
    print(f"tokens/s: {ours:.0f}, reference {theirs:.0f}, ratio {ours / theirs:.2f}; "
          f"waiting for data {100 * statistics.median(waits):.2f} %")


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "make":
        make(Path(arguments[0]))
    elif command == "train":
        train(Path(arguments[0]), Path(arguments[1]), int(arguments[2]) if len(arguments) > 2 else 2)
    elif command == "compare":
        compare([Path(run) for run in arguments])
    else:
        sys.exit(__doc__)
