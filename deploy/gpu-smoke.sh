#!/usr/bin/env bash
# On a host with an NVIDIA GPU: does the GPU compute what the processor computes, and how fast? Prints one table.
#
#   deploy/gpu-smoke.sh                    gets libtorch with CUDA, builds (release), compares, measures
#   deploy/gpu-smoke.sh --device cuda:1    on another GPU
#   deploy/gpu-smoke.sh --on cpu           the processor plays the second device, too: tests this script
#
# TRACE_BIN names a folder with a worker that is built already; nothing is fetched or built then.
# Exit code: 0 all passed, 1 a check failed, 2 there is no GPU here, or the arguments are wrong.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD

device=cuda:0
while [ $# -gt 0 ]; do
  case $1 in
    --device | --on) [ $# -ge 2 ] || { echo "gpu-smoke.sh: $1 needs a device" >&2; exit 2; }; device=$2; shift 2 ;;
    -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "gpu-smoke.sh: unknown argument '$1' (only --device and --on are known)" >&2; exit 2 ;;
  esac
done
case $device in
  cpu) ;;
  cuda | cuda:[0-9]*)
    if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L >/dev/null 2>&1; then
      echo "gpu-smoke.sh: there is no NVIDIA GPU here, or no driver (nvidia-smi lists none); --on cpu runs the script without one" >&2
      exit 2
    fi
    ;;
  *) echo "gpu-smoke.sh: '$device' is no device; expected cpu, cuda or cuda:N" >&2; exit 2 ;;
esac
command -v python3 >/dev/null || { echo "gpu-smoke.sh: python3 is needed to compare the results" >&2; exit 2; }

if [ -n "${TRACE_BIN:-}" ]; then
  worker=$TRACE_BIN/worker
  [ -x "$worker" ] || { echo "gpu-smoke.sh: TRACE_BIN=$TRACE_BIN has no worker" >&2; exit 2; }
else
  if [ "$device" = cpu ]; then deploy/libtorch.sh; else deploy/libtorch.sh --cuda; fi
  cargo build --locked --release -p worker
  worker=$root/target/release/worker
fi
export LD_LIBRARY_PATH="${LIBTORCH:-$root/.libtorch}/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Against itself the processor needs no speed, and one thread is out of nobody's way.
threads=()
[ "$device" != cpu ] || threads=(1)
python3 deploy/gpu_smoke.py "$worker" "$device" "$work" "${threads[@]}"
