"""Turns the worker's log-probs into a list for check_peft.py and check_folder.py.

    python tests/python/items.py MODEL RECORDS.json LOGPROBS.jsonl ITEMS.json

LOGPROBS.jsonl comes from `worker logprobs --per-token` in exact mode. The tokens before a response are the tokenizer's
own rendering of the prompt, so a wrong template or tokenisation of ours shows as a difference, too.
"""

import json
import sys

from transformers import AutoTokenizer


def main():
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    model_dir, records_file, logprobs_file, out = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    with open(records_file, encoding="utf-8") as file:
        records = json.load(file)
    with open(logprobs_file, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    if len(records) != len(lines):
        raise SystemExit(f"{len(records)} records, {len(lines)} lines")
    items = []
    for record, line in zip(records, lines):
        turns = [{"role": "user", "content": record["prompt"]}]
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(text, add_special_tokens=False).input_ids
        for part in ("chosen", "rejected"):
            ids = line[f"{part}_token_ids"]
            whole = tokenizer.apply_chat_template(
                turns + [{"role": "assistant", "content": record[part]}], tokenize=False
            )
            if tokenizer(whole, add_special_tokens=False).input_ids[: len(prompt) + len(ids)] != prompt + ids:
                raise SystemExit(f"{part} of {record['prompt']!r}: our tokens are not the tokenizer's")
            positions = list(range(len(prompt), len(prompt) + len(ids)))
            items.append({"tokens": prompt + ids, "positions": positions, "logprobs": line[f"{part}_token_logps"]})
    with open(out, "w", encoding="utf-8") as file:
        json.dump(items, file)
    print(f"{len(items)} sequences, {sum(len(item['positions']) for item in items)} scored tokens")


if __name__ == "__main__":
    main()
