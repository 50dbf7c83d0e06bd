"""The checks of gpu-smoke.sh: `gpu_smoke.py WORKER DEVICE FOLDER [THREADS]`, with nothing but Python's own library.

Makes a small Llama of random weights with the tokenizer of tests/golden, runs the worker's commands on it on the processor
and on the device, and prints one table. Exit code 1 where a difference is over its limit or a command fails.
"""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

WORKER, DEVICE = sys.argv[1], sys.argv[2]
FOLDER = pathlib.Path(sys.argv[3])
THREADS = ["--threads", sys.argv[4]] if len(sys.argv) > 4 else []
GOLDEN = pathlib.Path(__file__).resolve().parent.parent / "tests/golden/tiny-llama/tied"
SIZES = dict(hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4, head_dim=16)
WORDS = "the library opens at nine and closes when last reader has gone home with a book about rivers".split()

# The two sides of a comparison: what its files are called, and what computes.
OWN, OTHER = ("own", "cpu"), ("other", DEVICE)

rows = []
problems = []


class Failed(Exception):
    """A command ended with an error."""


def worker(*words):
    """Runs a command and returns its summary."""
    done = subprocess.run([WORKER, *map(str, words), *THREADS], capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"worker {words[0]}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else done.returncode}")
    try:
        return json.loads(done.stdout)
    except json.JSONDecodeError:
        return done.stdout.strip()


def text(start, count):
    """Words that differ from pair to pair."""
    return " ".join(WORDS[(start * 5 + i * (start + 3)) % len(WORDS)] for i in range(count))


def make_inputs():
    """Writes model, records and pairs."""
    seeds, pairs = FOLDER / "seeds", []
    shutil.copytree(GOLDEN, seeds)
    (seeds / "model.safetensors").unlink()
    config = json.loads((seeds / "config.json").read_text())
    (seeds / "config.json").write_text(json.dumps(config | SIZES))
    for i in range(12):
        category = ("INVERT", "PUNISH", "RETAIN")[i % 3]
        pairs.append({"prompt": text(i, 12), "chosen": text(i + 20, 10 + i), "rejected": text(i + 40, 18 - i), "category": category})
    (FOLDER / "records.json").write_text(json.dumps(pairs))
    (FOLDER / "prompts.json").write_text(json.dumps([{"prompt": pair["prompt"]} for pair in pairs[:4]]))
    # One small step on one record: weights that are random, and not so small that every log-prob is the same.
    (FOLDER / "one.json").write_text(json.dumps(pairs[:1]))
    worker("train", "--model", seeds, "--device", "cpu", "--full", "--from-scratch", "--method", "sft", "--max-steps", 1,
           "--learning-rate", 1e-3, "--dataset-json-path", FOLDER / "one.json", "--output-dir", FOLDER, "--run-name", "model", "--json")


def numbers(value):
    """Returns all numbers of a JSON value, in order."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return []
    if isinstance(value, (int, float)):
        return [float(value)]
    return [n for part in (value.values() if isinstance(value, dict) else value) for n in numbers(part)]


def log_probs(side, dtype, adapter=None):
    """Log-probs of all responses of the records."""
    name, device = side
    out = FOLDER / f"logprobs-{name}-{dtype}-{adapter or 'base'}.jsonl"
    with_adapter = ["--adapter", FOLDER / adapter] if adapter else []
    worker("logprobs", "--model", FOLDER / "model", "--device", device, "--dtype", dtype, "--records", FOLDER / "records.json", "--out", out,
           "--per-token", "--json", *with_adapter)
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    return [n for line in lines for n in numbers([line["chosen_token_logps"], line["rejected_token_logps"]])]


def scores(side):
    """Raw scores of the records that are scored."""
    name, device = side
    out = FOLDER / f"scored-{name}.json"
    worker("score", "--model", FOLDER / "model", "--device", device, "--dtype", "f32", "--dataset-json-path", FOLDER / "records.json",
           "--gold-batch-size", 4, "--out", out, "--gold-out", f"{out}.gold", "--json")
    return [record["raw_score"] for record in json.loads(out.read_text()) if record["category"] != "RETAIN"]


def losses(side, kind, *options):
    """Losses of a few updates on all three categories; the run's folder stays."""
    name, device = f"run-{kind}-{side[0]}", side[1]
    worker("train", "--model", FOLDER / "model", "--device", device, "--dtype", "f32", "--dataset-json-path", FOLDER / "records.json",
           "--uniform-weights", "--num-train-epochs", 2, "--learning-rate", 5e-4, "--output-dir", FOLDER, "--run-name", name, "--json", *options)
    lines = (FOLDER / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[field] for line in lines for field in ("loss", "grad_norm")]


def devices():
    """Devices of a gang: as many GPUs as there are, four at most; the processor twice."""
    if DEVICE == "cpu":
        return ["cpu", "cpu"]
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout.strip().splitlines()
    return [f"cuda:{n}" for n in range(min(len(listed), 4))]


