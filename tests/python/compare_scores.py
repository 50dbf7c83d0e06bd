"""Impact scores of `worker score` against explicit per-record gradients by PEFT, on a model and pairs of your own.

    python compare_scores.py MODEL PAIRS.jsonl [--n 24] [--gold 4] [--worker target/release/worker]

MODEL is a Hugging Face folder with a chat template, PAIRS JSON lines of {prompt, chosen, rejected}; the first pairs that fit
--max-length are records of INVERT, the first of these the gold batch. Both programs start from one random adapter and
compute in f32; the worker also scores in bf16, for how far that keeps the order. Prints the largest difference by the
largest score, and rank correlations; exit code 1 where they miss what is wanted.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

WANTED_ERROR, WANTED_RANK = 1e-4, 0.995

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("pairs")
parser.add_argument("--n", type=int, default=24)
parser.add_argument("--gold", type=int, default=4)
parser.add_argument("--worker", default="target/release/worker")
parser.add_argument("--max-length", type=int, default=256)
parser.add_argument("--beta", type=float, default=0.3)
parser.add_argument("--seed", type=int, default=7)
args = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.model)


def encode(prompt, response):
    """Tokens of a conversation and the positions scored: the response and the one token that closes it."""
    turns = [{"role": "user", "content": prompt}]
    start = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(turns + [{"role": "assistant", "content": response}], tokenize=False)
    before = tokenizer(start, add_special_tokens=False)["input_ids"]
    tokens = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert tokens[: len(before)] == before, "the prompt's tokens are not the beginning of the conversation's"
    last = max(at for at, token in enumerate(tokens) if token == tokenizer.eos_token_id)
    return tokens, list(range(len(before), last + 1))


def fits(pair):
    responses = [pair["chosen"], pair["rejected"]]
    return all(responses) and all(len(encode(pair["prompt"], text)[0]) <= args.max_length for text in responses)


pairs = []
for line in open(args.pairs):
    pair = {name: json.loads(line)[name] for name in ("prompt", "chosen", "rejected")}
    if fits(pair):
        pairs.append(pair)
    if len(pairs) == args.n:
        break
print(f"{len(pairs)} pairs, the first {args.gold} are the gold batch")

torch.manual_seed(args.seed)
base = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
config = LoraConfig(r=32, lora_alpha=16, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
policy = get_peft_model(base, config)
trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]


def log_prob(prompt, response):
    tokens, scored = encode(prompt, response)
    logits = policy(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
    return sum(logits[at - 1, tokens[at]] for at in scored)


def gradient(pair):
    """The gradient of the pair's DPO loss at the start, where every log-ratio is 0."""
    delta = log_prob(pair["prompt"], pair["chosen"]) - log_prob(pair["prompt"], pair["rejected"])
    loss = -F.logsigmoid(args.beta * (delta - delta.detach()))
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, trained)]).double()


gold = sum(gradient(pair) for pair in pairs[: args.gold])
theirs = [float(gold @ gradient(pair)) for pair in pairs]


def ranks(numbers):
    order = sorted(range(len(numbers)), key=lambda at: numbers[at])
    found = [0] * len(numbers)
    for rank, at in enumerate(order):
        found[at] = rank
    return found


def rank_correlation(a, b):
    n = len(a)
    return 1 - 6 * sum((x - y) ** 2 for x, y in zip(ranks(a), ranks(b))) / (n * (n * n - 1))


def compare(a, b):
    largest = max(map(abs, a))
    return max(abs(x - y) for x, y in zip(a, b)) / largest, rank_correlation(a, b)


with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    policy.save_pretrained(folder / "adapter")
    (folder / "records.json").write_text(json.dumps([{**pair, "category": "INVERT"} for pair in pairs]))
    (folder / "gold.json").write_text(json.dumps(pairs[: args.gold]))

    def scores(dtype, *options):
        out = folder / f"{dtype}{''.join(options)}.json"
        command = [args.worker, "score", "--model-name-or-path", args.model, "--records", folder / "records.json"]
        command += ["--gold", folder / "gold.json", "--init-adapter", folder / "adapter", "--dtype", dtype, "--out", out]
        command += ["--max-length", str(args.max_length), "--beta", str(args.beta), *options]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [record["raw_score"] for record in json.loads(out.read_text())]

    ours = scores("f32")
    error, rank = compare(theirs, ours)
    print(f"f32, against explicit gradients: largest difference {error:.2e} of the largest score, rank correlation {rank:.5f}")
    is_good = error < WANTED_ERROR
    for space in ("adapter", "targets", "full"):
        option = ("--score-space", space)
        exact = ours if space == "adapter" else scores("f32", *option)
        apart, rank = compare(exact, scores("bf16", *option))
        print(f"bf16 against f32, space {space}: largest difference {apart:.2e}, rank correlation {rank:.5f}")
        is_good &= space != "adapter" or rank > WANTED_RANK
sys.exit(0 if is_good else 1)
