#!/usr/bin/env bash
# The method from start to report on one machine: a small world in which a policy changes, a small model trained on
# the spot, triage, impact scores, two re-alignments, evaluation, a table. See docs/policy-shift.md.
#
#   deploy/quickstart.sh [--seed N] [--out DIR] [--threads N]
#
# Finished steps are skipped when it is run again; an interrupted step goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."

seed=1
out=
# The model is so small that a second thread gains little and loses much on a busy machine.
threads=1
while [ $# -gt 0 ]; do
  case $1 in
    --seed) seed=${2:?--seed needs a number}; shift 2 ;;
    --out) out=${2:?--out needs a folder}; shift 2 ;;
    --threads) threads=${2:?--threads needs a number}; shift 2 ;;
    -h | --help) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "quickstart.sh: unknown argument '$1'; see --help" >&2; exit 2 ;;
  esac
done
out=${out:-artifacts/quickstart-seed$seed}

deploy/libtorch.sh
echo "== build (release)"
cargo build --release --locked --workspace
bin=target/release
mkdir -p "$out/stages"
world=$out/world

# stage NAME FILE COMMAND…: runs the command unless FILE is there, then notes the time it took.
stage() {
  local name=$1 product=$2 begun
  shift 2
  if [ -e "$out/stages/$name.json" ] && [ -e "$product" ]; then
    echo "== $name: done already"
    return
  fi
  echo "== $name"
  begun=$(date +%s%N)
  "$@" >"$out/stages/$name.log"
  local ms=$((($(date +%s%N) - begun) / 1000000))
  printf '{"name": "%s", "seconds": %d.%03d, "cost_usd": 0.0}\n' "$name" $((ms / 1000)) $((ms % 1000)) \
    >"$out/stages/$name.json.tmp"
  mv "$out/stages/$name.json.tmp" "$out/stages/$name.json"
}

train=("$bin/worker" train --seed "$seed" --max-length 128 --gradient-accumulation-steps 1 --pack-tokens 8192
  --threads "$threads")

stage world "$world/world.json" "$bin/coordinator" data policy-shift --seed "$seed" --output-dir "$world"

# The deployed model: from nothing to one that follows the old policy. The skill comes first, then the language of the
# world, then a gentle DPO to the old policy.
from_nothing=(--full --adam-beta2 0.98 --weight-decay 0.01)
stage base-skill "$out/pretrain/skill/train_summary.json" "${train[@]}" "${from_nothing[@]}" --method sft \
  --from-scratch --model-name-or-path "$world/model" --dataset-json-path "$world/skill_sft.json" \
  --output-dir "$out/pretrain" --run-name skill --batch-size 64 --max-steps 700 --warmup-steps 35 --learning-rate 3e-3
stage base-sft "$out/pretrain/sft/train_summary.json" "${train[@]}" "${from_nothing[@]}" --method sft \
  --model-name-or-path "$out/pretrain/skill" --dataset-json-path "$world/corpus_sft.json" \
  --output-dir "$out/pretrain" --run-name sft --batch-size 64 --max-steps 1600 --warmup-steps 80 --learning-rate 3e-3
stage base "$out/base/train_summary.json" "${train[@]}" "${from_nothing[@]}" --method dpo \
  --model-name-or-path "$out/pretrain/sft" --dataset-json-path "$world/old_pairs_dpo.json" \
  --output-dir "$out" --run-name base --batch-size 32 --learning-rate 1e-4 --beta 2.0 --nll-weight 1.0 \
  --replay-json-path "$world/skill_sft.json" --replay-batch-size 16 --replay-weight 1.0

stage triage "$out/triage/gold.json" "$bin/oracle-service" triage --rules "$world/rules_new.toml" \
  --input-json "$world/pairs.json" --output-json "$out/triage/gold.json"
stage correct "$out/triage/corrected.json" "$bin/oracle-service" correct --rules "$world/rules_new.toml" \
  --input-json "$out/triage/gold.json" --output-json "$out/triage/corrected.json"

# Why these settings and not the defaults: docs/policy-shift.md.
beta=0.125
realign=(--beta "$beta" --model-name-or-path "$out/base" --lora-r 16 --lora-alpha 16 --lora-dropout 0
  --lora-target-modules q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj)
for variant in trace oracle-punish; do
  stage "score-$variant" "$out/$variant/weighted_dataset.json" "$bin/worker" score "${realign[@]}" \
    --method "$variant" --dataset-json-path "$out/triage/corrected.json" --out "$out/$variant/weighted_dataset.json" \
    --gold-batch-size 192 --seed "$seed" --max-length 128 --pack-tokens 8192 --pa-batch-size 64 --threads "$threads"
  stage "train-$variant" "$out/$variant/train_summary.json" "${train[@]}" "${realign[@]}" --method "$variant" \
    --dataset-json-path "$out/$variant/weighted_dataset.json" --output-dir "$out" --run-name "$variant" \
    --loss ipo --alpha-kl 30 --batch-size 16 --num-train-epochs 3 --learning-rate 1e-3 --save-steps 50
done

for variant in base trace oracle-punish; do
  adapter=()
  [ "$variant" = base ] || adapter=(--adapter "$out/$variant")
  stage "generate-$variant" "$out/$variant/responses_test.json" "$bin/worker" generate \
    --model-name-or-path "$out/base" "${adapter[@]}" --prompts "$world/prompts_test.json" \
    --out "$out/$variant/responses_test.json" --max-new-tokens 48 --batch-size 128 --threads "$threads"
  stage "judge-$variant" "$out/$variant/judged_test.json" "$bin/oracle-service" judge \
    --rules "$world/rules_new.toml" --responses-json "$out/$variant/responses_test.json" \
    --output-json "$out/$variant/judged_test.json"
done

printf '{"run": "quickstart", "seed": %d, "variants": ["base", "trace", "oracle-punish"]}\n' "$seed" >"$out/run.json"
echo "== report"
"$bin/coordinator" report --run-dir "$out"
