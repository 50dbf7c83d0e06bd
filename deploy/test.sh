#!/usr/bin/env bash
# Sets up a fresh machine and runs every check: formatting, clippy with warnings denied, all tests.
#
#   deploy/test.sh            needs a Rust toolchain, a C++ compiler, git, python3 with pip
#   deploy/test.sh --python   also the checks against transformers and PEFT, in a virtual environment under .venv/
set -euo pipefail
cd "$(dirname "$0")/.."

python=no
case ${1:-} in
  "") ;;
  --python) python=yes ;;
  -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) echo "test.sh: unknown argument '$1' (only --python is known)" >&2; exit 2 ;;
esac

step() {
  local begun=$SECONDS
  echo "== $*"
  "$@"
  echo "== done in $((SECONDS - begun)) s"
}

step deploy/libtorch.sh
step deploy/nccl.sh
step cargo fmt --all --check
step cargo clippy --locked --workspace --all-targets -- -D warnings
step cargo test --locked --workspace
step env TRACE_BIN=target/debug deploy/gpu-smoke.sh --on cpu
if [ $python = yes ]; then
  [ -x .venv/bin/python ] || python3 -m venv .venv
  step .venv/bin/python -m pip install -q --disable-pip-version-check -r tests/python/requirements.txt
  step tests/python/run_checks.sh .venv
fi
echo "all checks passed in $SECONDS s"
