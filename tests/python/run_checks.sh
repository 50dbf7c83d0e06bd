#!/usr/bin/env bash
# Checks what the worker writes with the Python packages it is written for.
#
#   tests/python/run_checks.sh VENV     VENV: a virtual environment with tests/python/requirements.txt installed
#
# Trains tiny adapters and models from the golden ones and from random ones of every family, then:
#   PEFT loads the adapters and gives the worker's log-probs;
#   transformers loads merged and fully trained folders and gives the worker's log-probs;
#   the hub's own package and the worker find in the cache what the other fetched;
#   the official openai client talks to the mock of the oracle: chat, files, batches.
# Everything happens in a temporary folder; the exit code is 0 only if all comparisons hold.
set -euo pipefail

[ $# -eq 1 ] || { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
[ -x "$1/bin/python" ] || { echo "run_checks.sh: $1/bin/python is not there; make it with python3 -m venv" >&2; exit 2; }
python=$(cd "$1" && pwd)/bin/python
cd "$(dirname "$0")/../.."
checks=$PWD/tests/python
golden=$PWD/tests/golden/tiny-llama
cargo build --quiet --package worker --package oracle-service
worker=${CARGO_TARGET_DIR:-$PWD/target}/debug/worker
mock=${CARGO_TARGET_DIR:-$PWD/target}/debug/oracle-service
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore RUST_LOG=warn

"$python" - "$golden/golden.json" <<'EOF'
import json, sys
records = json.load(open(sys.argv[1], encoding="utf-8"))["records"]
json.dump(records, open("records.json", "w", encoding="utf-8"))
EOF

step() { printf '\n== %s\n' "$*"; }

# train MODEL NAME OPTIONS…
train() {
  local model=$1 name=$2
  shift 2
  "$worker" train --model-name-or-path "$model" --dataset-json-path records.json --output-dir runs \
    --run-name "$name" --batch-size 3 --gradient-accumulation-steps 1 --num-train-epochs 5 --learning-rate 1e-2 \
    --threads 1 "$@" > /dev/null
}

# items TOKENIZER NAME OPTIONS… : our log-probs as NAME.json
items() {
  local tokenizer=$1 name=$2
  shift 2
  "$worker" logprobs --records records.json --out "$name.jsonl" --per-token --threads 1 "$@" > /dev/null
  "$python" "$checks/items.py" "$tokenizer" records.json "$name.jsonl" "$name.json"
}

all=q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj
for model in tied untied; do
  for targets in q_proj,v_proj $all; do
    name=$model-$(echo "$targets" | tr -dc , | wc -c)
    step "$model: adapter on $targets in PEFT"
    train "$golden/$model" "$name" --method dpo --lora-r 4 --lora-target-modules "$targets"
    items "$golden/$model" "$name" --model-name-or-path "$golden/$model" --adapter "runs/$name"
    "$python" "$checks/check_peft.py" "$golden/$model" "runs/$name" "$name.json"
  done

  step "$model: merged in transformers"
  "$worker" merge --base-model-path "$golden/$model" --lora-path "runs/$name" --output-path "$model-merged" > /dev/null
  items "$model-merged" "$model-merged" --model-name-or-path "$model-merged"
  "$python" "$checks/check_folder.py" "$model-merged" "$model-merged.json" "$golden/$model"

  step "$model: all weights trained, in transformers"
  train "$golden/$model" "$model-full" --method sft --full
  items "runs/$model-full" "$model-full" --model-name-or-path "runs/$model-full"
  "$python" "$checks/check_folder.py" "runs/$model-full" "$model-full.json" "$golden/$model"
done

"$python" "$checks/make_shapes.py" shapes
for model in shapes/*; do
  name=$(basename "$model")
  step "$name: adapter on all linear layers in PEFT"
  train "$model" "$name" --method dpo --lora-r 3 --lora-target-modules $all
  items "$model" "$name" --model-name-or-path "$model" --adapter "runs/$name"
  "$python" "$checks/check_peft.py" "$model" "runs/$name" "$name.json"

  step "$name: merged in transformers"
  "$worker" merge --base-model-path "$model" --lora-path "runs/$name" --output-path "$name-merged" > /dev/null
  items "$name-merged" "$name-merged" --model-name-or-path "$name-merged"
  "$python" "$checks/check_folder.py" "$name-merged" "$name-merged.json" "$model"
done

step "one cache with the hub's own package"
"$python" "$checks/check_hub.py" "$worker" "$golden/untied"

step "the mock and the official openai client"
"$python" "$checks/check_openai_mock.py" "$mock"
step "the mock's batches and the official openai client"
"$python" "$checks/check_openai_batches.py" "$mock"
step "all comparisons hold"
