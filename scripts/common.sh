# shellcheck shell=bash disable=SC2034  # its variables are used where it is sourced
# SPDX-License-Identifier: Apache-2.0
# What the scripts share: messages, the tools to use, and where LibTorch is. Sourced, never run.

torch_wanted=2.13.0  # what setup installs
torch_oldest=2.11    # the oldest LibTorch that the code builds with

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
step="starting"

say() { printf '%s\n' "$*" >&2; }
fail() {
    printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}
# Names what is under way, so that a failure can say where it happened.
begin() {
    step=$1
    say "== $step"
}
report_failure() {
    # Not in a $(...): what holds it fails in its turn, or handles the failure.
    [ "$BASH_SUBSHELL" -gt 0 ] || say "$(basename "$0"): failed while $step (exit code $1)."
    exit "$1"
}
trap_failures() {
    set -E
    trap 'report_failure $?' ERR
}

# use_tools: sets cmake, ctest and ninja. The distribution's tools come before those of PATH, where wrappers of Python
# environments may stand that do not work in this directory. CMAKE names another cmake.
use_tools() {
    local candidate version
    for candidate in ${CMAKE:+"$CMAKE"} /usr/bin/cmake cmake; do
        version=$("$candidate" --version 2>/dev/null | sed -n 's/^cmake version \([0-9.]*\).*/\1/p') || continue
        if [ -n "$version" ] && at_least "$version" 3.25; then
            cmake=$(command -v "$candidate")
            ctest=$(dirname "$cmake")/ctest
            break
        fi
    done
    [ -n "${cmake:-}" ] || fail "CMake 3.25 or newer is needed and none was found. Run scripts/setup; on a distribution with an older one: python3 -m pip install cmake, then CMAKE=\$(command -v cmake) $0"
    for candidate in /usr/bin/ninja ninja; do
        "$candidate" --version >/dev/null 2>&1 || continue
        ninja=$(command -v "$candidate")
        break
    done
    [ -n "${ninja:-}" ] || fail "ninja was not found. Run scripts/setup."
}

at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# torch_of_prefix_path: the folder of TorchConfig.cmake in the user's CMAKE_PREFIX_PATH, or nothing.
torch_of_prefix_path() {
    local prefix folder
    local IFS=':;'
    for prefix in ${CMAKE_PREFIX_PATH:-}; do
        for folder in "$prefix/share/cmake/Torch" "$prefix/lib/cmake/Torch" "$prefix/Torch" "$prefix"; do
            if [ -f "$folder/TorchConfig.cmake" ]; then
                printf '%s\n' "$folder"
                return
            fi
        done
    done
}

# torch_of_python PYTHON: the same for the torch that PYTHON would import, if it is new enough; nothing otherwise.
torch_of_python() {
    "$1" - "$torch_oldest" 2>/dev/null <<'PYTHON' || true
import importlib.util, pathlib, re, sys
spec = importlib.util.find_spec("torch")  # finds it without the seconds that importing it takes
if spec and spec.submodule_search_locations:
    folder = pathlib.Path(spec.submodule_search_locations[0])
    version = re.search(r"__version__ = '(\d+)\.(\d+)", (folder / "version.py").read_text())
    oldest = tuple(int(part) for part in sys.argv[1].split("."))
    config = folder / "share/cmake/Torch"
    if version and tuple(map(int, version.groups())) >= oldest and (config / "TorchConfig.cmake").is_file():
        print(config)
PYTHON
}

# find_torch: sets torch_folder and torch_source, or leaves torch_folder empty. The order is that of the README.
find_torch() {
    torch_source="CMAKE_PREFIX_PATH" torch_folder=$(torch_of_prefix_path)
    [ -z "$torch_folder" ] || return 0
    torch_source="the active python3" torch_folder=$(torch_of_python python3)
    [ -z "$torch_folder" ] || return 0
    torch_source=".venv" torch_folder=""
    if [ ! -e "$root/.venv/$venv_unfinished" ]; then
        torch_folder=$(torch_of_python "$root/.venv/bin/python")
    fi
}
venv_unfinished=performer-unfinished  # stands in .venv while setup fills it
