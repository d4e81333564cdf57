"""Generation by this library and by the authors' implementation in turn: the same weights, the same token ids.

    python bench_reference.py COMMAND OUTPUT [--models block_19,block_85] [--batches 1,8,32,128] [--repeats 5]
                              [--scale 8] [--dtypes f32,bf16] [--threads 1,2] [--workloads prefill-heavy,decode-heavy]
                              [--precisions f32,int8] [--device cuda:0]

COMMAND is the `blockformer` command. For every model, workload and batch size the two take turns, REPEATS times: each
turn of ours is a process of its own for each precision, with a warm-up before the run that counts; PyTorch keeps its
model and has one warm-up. Writes OUTPUT/beside-reference.csv and .json, row by row; a run that was stopped goes on behind the rows that
are there. With --device both sides compute on that GPU, and TF32 is off on PyTorch's (on ours see docs/gpu.md).
See reference_model.py for what the Python must have.
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # or idle threads of PyTorch take the cores from the other side

import torch
from reference_model import Size, load_block_transformer, save_block_transformer, vanilla

SIZES = {  # as the presets block_main_b4_… and vanilla_…
    "block_5": (256, 3, 8), "block_19": (512, 3, 8), "block_85": (768, 6, 12), "block_300": (1024, 12, 16),
    "block_1.2b": (2048, 12, 16),
    "vanilla_31": (256, 6, 8), "vanilla_70": (512, 6, 8), "vanilla_160": (768, 12, 12), "vanilla_410": (1024, 24, 16),
}
WORKLOADS = {"prefill-heavy": (2048, 128), "decode-heavy": (128, 2048)}
FIELDS = [
    "model", "workload", "prompt_tokens", "new_tokens", "batch", "precision", "dtype", "threads", "repeats", "ours", "ours_min",
    "ours_max", "reference", "reference_min", "reference_max", "ratio", "equal_texts", "ours_preferred", "gigabytes_per_second",
    "gigaflops", "weight_bytes", "kv_bytes", "buffer_bytes", "peak_bytes",
]


def make(name, directory, command):
    """A model with random weights, as the authors' code (or Hugging Face's) saves it and as `command` reads it."""
    width, layers, heads = SIZES[name]
    size = Size(50304, width, layers, heads, max_length=4096)
    if not (directory / "model.safetensors").exists():
        if name.startswith("block"):
            save_block_transformer(size, directory)
        else:
            torch.manual_seed(0)
            vanilla(size).save_pretrained(directory)
        subprocess.run([command, "convert", directory, directory / "converted"], check=True)
    if name.startswith("block"):
        return load_block_transformer(size, directory)
    return type(vanilla(Size(64, 64, 1, 1, 64))).from_pretrained(directory)


def ours(command, model, directory, cell, precision, threads, device):
    """One run; what `bench.json` says of it, with the limits, and the token ids."""
    prompt, new, batch = cell
    call = [
        command, "bench", "--model", model, "--prompt-tokens", prompt, "--new-tokens", new, "--batch", batch,
        "--repeats", 1, "--warm-up", 1, "--precision", precision, "--out", directory,
        "--device", device,
    ]
    done = subprocess.run([str(part) for part in call], capture_output=True, text=True,
                          env={**os.environ, "RAYON_NUM_THREADS": str(threads)})
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, call))}\n{done.stderr}")
    report = json.loads((directory / "bench.json").read_text())
    tokens = json.loads((directory / "tokens.json").read_text())
    return report["measurements"][0], report["limits"], tokens[0]


def reference(model, prompts, new):
    """Seconds, and the generated ids."""
    ids = torch.tensor(prompts, device=next(model.parameters()).device)
    options = {"attention_mask": torch.ones_like(ids), "max_length": ids.shape[1] + new}
    if hasattr(model, "gpt_neox"):
        options["do_sample"] = False
    with torch.inference_mode():
        start = time.perf_counter()
        output = model.generate(ids, **options)
        if ids.is_cuda:
            torch.cuda.synchronize(ids.device)
        seconds = time.perf_counter() - start
    return seconds, output[:, ids.shape[1] : ids.shape[1] + new].tolist()


def preference(model, prompt, ours, theirs):
    """Where two greedy continuations part: PyTorch's logit of our token less that of its own, by a forward pass without
    caches. (With a prefix of two, the authors' `generate` counts positions otherwise than their training does, and so
    may choose another token than their own forward pass.)"""
    at = next(i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b)
    text = torch.tensor([prompt + ours[:at]], device=next(model.parameters()).device)
    with torch.inference_mode():
        if hasattr(model, "gpt_neox"):
            logits = model(text).logits[0, -1]
        else:
            blocks = torch.nn.functional.pad(text, (0, 4 - text.shape[1] % 4), value=5).reshape(1, -1, 4)
            real = torch.ones_like(blocks)
            output = model(input_ids=blocks, attention_mask=real, block_attention_mask=real[:, :, 0], labels=None)
            logits = output["logits"].reshape(-1, output["logits"].shape[-1])[text.shape[1] - 4]
    return float(logits[ours[at]] - logits[theirs[at]])


def measure(arguments, name, model, workload, cell, dtype, threads):
    """A row for each of our precisions."""
    torch.set_num_threads(threads)
    precisions = arguments.precisions.split(",")
    speeds, limits, last, theirs = {side: [] for side in [*precisions, "reference"]}, [], {}, []
    for turn in range(arguments.repeats):
        for precision in precisions:
            if torch.cuda.is_available():
                torch.cuda.empty_cache()  # or what PyTorch has put by is missing on our side
            measured, limit, tokens = last[precision] = ours(
                arguments.command, arguments.output / name / "converted", arguments.output / "turn", cell, precision,
                threads, arguments.device,
            )
            speeds[precision].append(measured["tokens_per_second"]["median"])
            limits.append(limit)
        if turn == 0:
            reference(model, tokens["prompts"], min(8, cell[1]))
        seconds, theirs = reference(model, tokens["prompts"], cell[1])
        speeds["reference"].append(cell[1] * cell[2] / seconds)
        print(" ", *(f"{values[-1]:.1f}" for values in speeds.values()), file=sys.stderr, flush=True)
    for precision in precisions:
        measured, _, tokens = last[precision]
        texts = list(zip(tokens["prompts"], tokens["generated"], theirs))
        pairs = [text for text in texts if text[1] != text[2]]
        preferences = [preference(model, *pair) for pair in pairs] if dtype == precision == "f32" else []
        row = {
            "model": name, "workload": workload, "prompt_tokens": cell[0], "new_tokens": cell[1], "batch": cell[2],
            "precision": precision, "dtype": dtype, "threads": threads, "repeats": arguments.repeats,
            "ratio": statistics.median(a / b for a, b in zip(speeds[precision], speeds["reference"])),
            "equal_texts": f"{len(texts) - len(pairs)}/{len(texts)}",
            "ours_preferred": f"{sum(difference > 0 for difference in preferences)}/{len(preferences)}",
            "gigabytes_per_second": statistics.median(limit["bytes_per_second"] for limit in limits) / 1e9,
            "gigaflops": statistics.median(limit["flops"] for limit in limits) / 1e9,
            **{field: measured[field] for field in ("weight_bytes", "kv_bytes", "buffer_bytes", "peak_bytes")},
        }
        for side, values in (("ours", speeds[precision]), ("reference", speeds["reference"])):
            row |= {side: statistics.median(values), side + "_min": min(values), side + "_max": max(values)}
        yield {field: round(row[field], 3) if isinstance(row[field], float) else row[field] for field in FIELDS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command")
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", default="block_19,block_85")
    parser.add_argument("--workloads", default="prefill-heavy,decode-heavy")
    parser.add_argument("--batches", default="1,8,32,128")
    parser.add_argument("--precisions", default="f32")
    parser.add_argument("--dtypes", default="f32")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:N for both sides")
    parser.add_argument("--scale", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    table = arguments.output / "beside-reference.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    key = ("model", "workload", "batch", "dtype", "threads", "prompt_tokens", "new_tokens", "repeats")
    done = {}
    for row in rows:
        done.setdefault(tuple(row[field] for field in key), set()).add(row["precision"])
    wanted = set(arguments.precisions.split(","))
    for name in arguments.models.split(","):
        for dtype in arguments.dtypes.split(","):
            model = make(name, arguments.output / name, arguments.command).eval()
            model = model.to({"f32": torch.float32, "bf16": torch.bfloat16}[dtype])
            model = model.to(arguments.device)
            for workload in arguments.workloads.split(","):
                for batch in arguments.batches.split(","):
                    for threads in arguments.threads.split(","):
                        cell = tuple(length // arguments.scale for length in WORKLOADS[workload]) + (int(batch),)
                        sizes = (*map(str, cell[:2]), str(arguments.repeats))
                        if done.get((name, workload, batch, dtype, threads, *sizes), set()) >= wanted:
                            continue
                        print(f"{name} {workload} batch {batch} {dtype} {threads} threads", file=sys.stderr, flush=True)
                        rows += measure(arguments, name, model, workload, cell, dtype, int(threads))
                        with table.open("w", newline="") as file:
                            writer = csv.DictWriter(file, FIELDS)
                            writer.writeheader()
                            writer.writerows(rows)
    for row in rows:
        print(*(f"{field} {row[field]}" for field in ("model", "workload", "batch", "precision", "ours", "reference", "ratio")), sep=", ")


if __name__ == "__main__":
    main()
