#!/usr/bin/env bash
# Fetches NCCL as torch's own CUDA builds use it into .libtorch.nccl/, for the tests that ask the real library what it answers
# without a driver. A GPU host gets it with deploy/libtorch.sh --cuda and does not need this.
set -euo pipefail
cd "$(dirname "$0")/.."

version=2.29.7
target=.libtorch.nccl
[ "$(cat "$target/.complete" 2>/dev/null)" = "$version" ] && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "nccl.sh: downloading the nvidia-nccl-cu13 $version wheel (about 206 MB)"
python3 -m pip download -q --disable-pip-version-check --no-deps -d "$work" --only-binary=:all: --python-version 3.11 \
  --platform manylinux_2_18_x86_64 "nvidia-nccl-cu13==$version"
python3 - "$work" <<'PY'
import pathlib, sys, zipfile
work = pathlib.Path(sys.argv[1])
for wheel in work.glob("*.whl"):
    with zipfile.ZipFile(wheel) as z:
        (work / "libnccl.so.2").write_bytes(z.read("nvidia/nccl/lib/libnccl.so.2"))
PY
mkdir -p "$target"
mv "$work/libnccl.so.2" "$target/"
echo "$version" >"$target/.complete"
echo "nccl.sh: $version is in $target"
