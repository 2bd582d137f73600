#!/usr/bin/env bash
# launch/run.sh VERB ...: makes or reuses .venv, installs what is missing, and runs
# `crossguard VERB ...` in it. Without a verb it prints the help and installs nothing.
# launch/run.sh --accelerator cpu|cuda|tpu [VERB ...]: with the jax for that, which .venv keeps;
# without a verb it installs, and runs nothing.
# launch/run.sh --on slurm|k8s|tpu|skypilot [options] VERB ...: runs the verb elsewhere; with
# --dry-run it prints every file and command instead. Installs nothing here.
#
#   PYTHON              the Python to make .venv with (3.11 or 3.12); default: the first one found
#   CROSSGUARD_DEVICES  try a mesh without its hardware: so many CPU devices
#
# As one of several processes (Slurm, Cloud TPU, MPI, Kubernetes, or JAX_COORDINATOR_ADDRESS,
# JAX_NUM_PROCESSES and JAX_PROCESS_ID) `crossguard` joins the others before it touches a device.
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

# What an environment must have been made from to be good for a purpose, `run` or `test`. One that
# was made for an accelerator stays so until another is asked for; the CPU every jax has.
wanted() {
  local files=(pyproject.toml requirements.txt)
  [[ $1 == run ]] || files+=(requirements-dev.txt)
  printf '%s %s %s ' "$(version_of "$python")" "$root" "$(extra)"
  (cd "$root" && cat "${files[@]}") | cksum
}

extra() {
  if [[ $accelerator == cuda || $accelerator == tpu ]]; then
    printf '%s' "$accelerator"
  elif [[ -f $venv/accelerator ]]; then
    printf '%s' "$(<"$venv/accelerator")"
  else
    printf 'cpu'
  fi
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

# The Python that a virtual environment was made from, or the same one.
base_python() {
  "$python" -c 'import sys; print(getattr(sys, "_base_executable", sys.executable))'
}

# Debian's Python comes without what its venv module needs, and some come without the module. What
# it makes is little: a folder, a link and a note; and the pip outside installs into it.
make_venv_by_hand() {
  local base
  base=$(base_python)
  "$base" -m pip --version >/dev/null 2>&1 ||
    fail "$python has neither venv nor pip: install one of them, or set PYTHON to another Python"
  printf 'launch/run.sh: %s has no venv that works, using its pip\n' "$python" >&2
  rm -rf "$venv"
  mkdir -p "$venv/bin" "$venv/lib/python$(version_of "$python")/site-packages"
  ln -s "$base" "$venv/bin/python"
  printf 'home = %s\ninclude-system-site-packages = false\nversion = %s\n' \
    "$(dirname "$base")" "$(version_of "$python")" >"$venv/pyvenv.cfg"
}

make_ready() {
  local purpose=$1 requirements=$root/requirements.txt
  [[ $purpose == run ]] || requirements=$root/requirements-dev.txt
  # Compiling all that is installed takes longer than installing it; see warm_up.
  local what=$root kept pip alone
  kept=$(extra)
  [[ $kept == cpu ]] || what="${root}[$kept]"
  read -ra alone <<<"$(sed -n 's/^# without its dependencies: //p' "$requirements" | tr '\n' ' ')"
  if [[ $(version_of "$venv/bin/python") != "$(version_of "$python")" ]]; then
    printf 'launch/run.sh: making %s\n' "$venv" >&2
    "$python" -m venv --clear "$venv" >&2 || make_venv_by_hand
  fi
  if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    pip=("$venv/bin/python" -m pip)
  else
    pip=("$(base_python)" -m pip --python "$venv/bin/python")
  fi
  pip+=(install --disable-pip-version-check --no-compile)
  printf 'launch/run.sh: installing, some minutes the first time\n' >&2
  if ! {
    "${pip[@]}" -e "$what" -r "$requirements" &&
      { [[ ${#alone[@]} == 0 ]] || "${pip[@]}" --no-deps "${alone[@]}"; }
  } 2>&1 | follow_pip; then
    grep -E '^ *ERROR' "$venv/install.log" | tail -n 5 >&2 || true
    fail "installing failed: see $venv/install.log, mend it and run this again"
  fi
  printf '%s\n' "$kept" >"$venv/accelerator"
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

# A jax that knows the CPU alone runs beside a GPU without a word.
warn_of_idle_gpu() {
  local plugin
  for plugin in "$venv"/lib/python*/site-packages/jax_plugins/xla_*; do
    [[ ! -e $plugin ]] || return 0
  done
  [[ ${JAX_PLATFORMS:-} != cpu ]] && command -v nvidia-smi >/dev/null || return 0
  [[ $(nvidia-smi -L 2>/dev/null) == GPU* ]] || return 0
  printf '%s\n' \
    'launch/run.sh: ****************************************************************' \
    'launch/run.sh: WARNING: this machine has a GPU, and the jax in .venv cannot use it.' \
    'launch/run.sh: Everything runs on the CPU. Install the other jax: launch/run.sh --accelerator cuda' \
    'launch/run.sh: ****************************************************************' >&2
}

accelerator=
while [[ ${1:-} == --accelerator || ${1:-} == --accelerator=* ]]; do
  if [[ $1 == --accelerator ]]; then
    accelerator=${2:-}
    shift
  else
    accelerator=${1#*=}
  fi
  shift || true
  case $accelerator in
    cpu | cuda | tpu) ;;
    *)
      printf "launch/run.sh: --accelerator '%s': choose from cpu, cuda, tpu\n" "$accelerator" >&2
      exit 2
      ;;
  esac
done

python=$(find_python)
if [[ ${1:-} == --on || ${1:-} == --on=* ]]; then
  [[ $1 == --on ]] || set -- --on "${1#*=}" "${@:2}"
  [[ -z $accelerator ]] || set -- "${@:1:2}" --accelerator "$accelerator" "${@:3}"
  PYTHONPATH=$root exec "$python" -m crossguard_jax "$@"
fi

verb=
for word in "$@"; do
  if [[ $word != -* ]]; then
    verb=$word
    break
  fi
done
if [[ -z $verb && (-z $accelerator || $# != 0) ]]; then
  PYTHONPATH=$root exec "$python" -m crossguard_jax "$@"
fi

export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$root/.jax_cache}
# What Python compiles is kept in .venv, also where an image says that nothing is to be written.
export PYTHONDONTWRITEBYTECODE=
export CROSSGUARD_COMMAND=${BASH_SOURCE[0]}
purpose=run
[[ $verb != test ]] || purpose="test"
if ! is_ready "$purpose"; then
  [[ -w $root && -w $root/requirements.txt ]] ||
    fail "$root is not $(id -un)'s to write, and .venv has to be made there: clone it elsewhere"
  # Of several that start at once, one installs and the others wait. The lock is on a file that is
  # there anyway, and goes with the subshell, so the verb itself does not hold it.
  (
    if command -v flock >/dev/null; then flock 9; fi
    if ! is_ready "$purpose"; then make_ready "$purpose"; fi
  ) 9>>"$root/requirements.txt"
fi
[[ -n $verb ]] || exit 0

case $accelerator in
  cpu) export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu} ;;
  # A GPU that does not start is an error then; jax alone would go on without it.
  cuda | tpu) export JAX_PLATFORMS=${JAX_PLATFORMS:-$accelerator,cpu} ;;
esac
warn_of_idle_gpu
if [[ -n ${CROSSGUARD_DEVICES:-} ]]; then
  export XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$CROSSGUARD_DEVICES"
fi
exec "$venv/bin/crossguard" "$@"
