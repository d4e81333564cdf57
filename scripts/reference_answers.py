"""What the authors' implementation answers to the inputs of a case."""

import contextlib
import io
import math
import warnings

STEPS, PEAK, WARMUP, TOTAL, FLOOR = 5, 1e-3, 2, 10, 0.1
CLEARLY_APART = 1e-3  # the least distance of the two best logits in a greedy continuation


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
