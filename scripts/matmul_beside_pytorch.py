"""Times matrix products of this library and of PyTorch in turn, and writes a table.

    matmul_beside_pytorch.py PROGRAM OUTPUT.csv [--rows 1,4] [--shapes 512x512,...] [--dtypes f32,bf16,int8] [--repeats 5]

PROGRAM is the example `time_products`. Both sides go through copies of the weights that are together too large for
caches, with two threads, and PyTorch with one as well: the better counts. PyTorch's products are `torch.nn.Linear` without
bias in float32 and bfloat16, and its dynamically quantised form in 8 bits (its int8 is beside ours). A row has the medians of
the repeats; streams are the bytes a second that a sum over much memory reads, measured before and after.
"""

import argparse
import copy
import csv
import os
import statistics
import subprocess
import time

import torch

SHAPES = "512x512,512x1536,512x2048,2048x512,768x3072,3072x768,512x50304,768x50304"
BYTES = {"f32": 4, "bf16": 2, "int8": 1.125, "int4": 0.625}
COPIES = 128 << 20
FIELDS = (
    "dtype", "rows", "inputs", "outputs", "ours_ms", "pytorch_ms", "pytorch_threads", "ratio", "ratio_min", "ratio_max",
    "ours_gigabytes_per_second", "stream_gigabytes_per_second", "repeats",
)


def linears(inputs, outputs, dtype):
    with torch.inference_mode():
        linear = torch.nn.Linear(inputs, outputs, bias=False)
        if dtype == "bf16":
            linear = linear.to(torch.bfloat16)
        if dtype == "int8":
            linear = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(linear), {torch.nn.Linear}, torch.qint8)
        return [copy.deepcopy(linear) for _ in range(max(1, COPIES // (4 * inputs * outputs)))]


def seconds(copies, x, threads):
    torch.set_num_threads(threads)
    times = []
    with torch.inference_mode():
        copies[0](x)
        begun = time.perf_counter()
        while len(times) < 3 or time.perf_counter() - begun < 0.06:
            linear = copies[(len(times) + 1) % len(copies)]
            start = time.perf_counter()
            linear(x)
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("output")
    parser.add_argument("--rows", default="1,4,32,128,512")
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--dtypes", default="f32,bf16,int8")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    environment = {**os.environ, "RAYON_NUM_THREADS": "2"}
    program = subprocess.Popen([arguments.program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def ask(line):
        program.stdin.write(line + "\n")
        program.stdin.flush()
        return float(program.stdout.readline())

    with open(arguments.output, "w", newline="") as file:
        table = csv.DictWriter(file, FIELDS)
        table.writeheader()
        for dtype in arguments.dtypes.split(","):
            for shape in arguments.shapes.split(","):
                inputs, outputs = map(int, shape.split("x"))
                copies = linears(inputs, outputs, dtype)
                for rows in map(int, arguments.rows.split(",")):
                    x = torch.randn(rows, inputs, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
                    ours, theirs, streams = [], {1: [], 2: []}, [ask("stream")]
                    for _ in range(arguments.repeats):
                        ours.append(ask(f"{rows} {inputs} {outputs} {dtype}"))
                        for threads, times in theirs.items():
                            times.append(seconds(copies, x, threads))
                    streams.append(ask("stream"))
                    best = min(theirs, key=lambda threads: statistics.median(theirs[threads]))
                    ratios = [theirs / ours for theirs, ours in zip(theirs[best], ours)]
                    mine = statistics.median(ours)
                    row = {
                        "dtype": dtype, "rows": rows, "inputs": inputs, "outputs": outputs,
                        "ours_ms": f"{1e3 * mine:.4f}", "pytorch_ms": f"{1e3 * statistics.median(theirs[best]):.4f}",
                        "pytorch_threads": best, "ratio": f"{statistics.median(ratios):.2f}",
                        "ratio_min": f"{min(ratios):.2f}", "ratio_max": f"{max(ratios):.2f}",
                        "ours_gigabytes_per_second": f"{BYTES[dtype] * inputs * outputs / mine / 1e9:.1f}",
                        "stream_gigabytes_per_second": f"{max(streams) / 1e9:.1f}", "repeats": arguments.repeats,
                    }
                    table.writerow(row)
                    file.flush()
                    print(*(f"{field} {value}" for field, value in row.items()), sep=", ", flush=True)


if __name__ == "__main__":
    main()
