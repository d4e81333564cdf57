"""Times matrix products of two builds in turn, and prints how much faster the second is.

    python products_before_after.py BEFORE AFTER [--shapes 768x3072,768x50304] [--rows 1,2,4,8,16,32,128] [--repeats 5]

BEFORE and AFTER are `time_products` of two commits (cargo build --release -p blockformer-kernels --example time_products).
Both stay alive and answer in turn, either first; weights are not found in a cache. A number is the median of the ratios
of seconds.
"""

import argparse
import statistics
import subprocess


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--shapes", default="768x3072,768x50304")
    parser.add_argument("--rows", default="1,2,4,8,16,32,128")
    parser.add_argument("--dtypes", default="f32,bf16,int8,int4")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    programs = [
        subprocess.Popen([path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for path in (arguments.before, arguments.after)
    ]

    def seconds(program, question):
        program.stdin.write(question + "\n")
        program.stdin.flush()
        answer = program.stdout.readline()
        if not answer:
            raise SystemExit(f"{program.args[0]} gave no answer to {question!r}")
        return float(answer)

    print(f"| weights | inputs x outputs | {' | '.join(rows)} |\n| --- | --- |{' ---: |' * len(rows)}")
    for dtype in arguments.dtypes.split(","):
        for shape in arguments.shapes.split(","):
            inputs, outputs = shape.split("x")
            cells = []
            for n in rows:
                question = f"{n} {inputs} {outputs} {dtype}"
                ratios = []
                for index in range(arguments.repeats):
                    # Either begins in every other repeat: who follows finds the machine as the other left it.
                    order = (0, 1) if index % 2 else (1, 0)
                    spent = {program: seconds(programs[program], question) for program in order}
                    ratios.append(spent[0] / spent[1])
                cells.append(f"{statistics.median(ratios):.2f}")
            print(f"| {dtype} | {inputs} x {outputs} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
