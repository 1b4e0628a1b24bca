#!/usr/bin/env bash
# Runs the tests of CUDA devices that are in this folder. The machine needs a CUDA device, its driver, bash, and tar with xz or Python.
# The exit code is 0 if every test passed.
set -u
usage="usage: run.sh [--libraries DIR] [--results DIR] [--limit SECONDS] [--without PROGRAM]... [PROGRAM [ARGUMENT...]]
  --libraries DIR   where cuBLASLt and NCCL are
  --results DIR     where programs and kernels are unpacked, and the output of each program goes (default: results)
  --limit SECONDS   the longest time that a program may take (default: 1200)
  --without PROGRAM leave this program out
  PROGRAM           run this program and nothing else"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
libraries='' results=$PWD/results limit=1200 without=' '

while [ $# -gt 0 ]; do
  case $1 in
    --libraries | --results | --limit)
      if [ $# -lt 2 ]; then
        echo "error: $1 has no value" >&2
        exit 2
      fi
      printf -v "${1#--}" %s "$2"
      shift 2
      ;;
    --without)
      without="$without${2-} "
      shift $(($# > 1 ? 2 : 1))
      ;;
    -h | --help)
      echo "$usage"
      exit 0
      ;;
    -*)
      echo "error: there is no option $1
$usage" >&2
      exit 2
      ;;
    *) break ;;
  esac
done

# The folder that holds the library $1.
folder_of() {
  local folder
  for folder in "$libraries" /usr/local/cuda/lib64 /usr/lib/x86_64-linux-gnu /usr/lib64; do
    if [ -n "$folder" ] && compgen -G "$folder/$1*" >/dev/null; then
      echo "$folder"
      return 0
    fi
  done
  return 1
}

# Looks for the libraries $2 and following that the program $1 needs: sets `path` to their folders, or `missing`.
look_for() {
  local library folder
  path='' missing=''
  for library in "${@:2}"; do
    if folder=$(folder_of "$library"); then
      path=$path$folder:
    else
      missing="$missing $library"
    fi
  done
}

# Starts a program, which finds the kernels and its own environment.
start() {
  # No value in it has a space.
  # shellcheck disable=SC2086
  LD_LIBRARY_PATH=$path${LD_LIBRARY_PATH-} PHALANX_KERNEL_CACHE=$results/kernels PHALANX_REQUIRE_CARDS=1 \
    "${within[@]}" env $environment "$results/bin/$1" "${@:2}" </dev/null
}

mkdir -p "$results" && results=$(cd "$results" && pwd) || exit 1
for packed in bin kernels; do
  if command -v xz >/dev/null; then
    tar -xJf "$here/$packed.tar.xz" -C "$results" || exit 1
  else
    python3 -m tarfile -e "$here/$packed.tar.xz" "$results" || exit 1
  fi
done

within=()
if [ $# -gt 0 ]; then
  while read -r _ name needs environment; do
    if [ "$name" = "$1" ]; then
      # shellcheck disable=SC2086
      look_for "$name" ${needs//,/ }
      if [ -n "$missing" ]; then
        echo "error: $name needs$missing; --libraries DIR says where" >&2
        exit 1
      fi
      start "$@"
      exit
    fi
  done <"$here/programs"
  echo "error: there is no program $1; there are:" >&2
  cut -d' ' -f2 "$here/programs" >&2
  exit 2
fi

if command -v timeout >/dev/null; then
  within=(timeout --kill-after=10 "$limit")
fi
cat "$here/about"
uname -srm
if command -v nvidia-smi >/dev/null; then
  nvidia-smi
else
  echo "there is no nvidia-smi"
fi

rows=() good=true
while read -r kind name needs environment; do
  case $kind in
    test) arguments=() ;;
    # An index out of range concerns the whole card.
    table) arguments=(--test-threads=1) ;;
    *) continue ;;
  esac
  if [[ $without == *" $name "* ]]; then
    rows+=("$name SKIPPED - left out by --without")
    continue
  fi
  # shellcheck disable=SC2086
  look_for "$name" ${needs//,/ }
  if [ -n "$missing" ]; then
    rows+=("$name SKIPPED - needs$missing (--libraries DIR says where)")
    continue
  fi
  echo
  echo "== $name"
  begin=$SECONDS
  start "$name" --show-output "${arguments[@]}" 2>&1 | tee "$results/$name.log"
  status=${PIPESTATUS[0]}
  seconds=$((SECONDS - begin))
  counts=$(sed -n 's/^test result: [a-zA-Z]*\. \([0-9]* passed; [0-9]* failed\).*/\1/p' "$results/$name.log")
  word=ok
  if [ "$status" != 0 ]; then
    word=FAILED good=false
    [ "$status" != 124 ] || counts="ended by the limit of $limit s"
  fi
  rows+=("$name $word $seconds ${counts:-code $status}")
done <"$here/programs"

echo
printf '%-20s %-8s %7s  %s\n' program result seconds what
for row in "${rows[@]}"; do
  read -r name word seconds what <<<"$row"
  printf '%-20s %-8s %7s  %s\n' "$name" "$word" "$seconds" "$what"
done
$good
