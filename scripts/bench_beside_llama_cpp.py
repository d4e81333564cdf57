"""Times llama.cpp and this library in turn, one sequence, with the same vanilla weights and the same prompt.

    python bench_beside_llama_cpp.py COMMAND OUTPUT --gguf FILE --model DIRECTORY [--beside block_main_b4_85,vanilla_160]
                                     [--prompt-tokens 64] [--new-tokens 128] [--repeats 5] [--threads 2]

COMMAND is the `blockformer` command, FILE a GGUF file of a Llama model, DIRECTORY the same weights as a model directory
of this library. llama.cpp reads FILE as it is, and copies of it with 8 bits a weight (Q8_0) and in float32; this
library packs its weights in 4 bits (with 8 for the projection to the vocabulary), in 8 bits and in float32. Presets
named by --beside are timed too, with random weights, in 8 bits. Every turn is a process of its own with a warm-up
before the run that counts. Writes OUTPUT/beside-llama-cpp.csv.

The Python needs `xllamacpp` (llama.cpp, compiled for x86-64) and `gguf` (tried with 2026.10.11549 and 0.17).
"""

import argparse
import collections
import csv
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PAIRS = {"f32": "F32", "int8": "Q8_0", "int4": "as it is"}


def rewrite(source, target, kind):
    """A GGUF file with all matrices in another type."""
    import gguf
    from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

    reader = GGUFReader(source)
    writer = GGUFWriter(target, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if field.name == "general.file_type":
            writer.add_file_type({"F32": gguf.LlamaFileType.ALL_F32, "Q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}[kind])
            continue
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = quants.dequantize(tensor.data, tensor.tensor_type)
        values = values.reshape([int(n) for n in reversed(tensor.shape)]).astype("float32")
        if kind == "Q8_0" and values.ndim == 2:
            quantised = quants.quantize(values, GGMLQuantizationType.Q8_0)
            writer.add_tensor(tensor.name, quantised, raw_dtype=GGMLQuantizationType.Q8_0)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types(path):
    """How many tensors of a GGUF file have which type, and that of the embedding table, which may be the projection too."""
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    counts = collections.Counter(tensor.tensor_type.name for tensor in tensors)
    tables = ("token_embd.weight", "output.weight")
    named = [f"{tensor.name} {tensor.tensor_type.name}" for tensor in tensors if tensor.name in tables]
    return ", ".join([f"{n} of {name}" for name, n in counts.most_common()] + named)


def turn(path, prompt, new, threads):
    """One run of llama.cpp in this process: seconds from prompt to last token, and the tokens."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel, params.n_gpu_layers = len(prompt) + new + 16, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    request = {"prompt": prompt, "n_predict": new, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    warm_up = server.handle_completions({**request, "logprobs": 1})
    tokens = [token["id"] for token in warm_up["choices"][0]["logprobs"]["content"]]
    start = time.perf_counter()
    answer = server.handle_completions(request)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "n": answer["usage"]["completion_tokens"], "tokens": tokens}


def theirs(path, prompt, arguments):
    call = [sys.executable, __file__, "--turn", path, json.dumps(prompt), arguments.new_tokens, arguments.threads]
    # Its threads wait for each other often, and shall not sleep meanwhile.
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([str(part) for part in call], capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"llama.cpp failed on {path}:\n{done.stderr[-2000:]}")
    run = json.loads(done.stdout.strip().splitlines()[-1])
    if run["n"] != arguments.new_tokens:
        raise SystemExit(f"llama.cpp made {run['n']} tokens, {arguments.new_tokens} were asked for")
    return run["n"] / run["seconds"], run["tokens"]


def ours(model, precision, arguments):
    directory = arguments.output / "turn"
    call = [arguments.command, "bench", "--model", model, "--prompt-tokens", arguments.prompt_tokens, "--new-tokens",
            arguments.new_tokens, "--repeats", 1, "--warm-up", 1, "--precision", precision, "--out", directory]
    done = subprocess.run([str(part) for part in call], capture_output=True, text=True,
                          env={**os.environ, "RAYON_NUM_THREADS": str(arguments.threads)})
    if done.returncode != 0:
        raise SystemExit(f"{arguments.command} failed on {model}:\n{done.stderr[-2000:]}")
    measured = json.loads((directory / "bench.json").read_text())
    tokens = json.loads((directory / "tokens.json").read_text())
    run = measured["measurements"][0]
    return run["tokens_per_second"]["median"], tokens[0]["prompts"][0], tokens[0]["generated"][0], measured["limits"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("output", type=Path)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--beside", default="")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    files = {"int4": arguments.gguf}
    print(f"{arguments.gguf.name}: {types(arguments.gguf)}", file=sys.stderr)
    digest = hashlib.sha256(arguments.gguf.read_bytes()).hexdigest()[:12]
    for precision in ("f32", "int8"):
        files[precision] = arguments.output / f"{digest}-{PAIRS[precision]}.gguf"
        if not files[precision].exists():
            partial = files[precision].with_suffix(".partial")
            rewrite(arguments.gguf, partial, PAIRS[precision])
            partial.rename(files[precision])
    speeds, same = {}, {}
    others = [name for name in arguments.beside.split(",") if name]
    for repeat in range(arguments.repeats):
        for precision in PAIRS:
            speed, prompt, tokens, limits = ours(arguments.model, precision, arguments)
            speeds.setdefault(("blockformer", arguments.model, precision), []).append(speed)
            speed, their_tokens = theirs(files[precision], prompt, arguments)
            speeds.setdefault(("llama.cpp", str(files[precision].name), PAIRS[precision]), []).append(speed)
            agree = [a == b for a, b in zip(tokens, their_tokens)]
            same[precision] = agree.index(False) if False in agree else len(agree)
            if precision == "f32" and same[precision] == 0:
                raise SystemExit(f"the first tokens differ in float32: are {arguments.gguf} and {arguments.model} one model?")
        for name in others:
            speed, *_ = ours(name, "int8", arguments)
            speeds.setdefault(("blockformer", name, "int8"), []).append(speed)
        print(f"repeat {repeat + 1}: {[round(runs[-1], 1) for runs in speeds.values()]}", file=sys.stderr)
    with open(arguments.output / "beside-llama-cpp.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["program", "model", "weights", "prompt_tokens", "new_tokens", "threads", "repeats",
                         "tokens_per_second", "min", "max"])
        for (program, model, weights), runs in speeds.items():
            writer.writerow([program, Path(model).name, weights, arguments.prompt_tokens, arguments.new_tokens,
                             arguments.threads, len(runs), round(statistics.median(runs), 2), round(min(runs), 2),
                             round(max(runs), 2)])
    print(f"memory streams at {limits['bytes_per_second'] / 1e9:.1f} GB/s", file=sys.stderr)
    for precision, n in same.items():
        print(f"{precision}: the first {n} of {arguments.new_tokens} greedy tokens are the same", file=sys.stderr)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--turn"]:
        path, prompt, new, threads = sys.argv[2:]
        print(json.dumps(turn(path, json.loads(prompt), int(new), int(threads))))
    else:
        main()
