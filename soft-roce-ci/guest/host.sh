# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of soft-roce-ci/run and of its other parts
# CMD on this very machine: on its RDMA device, or on Soft-RoCE loaded for as long as CMD runs. Sourced by
# soft-roce-ci/run.

readonly host_rxe_link=vkv_rxe0 host_rxe_netdev=vkv0 host_rxe_addr=198.18.0.1 host_rxe_mtu=4500
readonly end_steps=40 # of 0.05 s each, from SIGTERM to SIGKILL

# usable_device: print the first RDMA device with an active port, if its verbs can be opened
usable_device() {
    local device uverbs state
    for device in /sys/class/infiniband/*; do
        [[ -d $device ]] || continue
        for uverbs in "$device"/device/infiniband_verbs/uverbs* /sys/class/infiniband_verbs/uverbs*; do
            [[ -r $uverbs/ibdev && $(<"$uverbs/ibdev") == "${device##*/}" ]] || continue
            (exec 3<>"/dev/infiniband/${uverbs##*/}") 2>/dev/null || continue
            read -r state <"$device/ports/1/state" || continue
            [[ $state == *ACTIVE* ]] || continue
            echo "${device##*/}"
            return
        done
    done
    return 1
}

# address_of DEVICE: the IPv4 address of the network interface behind its port
address_of() {
    local netdev
    for netdev in "/sys/class/infiniband/$1/ports/1/gid_attrs/ndevs"/*; do
        netdev=$(cat "$netdev" 2>/dev/null) || continue
        ip -4 -o address show dev "$netdev" | awk '{ sub("/.*", "", $4); print $4; exit }'
        return
    done
}

# run_here KIND DEVICE ADDRESS
run_here() {
    make_out
    mkdir "$run_dir/nvme"
    export OUT=$out VKV_NVME=$run_dir/nvme VKV_FABRIC_KIND=$1 VKV_TEST_DEVICE=$2 VKV_TEST_ADDR=$3
    note "device $2, address ${3:-none}"
    ulimit -l unlimited 2>/dev/null || true
    # A session of its own, so that whatever CMD leaves running can be ended with it.
    setsid setpriv --pdeathsig TERM -- env -- "PATH=$caller_path" "${cmd[@]}" </dev/null &
    here_pid=$!
    undo+=(end_here)
    local code=0
    wait "$here_pid" || code=$?
    exit "$code"
}

end_here() {
    kill -TERM -- "-$here_pid" 2>/dev/null || return 0
    local step
    for ((step = 0; step < end_steps; step++)); do
        sleep 0.05
        kill -0 -- "-$here_pid" 2>/dev/null || return 0
    done
    kill -KILL -- "-$here_pid" 2>/dev/null || true
}

# prepare_device, prepare_host_rxe: what running a command there needs, or why it cannot be
prepare_device() {
    usable_device >/dev/null ||
        fail 125 "no RDMA device of this machine has an active port and verbs that can be opened (check 'rdma link' and the rights of /dev/infiniband, or use --fabric vm)"
    need_packages "${verbs_packages[@]}"
}

prepare_host_rxe() {
    ((EUID == 0)) || fail 125 "--fabric host-rxe loads kernel modules and needs root (use sudo, or --fabric vm)"
    need_packages "${verbs_packages[@]}" "kmod: modprobe"
}

run_on_device() {
    prepare_device
    local device
    device=$(usable_device)
    run_here device "$device" "$(address_of "$device")"
}

run_on_host_rxe() {
    prepare_host_rxe
    local module
    for module in crc32_generic rdma_rxe rdma_ucm dummy; do
        [[ ! -d /sys/module/$module ]] || continue
        if modprobe "$module" 2>/dev/null; then
            undo+=("modprobe -r $module")
        elif [[ $module != crc32_generic ]]; then
            fail 125 "this kernel, $(uname -r), has no module $module (use --fabric vm)"
        fi
    done
    ip link add "$host_rxe_netdev" mtu "$host_rxe_mtu" type dummy ||
        fail 125 "the network interface $host_rxe_netdev cannot be made (is another host-rxe run active?)"
    undo+=("ip link delete $host_rxe_netdev")
    ip address add "$host_rxe_addr/32" dev "$host_rxe_netdev"
    ip link set "$host_rxe_netdev" up
    rdma link add "$host_rxe_link" type rxe netdev "$host_rxe_netdev" ||
        fail 125 "rdma link add $host_rxe_link failed (see the line above; use --fabric vm)"
    undo+=("rdma link delete $host_rxe_link")
    run_here host-rxe "$host_rxe_link" "$host_rxe_addr"
}