def gang_losses(name, members, *options):
    """As `losses`, by a gang with a member on each device."""
    sockets = [socket.socket() for _ in members]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    peers = ",".join(f"127.0.0.1:{one.getsockname()[1]}" for one in sockets)
    for one in sockets:
        one.close()
    words = ["train", "--model", FOLDER / "model", "--dtype", "f32", "--dataset-json-path", FOLDER / "records.json", "--uniform-weights",
             "--num-train-epochs", 2, "--learning-rate", 5e-4, "--output-dir", FOLDER, "--run-name", name, "--json", *options, *THREADS]
    environment = os.environ | {"TRACE_GANG_SECRET": "of this check"}
    started = [
        subprocess.Popen([WORKER, *map(str, words), "--device", device, "--rank", str(rank), "--peers", peers],
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
        for rank, device in enumerate(members)
    ]
    for one in started:
        said = one.communicate()[1].strip().splitlines()
        if one.returncode != 0:
            raise Failed(f"a member of a gang: {said[-1] if said else one.returncode}")
    lines = (FOLDER / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[field] for line in lines for field in ("loss", "grad_norm")]


def check_gang(name, kind, *options):
    """Compares a gang on all devices with one process on the processor."""
    members = devices()
    if len(members) < 2:
        # NCCL has a device for each member.
        print(f"not run: {name} needs two GPUs, there is {len(members)}")
        return
    check(f"{name} ({len(members)} members)", lambda side: losses(side, f"{kind}-alone", *options) if side == OWN else
          gang_losses(f"{kind}-gang", members, *options), 1e-3)


def greedy(side):
    """Greedy responses."""
    name, device = side
    out = FOLDER / f"responses-{name}.json"
    worker("generate", "--model", FOLDER / "model", "--device", device, "--dtype", "f32", "--prompts", FOLDER / "prompts.json", "--out", out,
           "--max-new-tokens", 16, "--json")
    return [result["model_response"] for result in json.loads(out.read_text())["results"]]


def relative(ours, theirs):
    """The largest difference, relative to the largest number."""
    if len(ours) != len(theirs) or not theirs:
        return float("inf")
    apart = max(abs(a - b) for a, b in zip(ours, theirs))
    return apart / max(abs(b) for b in theirs) if apart == apart else float("inf")


def check(name, compute, limit):
    """Compares the two devices' numbers; one row of the table."""
    try:
        own, other = compute(OWN), compute(OTHER)
        apart = relative(other, own)
        rows.append((name, f"{own[0]:.5g}", f"{other[0]:.5g}", f"{apart:.1e} / {limit:.0e}", apart <= limit))
    except Failed as failed:
        rows.append((name, "", "", "see below", False))
        problems.append(f"{name}: {failed}")


def check_texts():
    """Compares greedy responses: nearly all must be equal, since rounding may tip a tie."""
    name = "greedy responses, f32"
    try:
        own, other = greedy(OWN), greedy(OTHER)
        same = sum(a == b for a, b in zip(own, other))
        rows.append((name, len(own), len(other), f"{len(own) - same} differ / 1", len(own) - same <= 1 and len(own) == len(other)))
    except Failed as failed:
        rows.append((name, "", "", "see below", False))
        problems.append(f"{name}: {failed}")


def measure(name, what, dtype, *options):
    """Pairs a second of a benchmark on both devices; passes if it runs."""
    try:
        def speed(device):
            return worker("bench", what, "--model", FOLDER / "model", "--device", device, "--dtype", dtype, "--pairs", FOLDER / "records.json",
                          "--n", 12, "--json", *options)["pairs_per_s"]
        own, other = speed(OWN[1]), speed(OTHER[1])
        rows.append((f"{name}, {dtype}, pairs/s", f"{own:.1f}", f"{other:.1f}", f"{other / own:.2f} times", True))
    except Failed as failed:
        rows.append((f"{name}, {dtype}, pairs/s", "", "", "see below", False))
        problems.append(f"{name}: {failed}")


def main():
    make_inputs()
    check("token log-probs, f32", lambda side: log_probs(side, "f32"), 1e-4)
    check("token log-probs, bf16", lambda side: log_probs(side, "bf16"), 5e-2)
    check("impact scores, f32", scores, 1e-3)
    check("updates of an adapter: loss and gradient", lambda side: losses(side, "lora"), 1e-3)
    check("the same, layers recomputed", lambda side: losses(side, "recompute", "--recompute"), 1e-3)
    check("updates of all weights", lambda side: losses(side, "full", "--full"), 1e-3)
    # The adapter that the device has trained, loaded by both.
    check("its adapter's token log-probs", lambda side: log_probs(side, "f32", adapter="run-lora-other"), 1e-4)
    way = "the ring" if DEVICE == "cpu" else "NCCL"
    check_gang(f"an adapter over {way}", "adapter")
    check_gang(f"all weights shared out over {way}", "spread", "--full", "--shard-parameters")
    check_texts()
    for dtype in ("f32", "bf16"):
        measure("training", "train", dtype)
        measure("training all weights", "train", dtype, "--case", "full")
        measure("scoring", "score", dtype)
    measure("generation", "generate", "bf16", "--max-new-tokens", 16)

    header = ("check", "cpu", DEVICE, "difference / limit", "")
    table = [header] + [(*map(str, row[:4]), "pass" if row[4] else "FAIL") for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(5)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    failed = [row[0] for row in rows if not row[4]]
    print("".join(f"\n{problem}" for problem in dict.fromkeys(problems)))
    print(f"{len(rows) - len(failed)} of {len(rows)} passed" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as failed:
        print(f"gpu-smoke: {failed}", file=sys.stderr)
        sys.exit(1)
