#!/usr/bin/env bash
# Takes pairs through triage, score, train, merge and generate with a model folder of your own.
#
#   deploy/examples/real-model.sh MODEL PAIRS OUT [f32|bf16] [N]
#
# MODEL  a Hugging Face folder of a family in the README
# PAIRS  JSON array or JSON lines of {prompt, chosen, rejected}
# N      the first N pairs (60)
# Run again, it goes on where it was. Needs the release build (cargo build --release).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$here/../../target/release
[ $# -ge 3 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }
model=$1 pairs=$2 out=$3 dtype=${4:-bf16} n=${5:-60}
[ -x "$bin/worker" ] || { echo "real-model.sh: no release build; run cargo build --release first" >&2; exit 1; }
mkdir -p "$out"

"$bin/coordinator" data prepare --input "$pairs" --output-json "$out/pairs.json" --num-samples "$n"
"$bin/oracle-service" triage --rules "$here/engaging-replies.toml" --input-json "$out/pairs.json" \
  --output-json "$out/triaged.json"
echo "== score"
"$bin/worker" score --model-name-or-path "$model" --dtype "$dtype" --dataset-json-path "$out/triaged.json" \
  --out "$out/scored-$dtype.json" --gold-batch-size 12
echo "== train"
"$bin/worker" train --model-name-or-path "$model" --dtype "$dtype" --dataset-json-path "$out/scored-$dtype.json" \
  --output-dir "$out" --run-name "run-$dtype" --save-steps 5
echo "== merge"
"$bin/worker" merge --base-model-path "$model" --lora-path "$out/run-$dtype" --output-path "$out/merged-$dtype"
echo "== generate"
"$bin/worker" generate --model-name-or-path "$out/merged-$dtype" --dtype "$dtype" --prompts "$out/pairs.json" \
  --out "$out/responses-$dtype.json" --max-new-tokens 48 --batch-size 20
"$bin/oracle-service" judge --rules "$here/engaging-replies.toml" --responses-json "$out/responses-$dtype.json" \
  --output-json "$out/judged-$dtype.json"
