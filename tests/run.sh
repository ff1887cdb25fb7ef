#!/usr/bin/env bash
[ -n "${BASH_VERSION-}" ] || exec bash "$0" "$@" # if it was started as: sh SCRIPT
# Make the environment if needed and run the tests: ./tests/run.sh [--all] [pytest arguments]
# Without --all the tests marked slow are left out. Two processes share the files of tests; -n 0 runs them in one.
set -euo pipefail
ROOT="$(CDPATH= cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")/.." && pwd)"
source "$ROOT/code/common.sh"
case "${1-}" in
    -h | --help) sed -n '3,4s/^# //p' "$0"; exit 0 ;;
esac
selection=(-m "not slow")
if [ "${1-}" = --all ]; then
    selection=()
    shift
fi
make_environment tests
cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # of each of the two processes
exec "$PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder ${selection[@]+"${selection[@]}"} "$@"
