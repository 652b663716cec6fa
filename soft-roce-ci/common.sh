# shellcheck shell=bash
# shellcheck disable=SC2034 # variables of the parts that are sourced
# What demo and test share: where things are, the packages that a build needs, the build. Sourced by both.

here=$(cd -- "$(dirname -- "$(readlink -f -- "${BASH_SOURCE[0]}")")" && pwd)
top=$(dirname -- "$here")
readonly here top
name=$(basename -- "$0")
readonly name
note() { echo "$name: $*" >&2; }

# A user's PATH may lack what is called here, and in the guest.
PATH=$PATH:/usr/sbin:/sbin

# fail CODE WHAT
fail() {
    local code=$1
    shift
    echo "$name: ERROR $code: $*" >&2
    exit "$code"
}

# shellcheck source=soft-roce-ci/guest/packages.sh
. "$here/guest/packages.sh"

readonly build_packages=(
    "gcc: cc"
    "libc6-dev: /usr/include/stdlib.h"
    "cmake: cmake"
    "make: make"
    "python3: python3"
    "libclang-dev: /usr/lib/llvm-*/lib/libclang.so"
)
# What counts instructions.
readonly count_packages=("valgrind: valgrind")

readonly end_steps=200 # of 0.05 s each, from a signal to the end of what else a group had running

# leave: ends what goes on beside this script, each in a process group of its own, and waits for it
leave() {
    local groups group step
    trap '' INT TERM HUP
    # Those that run, and those that the terminal has stopped.
    mapfile -t groups < <(jobs -rp && jobs -sp)
    for group in "${groups[@]}"; do
        kill -TERM -- "-$group" 2>/dev/null || true
        kill -CONT -- "-$group" 2>/dev/null || true
    done
    for group in "${groups[@]}"; do
        wait "$group" 2>/dev/null || true
        for ((step = 0; step < end_steps; step++)); do
            kill -0 -- "-$group" 2>/dev/null || break
            sleep 0.05
        done
    done
    rm -rf -- "$run_dir"
}

# begin: this run's own folder, and the cache; both parts of what the sourced files expect
begin() {
    cache=${VKV_CACHE:-${XDG_CACHE_HOME:-${HOME:-/var/tmp}/.cache}/verbs-kv}
    mkdir -p "$cache" || fail 120 "the cache folder $cache cannot be made (name another in VKV_CACHE)"
    run_dir=$(mktemp -d "${TMPDIR:-/tmp}/verbs-kv-$name.XXXXXXXX")
    trap leave EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

# need_toolchain: what a build needs, installed where apt has it
need_toolchain() {
    if ! command -v cargo >/dev/null && [[ -x $HOME/.cargo/bin/cargo ]]; then
        PATH=$HOME/.cargo/bin:$PATH
    fi
    command -v cargo >/dev/null || fail 121 "no cargo here (install a Rust toolchain, see rust-version in Cargo.toml)"
    need_packages "${build_packages[@]}"
}

# prepare_guests RUN-OPTIONS...: fetches kernel and packages of a guest while something else is built; run says what fails
prepare_guests() {
    # Nobody can be asked for a password from there.
    if ((EUID != 0)) && command -v sudo >/dev/null && ! sudo -n true 2>/dev/null; then
        return
    fi
    set -m
    "$here/run" --quiet --prepare "$@" >/dev/null 2>&1 </dev/null &
    set +m
}

# guarded CMD...: runs it in a process group of its own, which ends with this script, however that ends
guarded() {
    set -m
    "$@" </dev/null &
    local group=$! code=0
    set +m
    wait "$group" || code=$?
    return "$code"
}

# build_programs PACKAGE...: kv-server, kv and the programs of these packages, for release; sets $programs. Another choice of
# packages has cargo unify other features and build much anew: who has built them all names their folder in VKV_PROGRAMS.
build_programs() {
    programs=${VKV_PROGRAMS-}
    [[ -z $programs ]] || return 0
    need_toolchain
    note "building (the first time takes some minutes)"
    (cd "$top" && cargo build --release --locked --quiet -p kv-server -p kv-client "${@/#/-p}" --bins) || return
    programs=${CARGO_TARGET_DIR:-$top/target}/release
}
