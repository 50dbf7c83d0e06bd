#!/usr/bin/env bash
# The method from start to report on one machine: libtorch and a release build where they are missing, then the example
# run: a small world in which a policy changes, a small model trained on the spot, triage by a mock of the oracle, impact
# scores, two re-alignments, evaluation. See docs/policy-shift.md.
#
#   deploy/quickstart.sh [OPTIONS OF coordinator run]
#   deploy/quickstart.sh --set run.seed=2 --set 'run.name="quickstart-seed2"'
#
# Finished stages are skipped when it is run again; an interrupted one goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-} in
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac

deploy/libtorch.sh
echo "== build (release)"
cargo build --release --locked --workspace
echo "== run"
exec target/release/coordinator run deploy/examples/quickstart.toml --local 2 "$@"
