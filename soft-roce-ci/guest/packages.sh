# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of soft-roce-ci/run and of its other parts
# What the machine itself must have: found by the file it is needed for, installed from the machine's
# own apt sources when missing. Sourced by soft-roce-ci/run.

# package: a command, or a file pattern with a slash, that shows that it is there
readonly vm_packages=(
    "qemu-system-x86: qemu-system-x86_64"
    "seabios: /usr/share/seabios/bios-256k.bin"
    "busybox-static: busybox"
    "cpio: cpio"
    "kmod: modprobe"
    "kmod: depmod"
    "util-linux: setpriv"
    "util-linux: flock"
    "e2fsprogs: mkfs.ext4"
    "xfsprogs: mkfs.xfs"
    "xz-utils: xz"
    "zstd: zstd"
)
readonly verbs_packages=(
    "iproute2: ip"
    "iproute2: rdma"
    "rdma-core: /usr/share/doc/rdma-core"
    "ibverbs-providers: /usr/lib/*/libibverbs/librxe-rdmav*.so"
    "libibverbs1: /usr/lib/*/libibverbs.so.1"
    "librdmacm1: /usr/lib/*/librdmacm.so.1"
    "ibverbs-utils: ibv_devinfo"
    "perftest: ib_read_lat"
    "rdmacm-utils: rping"
)

# as_root CMD...: run it with the rights that installing needs
as_root() {
    if ((EUID == 0)); then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        return 1
    fi
}

# missing_packages "PACKAGE: PROOF"...: print each package whose proof is not there
missing_packages() {
    local line proof
    for line in "$@"; do
        proof=${line#*: }
        if [[ $proof == */* ]]; then
            compgen -G "$proof" >/dev/null || echo "${line%%:*}"
        else
            command -v "$proof" >/dev/null || echo "${line%%:*}"
        fi
    done | sort -u
}

# need_packages "PACKAGE: PROOF"...: install what is missing; quiet and quick when nothing is
need_packages() {
    local -a missing
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]} == 0)) && return
    command -v apt-get >/dev/null ||
        fail 121 "this machine lacks ${missing[*]} and has no apt (install the tools of that name yourself)"
    if ((EUID != 0)) && ! command -v sudo >/dev/null; then
        fail 121 "this machine lacks ${missing[*]} (run 'apt-get install ${missing[*]}' as root)"
    fi
    note "installing ${missing[*]}"
    local log=$run_dir/apt.log lock
    local -a install=(env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get -q install -y
        --no-install-recommends -o DPkg::Lock::Timeout=300)
    exec {lock}>"$cache/packages.lock"
    flock "$lock"
    if ! {
        # A signal ends the fetching; what is being unpacked is not cut off.
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update &&
            as_root "${install[@]}" --download-only "${missing[@]}" &&
            (trap '' INT TERM HUP && as_root "${install[@]}" "${missing[@]}")
    } >"$log" 2>&1 </dev/null; then
        tail -n 15 "$log" >&2
        fail 121 "apt could not install ${missing[*]} (see the lines above; check the network and apt sources)"
    fi
    exec {lock}>&-
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]} == 0)) ||
        fail 121 "${missing[*]} still missing after apt installed it (check 'apt-get install ${missing[*]}')"
}
