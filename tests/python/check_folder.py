"""Loads a full model folder that the worker wrote with transformers and compares log-probs with the worker's own.

    python tests/python/check_folder.py FOLDER ITEMS.json BASE

ITEMS.json comes from items.py; BASE is the model the folder was made from. Exit code 1 if any value differs by more
than 1e-4, if tensors are missing or surplus, or if the folder computes what its base computes.
"""

import json
import sys

import torch
from check_peft import TOLERANCE, largest_difference
from transformers import AutoModelForCausalLM


def main():
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    folder, items_file, base_dir = sys.argv[1:]
    with open(items_file, encoding="utf-8") as file:
        items = json.load(file)
    if not items:
        raise SystemExit(f"{items_file} holds nothing to compare")
    model, loading = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    wrong = {kind: loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") if loading[kind]}
    if wrong:
        raise SystemExit(f"{folder}: {wrong}")
    base = AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32).eval()
    largest = max(largest_difference(model.eval(), item) for item in items)
    moved = max(largest_difference(base, item) for item in items)
    print(f"{folder}: {len(items)} sequences, largest difference {largest:.3g}; the base's is {moved:.3g}")
    if moved < 100 * TOLERANCE:
        raise SystemExit("the folder computes what its base computes, so this comparison shows nothing")
    if largest > TOLERANCE:
        raise SystemExit(f"more than {TOLERANCE:g} apart")


if __name__ == "__main__":
    main()
