#!/usr/bin/env bash
# launch/run.sh VERB ...: makes or reuses .venv, installs what is missing, and runs
# `crossguard VERB ...` in it. Without a verb it prints the help and installs nothing.
#
#   PYTHON              the Python to make .venv with (3.11 or 3.12); default: the first one found
#   CROSSGUARD_DEVICES  try a mesh without its hardware: so many CPU devices
#
# As one of several processes (Slurm, Cloud TPU, or JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
# JAX_PROCESS_ID) `crossguard` joins the others before it touches a device.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv

fail() {
  printf 'launch/run.sh: %s\n' "$1" >&2
  exit 1
}

# The version of a Python that we can use, or nothing.
version_of() {
  local version
  version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || return 0
  [[ $version != 3.11 && $version != 3.12 ]] || printf '%s' "$version"
}

find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    [[ -n $(version_of "$PYTHON") ]] || fail "PYTHON=$PYTHON does not run as Python 3.11 or 3.12"
    printf '%s' "$PYTHON"
    return
  fi
  for candidate in "$venv/bin/python" python3.11 python3.12 python3 python; do
    if [[ -n $(version_of "$candidate") ]]; then
      printf '%s' "$candidate"
      return
    fi
  done
  fail "needs Python 3.11 or 3.12: install one, or set PYTHON to the path of one"
}

# What an environment must have been made from to be good for a purpose, `run` or `test`.
wanted() {
  local files=(pyproject.toml requirements.txt)
  [[ $1 == run ]] || files+=(requirements-dev.txt)
  printf '%s %s ' "$(version_of "$python")" "$root"
  (cd "$root" && cat "${files[@]}") | cksum
}

is_ready() {
  [[ -x $venv/bin/crossguard && -f $venv/made-for-$1 && $(<"$venv/made-for-$1") == "$(wanted "$1")" ]]
}

# Shows how far pip is, and keeps all it says.
follow_pip() {
  local line found=0 end=$'\n'
  [[ ! -t 2 ]] || end=$'\r'
  while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in
      Collecting\ * | Processing\ *)
        found=$((found + 1))
        if [[ -t 2 || $((found % 20)) == 0 ]]; then printf '  %d packages found%s' "$found" "$end" >&2; fi
        ;;
      Installing\ collected*) printf '  installing %d packages\n' "$found" >&2 ;;
    esac
  done >"$venv/install.log"
}

make_ready() {
  local purpose=$1 requirements=$root/requirements.txt
  [[ $purpose == run ]] || requirements=$root/requirements-dev.txt
  # Compiling all that is installed takes longer than installing it; see warm_up.
  local pip=("$venv/bin/python" -m pip install --disable-pip-version-check --no-compile) alone
  read -ra alone <<<"$(sed -n 's/^# without its dependencies: //p' "$requirements" | tr '\n' ' ')"
  if [[ $(version_of "$venv/bin/python") != "$(version_of "$python")" ]]; then
    printf 'launch/run.sh: making %s\n' "$venv" >&2
    "$python" -m venv --clear "$venv" >&2 ||
      fail "$python -m venv failed: install its venv module, or set PYTHON to another Python"
  fi
  printf 'launch/run.sh: installing, some minutes the first time\n' >&2
  if ! {
    "${pip[@]}" -e "$root" -r "$requirements" &&
      { [[ ${#alone[@]} == 0 ]] || "${pip[@]}" --no-deps "${alone[@]}"; }
  } 2>&1 | follow_pip; then
    grep -E '^ *ERROR' "$venv/install.log" | tail -n 5 >&2 || true
    fail "installing failed: see $venv/install.log, mend it and run this again"
  fi
  warm_up
  wanted run >"$venv/made-for-run"
  [[ $purpose == run ]] || wanted test >"$venv/made-for-test"
}

# The first verdict leaves its bytecode and its compiled program behind, so the second is quick. On
# the CPU, since other processes may be waiting for this one beside an accelerator.
warm_up() {
  JAX_PLATFORMS=cpu "$venv/bin/crossguard" score --model toy://llava --text "is this safe?" \
    >>"$venv/install.log" 2>&1 || printf 'launch/run.sh: no verdict: see %s\n' "$venv/install.log" >&2
}

verb=
for word in "$@"; do
  if [[ $word != -* ]]; then
    verb=$word
    break
  fi
done

python=$(find_python)
if [[ -z $verb ]]; then
  PYTHONPATH=$root exec "$python" -m crossguard_jax "$@"
fi

export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$root/.jax_cache}
# What Python compiles is kept in .venv, also where an image says that nothing is to be written.
export PYTHONDONTWRITEBYTECODE=
export CROSSGUARD_COMMAND=${BASH_SOURCE[0]}
purpose=run
[[ $verb != test ]] || purpose="test"
if ! is_ready "$purpose"; then
  # Of several that start at once, one installs and the others wait. The lock is on a file that is
  # there anyway, and goes with the subshell, so the verb itself does not hold it.
  (
    if command -v flock >/dev/null; then flock 9; fi
    if ! is_ready "$purpose"; then make_ready "$purpose"; fi
  ) 9>>"$root/requirements.txt"
fi

if [[ -n ${CROSSGUARD_DEVICES:-} ]]; then
  export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$CROSSGUARD_DEVICES"
fi
exec "$venv/bin/crossguard" "$@"
