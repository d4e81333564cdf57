"""The PyTorch side of scripts/train-beside-reference.sh.

    python train_reference.py make MODEL                 a small model of the authors' implementation, random weights
    python train_reference.py train MODEL RUN [THREADS]  trains it on RUN/batches.i32, writes RUN/reference.csv
    python train_reference.py compare RUN...             losses side by side, and tokens a second

See reference_model.py for what the Python must have.
"""

import csv
import json
import statistics
import sys
import time
from pathlib import Path

from reference_model import Size, load_block_transformer, save_block_transformer

SIZE = Size(vocabulary=2048, width=128, layers=2, heads=4, max_length=256)


def train(model_directory, run, threads):
    import numpy
    import torch

    torch.set_num_threads(threads)
    model = load_block_transformer(SIZE, model_directory)
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
            output["loss"].backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss, norm = float(output["loss"]), float(norm)
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
        save_block_transformer(SIZE, Path(arguments[0]))
    elif command == "train":
        train(Path(arguments[0]), Path(arguments[1]), int(arguments[2]) if len(arguments) > 2 else 2)
    elif command == "compare":
        compare([Path(run) for run in arguments])
    else:
        sys.exit(__doc__)
