# Sourced by the scripts at the top of the project: their arguments and their Python.
# The caller has set ROOT to the project folder.

fail() {
    echo "error: $*" >&2
    exit 1
}

# Print the comment at the top of a script, below its first two lines, and its settings block.
show_help() {
    sed -n '3,/^# ---- end of settings/p' "$1" | sed -e '/^# ---- end of settings/d' -e 's/^# \{0,1\}//'
}

# help_or_no_arguments SCRIPT ARGUMENTS...: --help prints the settings, anything else is an error.
help_or_no_arguments() {
    local script="$1"
    shift
    case "${1-}" in
        "") ;;
        -h | --help) show_help "$script"; exit 0 ;;
        *) fail "$(basename "$script") does not take '$1'; settings are variables at its top, see --help" ;;
    esac
}

# one_of NAME ALLOWED...: the variable NAME must hold one of the allowed words.
one_of() {
    local name="$1" word
    shift
    for word in "$@"; do
        [ "${!name}" != "$word" ] || return 0
    done
    fail "$name is '${!name}', it can be $(echo "$@" | sed 's/ / or /g')"
}

# words_of NAME ALLOWED...: the variable NAME must hold allowed words, separated by spaces or commas; commas become spaces.
words_of() {
    local name="$1" word
    shift
    printf -v "$name" '%s' "${!name//,/ }"
    for word in ${!name}; do
        case " $* " in
            *" $word "*) ;;
            *) fail "$name names '$word', it can hold $(echo "$@")" ;;
        esac
    done
}

PACKAGES="torch torchvision numba scipy PIL tqdm matplotlib safetensors tensorboard timm"

# has_packages PYTHON NAMES...: whether a Python runs, is new enough and finds these packages.
has_packages() {
    "$1" -c 'import importlib.util as u, sys
sys.exit(sys.version_info < (3, 10) or any(u.find_spec(n) is None for n in sys.argv[1:]))' "${@:2}" 2>/dev/null
}

# The Python to use: $PYTHON, else the project's own environment, else python3; it must have what the project needs.
find_python() {
    local venv="$ROOT/.venv" remedy="or ./DemoNeMo.sh, which makes an environment"
    if [ -z "${PYTHON-}" ]; then
        PYTHON=python3
        if "$venv/bin/python" -c pass 2>/dev/null; then
            PYTHON="$venv/bin/python"
        elif [ -d "$venv" ]; then
            remedy="or ./DemoNeMo.sh, which makes $venv again: the Python that it was made with is gone"
        fi
    fi
    PYTHON="${PYTHON/#\~\//${HOME-}/}"
    command -v "$PYTHON" >/dev/null || fail "no Python at '$PYTHON'; set PYTHON, $remedy"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        fail "'$PYTHON' does not run or is older than Python 3.10; set PYTHON to another one, $remedy"
    has_packages "$PYTHON" $PACKAGES ||
        fail "'$PYTHON' lacks packages; run '$PYTHON -m pip install -r \"$ROOT/requirements.txt\"', $remedy"
}

# make_environment [tests]: make .venv with the packages of requirements.txt, for "tests" also with those of
# tests/requirements.txt, and with the project itself, so that `import neural_mesh` works; unless that has been done.
make_environment() {
    local venv="$ROOT/.venv" base="" candidate file packages=() names="$PACKAGES"
    local files=("$ROOT/requirements.txt") marker="$ROOT/.venv/installed.txt"
    if [ -n "${PYTHON-}" ]; then
        find_python
        return
    fi
    if [ "${1-}" = tests ]; then
        files+=("$ROOT/tests/requirements.txt")
        marker="$venv/installed-tests.txt"
        names="$names pytest"
    fi
    # a marker names the project's folder, too, to which the environment points; a system that has got another
    # Python since leaves the marker, but no packages
    if ! { echo "$ROOT" && cat "${files[@]}"; } | cmp -s - "$marker" || ! has_packages "$venv/bin/python" $names; then
        [ -w "$ROOT" ] || fail "$ROOT cannot be written, so no environment can be made in it; set PYTHON to one with the packages of requirements.txt"
        for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
            if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
                base="$candidate"
                break
            fi
        done
        [ -n "$base" ] || fail "Python 3.10 or newer is needed, none was found; install it and run this again"
        echo "installing the packages of requirements.txt into $venv (once, several GB) ..." >&2
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$base" -m venv --clear "$venv" ||
            fail "'$base -m venv' failed; on Debian and Ubuntu install python3-venv"
        for file in "${files[@]}"; do
            packages+=(-r "$file")
        done
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" -e "$ROOT" ||
            fail "pip could not install requirements.txt; its message is above"
        { echo "$ROOT" && cat "$ROOT/requirements.txt"; } >"$venv/installed.txt"
        { echo "$ROOT" && cat "${files[@]}"; } >"$marker"
    fi
    PYTHON="$venv/bin/python"
}

# code NAME ARGUMENTS...: run an entry point of code/.
code() {
    local name="$1"
    shift
    "$PYTHON" "$ROOT/code/$name.py" "$@"
}
