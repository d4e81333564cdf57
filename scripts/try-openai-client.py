"""Calls the HTTP service with the official OpenAI client: try-openai-client.py URL"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import openai

PROMPT = "The people of the United States"
URL = sys.argv[1]


def step(name, *shown):
    print(f"ok  {name}", *shown, flush=True)


def raises(error, call):
    try:
        call()
    except error as raised:
        return raised
    raise AssertionError(f"no {error.__name__}")


print("openai", openai.__version__)
client = openai.OpenAI(base_url=f"{URL}/v1", api_key="none", max_retries=0)

models = client.models.list().data
assert len(models) == 1, models
model = models[0].id
assert client.models.retrieve(model).id == model
step("models.list and models.retrieve:", model)


def create(**options):
    return client.completions.create(**{"model": model, "prompt": PROMPT, **options})


greedy = create(max_tokens=24, temperature=0)
choice = greedy.choices[0]
assert greedy.object == "text_completion" and choice.index == 0 and choice.finish_reason == "length"
assert greedy.usage.completion_tokens == 24
assert greedy.usage.total_tokens == greedy.usage.prompt_tokens + 24
step("a completion:", repr(choice.text))

assert create(temperature=0).usage.completion_tokens == 16
step("16 tokens by default")

pieces, last = [], None
for chunk in create(max_tokens=24, temperature=0, stream=True, stream_options={"include_usage": True}):
    if chunk.choices:
        assert chunk.usage is None
        pieces.append(chunk.choices[0].text)
        last = chunk.choices[0].finish_reason or last
    else:
        assert chunk.usage.completion_tokens == 24
assert "".join(pieces) == choice.text and last == "length" and len(pieces) > 10
step("a stream:", len(pieces), "pieces of the same text, and usage behind them")

one, same, other = (create(max_tokens=24, seed=seed).choices[0].text for seed in (1, 1, 2))
assert one == same and one != other
step("seeds")

logprobs = create(max_tokens=8, temperature=0, logprobs=3).choices[0].logprobs
assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == 8
assert logprobs.text_offset[0] == len(PROMPT)
for token, logprob, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs):
    assert logprob <= 0 and top[token] == logprob == max(top.values()) and len(top) == 3
step("logprobs:", list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset))[:3])

several = create(prompt=[PROMPT, "Call me"], n=2, max_tokens=6, seed=3, logprobs=0)
assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
assert several.choices[0].text != several.choices[1].text
step("two prompts, two samples each:", [choice.text for choice in several.choices])

ids = create(prompt=[[464, 300, 301], [5, 6]], max_tokens=3, temperature=0)
assert len(ids.choices) == 2 and ids.usage.prompt_tokens == 5
step("prompts of token ids")

best = create(best_of=3, n=1, max_tokens=6, seed=3)
assert len(best.choices) == 1 and best.usage.completion_tokens == 18
step("best_of")

assert create(echo=True, max_tokens=24, temperature=0).choices[0].text == PROMPT + choice.text
step("echo")

stop = choice.text[20:26]
stopped = create(max_tokens=24, temperature=0, stop=[stop]).choices[0]
assert stopped.finish_reason == "stop" and stopped.text == choice.text[: choice.text.index(stop)]
step("stop:", repr(stop), "ends", repr(stopped.text))

extra = create(max_tokens=24, temperature=0, presence_penalty=2, extra_body={"repetition_penalty": 1.3, "top_k": 5})
assert extra.choices[0].text != choice.text
step("options beyond the API in extra_body")

for options, param in [
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"prompt": [[999_999]]}, "prompt"),
    ({"suffix": "."}, "suffix"),
    ({"extra_body": {"tempreature": 1}}, "tempreature"),
]:
    error = raises(openai.BadRequestError, lambda: create(**options))
    assert error.status_code == 400 and error.param == param and error.type == "invalid_request_error", error
    step("BadRequestError:", error.body["message"])
error = raises(openai.BadRequestError, lambda: create(prompt="x " * 2000))
assert error.code == "context_length_exceeded"
step("BadRequestError:", error.body["message"])
error = raises(openai.NotFoundError, lambda: create(model="gpt-5"))
assert error.code == "model_not_found"
step("NotFoundError:", error.body["message"])
error = raises(openai.NotFoundError, lambda: client.chat.completions.create(model=model, messages=[]))
step("NotFoundError:", error.body["message"])

with ThreadPoolExecutor(12) as pool:
    texts = list(pool.map(lambda _: create(max_tokens=24, temperature=0).choices[0].text, range(12)))
assert texts == [choice.text] * 12
step("12 requests at a time in a batch of 8")



def metric(name):
    text = urlopen(f"{URL}/metrics").read().decode()
    return int(next(line for line in text.splitlines() if line.startswith(f"blockformer_{name} ")).split()[1])


def leave(_):
    """Begins to read a long answer, and goes away."""
    try:
        stream = create(max_tokens=300, n=8, extra_body={"ignore_eos": True}, stream=True)
        next(iter(stream))
        stream.close()
    except openai.RateLimitError as error:
        return error


before = metric("generated_tokens_total")
with ThreadPoolExecutor(60) as pool:
    refused = [error for error in pool.map(leave, range(60)) if error]
assert all(error.response.headers["retry-after"] == "1" for error in refused)
served = 60 - len(refused)
assert served > 0 and refused
step("60 at once, 16 of which may wait:", served, "served,", len(refused), "RateLimitErrors")

while metric("sequences_running") or metric("requests_waiting"):
    time.sleep(0.05)
tokens = metric("generated_tokens_total") - before
assert tokens < served * 8 * 300 / 4, tokens
step("clients that left ended their requests:", tokens, "tokens of", served * 8 * 300)
assert json.load(urlopen(f"{URL}/health")) == {"status": "ok"}
step("health")
