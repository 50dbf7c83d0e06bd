#!/usr/bin/env bash
# Puts libtorch 2.13 (what tch 0.26 binds) into .libtorch/ at the root of the checkout, once.
#
#   deploy/libtorch.sh           CPU libraries only: about 600 MB on disk
#   deploy/libtorch.sh --cuda    everything the CUDA build needs: several GB
#
# In this order: $LIBTORCH if it is set; a finished .libtorch/; an installed Python torch 2.13; the wheel through pip;
# the official archive through curl. Nothing outside the checkout is changed.
set -euo pipefail

version=2.13.0
cuda_minor=13.0
root=$(cd "$(dirname "$0")/.." && pwd)
target=$root/.libtorch
flavour=cpu
case ${1:-} in
  "") ;;
  --cuda) flavour=cuda ;;
  -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 0 ;;
  *) echo "libtorch.sh: unknown argument '$1' (only --cuda is known)" >&2; exit 2 ;;
esac

say() { echo "libtorch: $*"; }
fail() { echo "libtorch: $*" >&2; exit 1; }

if [ -n "${LIBTORCH:-}" ] && [ "$LIBTORCH" != "$target" ]; then
  [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || fail "LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so; unset it or point it at libtorch $version"
  say "using LIBTORCH=$LIBTORCH"
  exit 0
fi
if [ "$(cat "$target/.complete" 2>/dev/null)" = "$version $flavour" ]; then
  say "$version ($flavour) is in .libtorch already"
  exit 0
fi
command -v g++ >/dev/null || command -v c++ >/dev/null || fail "no C++ compiler (Debian, Ubuntu: apt-get install g++)"

work=$(mktemp -d "$root/.libtorch.XXXXXX")
trap 'rm -rf "$work"' EXIT
tree=$work/tree
mkdir -p "$tree/lib"

# Links a libtorch.so that needs only the CPU libraries: the wheel's own one pulls in all of CUDA.
link_stub() {
  local cxx
  cxx=$(command -v g++ || command -v c++)
  echo '' | "$cxx" -x c++ - -shared -fPIC -o "$tree/lib/libtorch.so" -Wl,-soname,libtorch.so \
    -Wl,--no-as-needed -L"$tree/lib" -ltorch_cpu -lc10 -Wl,-rpath,'$ORIGIN' -Wl,--allow-shlib-undefined
}

# Takes what this flavour needs from an unpacked torch package folder ($1).
take_torch() {
  cp -R "$1/include" "$tree/include"
  if [ "$flavour" = cuda ]; then
    cp -P "$1"/lib/*.so* "$tree/lib/"
  else
    cp "$1"/lib/libtorch_cpu.so "$1"/lib/libc10.so "$tree/lib/"
    cp "$1"/lib/libgomp*.so* "$tree/lib/"
  fi
}

from_python() {
  local package
  package=$(python3 -c "
import importlib.util, pathlib
spec = importlib.util.find_spec('torch')
folder = pathlib.Path(spec.origin).parent if spec else None
text = (folder / 'version.py').read_text() if folder else ''
print(folder if \"'$version\" in text else '')" 2>/dev/null) || return 1
  [ -n "$package" ] && [ -e "$package/lib/libtorch_cpu.so" ] || return 1
  [ "$flavour" = cpu ] || ls "$package"/lib/libtorch_cuda.so >/dev/null 2>&1 || return 1
  say "copying from the installed Python torch at $package"
  take_torch "$package"
  local site
  site=$(dirname "$package")
  find "$site/nvidia" -name '*.so*' -exec cp -P {} "$tree/lib/" \; 2>/dev/null || true
  if [ "$flavour" = cpu ]; then
    find "$tree/lib" -name '*.so*' ! -name 'libtorch*' ! -name 'libc10*' ! -name 'libgomp*' \
      ! -name 'libcudart*' ! -name 'libcupti*' -delete
    link_stub
  fi
}

from_pip() {
  local pip=(python3 -m pip) wheels=$work/wheels
  "${pip[@]}" --version >/dev/null 2>&1 || return 1
  mkdir -p "$wheels"
  # The C++ side is the same whatever Python the wheel is for: ask for one fixed kind, so that any local Python will do.
  local kind=(--only-binary=:all: --python-version 3.11 --implementation cp --platform manylinux_2_28_x86_64
    --platform manylinux_2_27_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
  say "downloading the torch $version wheel (about 530 MB)"
  if [ "$flavour" = cuda ]; then
    "${pip[@]}" download -q -d "$wheels" "${kind[@]}" "torch==$version" || return 1
  else
    "${pip[@]}" download -q --no-deps -d "$wheels" "${kind[@]}" "torch==$version" \
      "nvidia-cuda-runtime==$cuda_minor.*" "nvidia-cuda-cupti==$cuda_minor.*" || return 1
  fi
  say "unpacking"
  python3 - "$wheels" "$work/unpacked" "$flavour" <<'PY'
import pathlib, sys, zipfile
wheels, out, flavour = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]
cpu = ("torch/lib/libtorch_cpu.so", "torch/lib/libc10.so", "torch/lib/libgomp", "torch/include/")
for wheel in wheels.glob("*.whl"):
    with zipfile.ZipFile(wheel) as z:
        for name in z.namelist():
            keep = name.startswith(("torch/lib/", "torch/include/")) if flavour == "cuda" else name.startswith(cpu)
            shared = ".so" in name and name.startswith("nvidia/")
            if flavour == "cpu":
                shared = shared and ("libcudart.so" in name or "libcupti.so" in name)
            if keep or shared:
                z.extract(name, out)
PY
  take_torch "$work/unpacked/torch"
  find "$work/unpacked/nvidia" -name '*.so*' -exec mv {} "$tree/lib/" \;
  [ "$flavour" = cuda ] || link_stub
}

from_archive() {
  command -v curl >/dev/null && command -v unzip >/dev/null || return 1
  local build=cpu
  [ "$flavour" = cpu ] || build=cu130
  local url="https://download.pytorch.org/libtorch/$build/libtorch-shared-with-deps-$version%2B$build.zip"
  say "downloading $url"
  curl -fsSL --retry 3 -o "$work/libtorch.zip" "$url" || return 1
  unzip -q "$work/libtorch.zip" -d "$work/archive"
  rm -rf "$tree"
  mv "$work/archive/libtorch" "$tree"
}

[ "$(uname -m)" = x86_64 ] || say "only x86_64 Linux has been tried; this is $(uname -m)"
from_python || from_pip || from_archive ||
  fail "could not get libtorch $version: neither an installed Python torch, nor pip, nor curl with unzip gave it.
Put it somewhere by hand and set LIBTORCH to that folder."

echo "$version $flavour" >"$tree/.complete"
rm -rf "$target"
mv "$tree" "$target"
say "$version ($flavour) is in .libtorch ($(du -sh "$target" | cut -f1))"
