"""Loads an adapter that the worker wrote with PEFT and compares the model's outputs with the worker's own.

    python tests/python/check_peft.py MODEL ADAPTER OURS.json

OURS.json is a list of {"tokens": [...], "positions": [...]} with either "logits" (one whole row for each position t,
the distribution of the token after t) or "logprobs" (the log-probability of tokens[t], predicted from t - 1, for each
position t). Exit code 1 if any value differs by more than 1e-4, or if there is nothing to compare.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

TOLERANCE = 1e-4


@torch.no_grad()
def largest_difference(model, item):
    tokens, positions = item["tokens"], item["positions"]
    if not positions:
        raise SystemExit("an item has no positions to compare")
    logits = model(torch.tensor([tokens])).logits[0].float()
    if "logits" in item:
        ours, theirs = torch.tensor(item["logits"]), logits[positions]
    else:
        table = logits.log_softmax(-1)
        ours, theirs = torch.tensor(item["logprobs"]), torch.stack([table[t - 1, tokens[t]] for t in positions])
    if ours.shape != theirs.shape:
        raise SystemExit(f"shapes differ: ours {tuple(ours.shape)}, PEFT's {tuple(theirs.shape)}")
    difference = (ours - theirs).abs().max().item()
    return difference if difference == difference else float("inf")


def main():
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    model_dir, adapter_dir, ours = sys.argv[1:]
    with open(ours, encoding="utf-8") as file:
        items = json.load(file)
    if not items:
        raise SystemExit(f"{ours} holds nothing to compare")
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    model = PeftModel.from_pretrained(base, adapter_dir).eval()
    with torch.no_grad():
        probe = torch.tensor([items[0]["tokens"]])
        adapted = model(probe).logits
        with model.disable_adapter():
            moved = (model(probe).logits - adapted).abs().max().item()
    largest = max(largest_difference(model, item) for item in items)
    print(f"{len(items)} sequences, largest difference {largest:.3g}; the adapter moves logits by up to {moved:.3g}")
    if moved == 0:
        raise SystemExit("the adapter changes nothing, so this comparison shows nothing: train it for a step first")
    if largest > TOLERANCE:
        raise SystemExit(f"more than {TOLERANCE:g} apart")


if __name__ == "__main__":
    main()
