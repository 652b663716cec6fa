# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of soft-roce-ci/run and of its other parts
# The guest, seen from the host: QEMU's command line, the job handed over, output and exit code taken back.
# Sourced by soft-roce-ci/run.

readonly guest_device=rxe0
readonly guest_addr=10.0.2.15
readonly guest_nvme=/mnt/vkv-nvme
readonly guest_mtu=4500      # the smallest that gives RoCE its largest MTU, 4096, is a little less
readonly output_wait_steps=200 # of 0.05 s each, for the last output to arrive
readonly console_lines=25    # of the guest's console, shown when it fails
readonly boots_max=3         # an emulated kernel may die in its boot: see follow_guest

# qemu_value TEXT: as the value of a QEMU option
qemu_value() { printf '%s' "${1//,/,,}"; }

# prepare_vm: everything that a guest needs of this machine and of the network
prepare_vm() {
    [[ $(uname -m) == x86_64 ]] ||
        fail 125 "no RDMA device here, and the guest needs an x86_64 machine, not $(uname -m)"
    [[ -n $kernel ]] || kernel=$(default_kernel)
    need_packages "${vm_packages[@]}" "${verbs_packages[@]}"
    need_kernel "$kernel"
    need_initramfs
}

run_in_vm() {
    prepare_vm
    make_out
    write_job
    start_guest
    follow_guest
}

write_job() {
    mkdir "$run_dir/job"
    cp "$here/guest/stage2" "$run_dir/job/stage2"
    printf '%s\0' "${cmd[@]}" >"$run_dir/job/argv"
    env -0 >"$run_dir/job/env"
    merged=0
    [[ $(readlink /proc/$$/fd/1) != $(readlink /proc/$$/fd/2) ]] || merged=1
    {
        echo "workdir=${PWD@Q} hugepages=$hugepages merged=$merged eth_mtu=$guest_mtu"
        echo "OUT=${out@Q} VKV_NVME=$guest_nvme VKV_TEST_DEVICE=$guest_device VKV_TEST_ADDR=$guest_addr"
    } >"$run_dir/job/config"
    {
        printf 'PATH=%s\0OUT=%s\0VKV_NVME=%s\0' "$caller_path" "$out" "$guest_nvme"
        printf 'VKV_FABRIC_KIND=vm\0VKV_TEST_DEVICE=%s\0VKV_TEST_ADDR=%s\0' "$guest_device" "$guest_addr"
    } >>"$run_dir/job/env"
    truncate -s "$nvme_size" "$run_dir/nvme.img" ||
        fail 120 "--nvme $nvme_size does not fit where $run_dir is (move the cache with VKV_CACHE)"
    mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=0,lazy_journal_init=0 "$run_dir/nvme.img" 2>"$run_dir/mkfs.log" || {
        cat "$run_dir/mkfs.log" >&2
        fail 120 "--nvme $nvme_size cannot be formatted (see the lines above)"
    }
}

# boot_word NAME PATH: as a word of the kernel's command line, for guest/init
boot_word() {
    local LC_ALL=C i char
    printf 'soft_roce_ci.%s=' "$1"
    for ((i = 0; i < ${#2}; i++)); do
        char=${2:i:1}
        case $char in
            [A-Za-z0-9/._-]) printf '%s' "$char" ;;
            *) printf '\\0%03o' "'$char" ;;
        esac
    done
}

# cpu_model: carry-less multiplication is emulated slowly, and a packet's checksum would use it. A kernel and a C library that have
# ERMS or FSRM copy by `rep movsb`, which is emulated byte by byte: without, a READ of 4 KiB takes 77 us instead of 105, one of
# 1 MiB 8.3 ms instead of 15.3. What is measured has them all the same: other people's figures of such a guest do.
cpu_model() {
    local model=max,-pclmulqdq
    ((!short_cuts)) || model+=,-erms,-fsrm
    echo "$model"
}

# Without randomized addresses: code that lies elsewhere in each process is translated again for each, and one that loads a library
# and ends took 65 ms, now 28.
start_guest() {
    local -a qemu=(
        qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot
        -accel "tcg,thread=multi" -cpu "$(cpu_model)" -smp "$smp" -m "$mem"
        -kernel "$kernel_dir/vmlinux" -initrd "$initramfs"
        -append "console=ttyS0 panic=-1 oops=panic quiet nokaslr norandmaps mitigations=off tsc=reliable no_timer_check $(boot_word job "$run_dir/job") $(boot_word modules "$kernel_dir/lib/modules")"
        -serial "file:$(qemu_value "$run_dir/console")"
    )
    share() { # share TAG FOLDER OPTIONS
        qemu+=(-fsdev "local,id=$1,path=$(qemu_value "$2"),security_model=none,multidevs=remap$3"
            -device "virtio-9p-pci,fsdev=$1,mount_tag=$1")
    }
    share root / ,readonly=on
    share out "$out" ""
    qemu+=(-device virtio-serial-pci)
    local name
    for name in ctl out err; do
        qemu+=(-chardev "file,id=$name-port,path=$(qemu_value "$run_dir/$name"),append=on"
            -device "virtserialport,chardev=$name-port,name=soft-roce-ci.$name")
    done
    qemu+=(-netdev "user,id=net,restrict=on,ipv6=off"
        -device "virtio-net-pci,netdev=net,host_mtu=$guest_mtu,romfile="
        -drive "if=none,id=disk,format=raw,file=$(qemu_value "$run_dir/nvme.img"),discard=unmap"
        -device "nvme,id=nvme,serial=soft-roce-ci" -device "nvme-ns,drive=disk,bus=nvme")

    rm -f "$run_dir/ctl"
    mkfifo "$run_dir/ctl"
    exec {ctl}<>"$run_dir/ctl"
    : >"$run_dir/out"
    : >"$run_dir/err"
    started=$EPOCHREALTIME
    # The guest goes when this script goes, even by SIGKILL.
    setpriv --pdeathsig KILL -- "${qemu[@]}" </dev/null >"$run_dir/qemu.log" 2>&1 &
    guest_pid=$!
    tails=()
    undo+=(end_guest)
    tail -q -c +1 -f -s 0.1 --pid="$guest_pid" "$run_dir/out" &
    tails+=($!)
    if ((!merged)); then
        tail -q -c +1 -f -s 0.1 --pid="$guest_pid" "$run_dir/err" >&2 &
        tails+=($!)
    fi
}

end_guest() {
    kill -KILL "$guest_pid" 2>/dev/null || true
    # The tails end with the guest, after its last output; nobody waits for that who was interrupted.
    ((!interrupted)) || kill "${tails[@]}" 2>/dev/null || true
    wait "$guest_pid" "${tails[@]}" 2>/dev/null || true
}

# guest_failed CODE WHAT
guest_failed() {
    end_guest
    {
        head -c 4000 "$run_dir/qemu.log"
        tr -d '\r' <"$run_dir/console" 2>/dev/null | tail -n "$console_lines" | sed 's/^/guest console: /'
    } >&2 || true
    if cp "$run_dir/console" "$out/guest-console.log" 2>/dev/null; then
        fail "$1" "$2 (the guest's console is in $out/guest-console.log)"
    fi
    fail "$1" "$2"
}

follow_guest() {
    local line phase=boot boots=1 deadline=$((SECONDS + boot_timeout))
    while true; do
        if read -r -t 1 -u "$ctl" line; then
            case $line in
                start)
                    phase=cmd
                    rm -f "$run_dir/nvme.img" # QEMU holds it open; so it is gone with QEMU
                    note "kernel $kernel_version, $(since "$started") s to the command"
                    ;;
                exit\ *)
                    take_exit "$line"
                    ;;
                fail\ *)
                    line=${line#fail }
                    guest_failed "${line%% *}" "guest set-up: ${line#* }"
                    ;;
            esac
        elif ! kill -0 "$guest_pid" 2>/dev/null; then
            # What it said just before.
            ! read -r -t 0 -u "$ctl" || continue
            [[ $phase == boot ]] ||
                guest_failed 124 "the guest died before CMD ended (out of memory? try --mem; else see its console above)"
            # The emulated processors now and then run code that the kernel is just rewriting, and it dies of that (an `int3`
            # in `sched_clock_cpu`, say). No part of CMD has run then: the guest would have said so.
            if ((boots < boots_max)) && grep -q 'Kernel panic' "$run_dir/console" 2>/dev/null && [[ -z $(init_said) ]]; then
                boots=$((boots + 1))
                note "the guest's kernel died in its boot ($(panic_said)): attempt $boots of $boots_max"
                end_guest
                exec {ctl}>&-
                start_guest
                deadline=$((SECONDS + boot_timeout))
                continue
            fi
            local said
            said=$(init_said) || true
            guest_failed 123 "the guest died before CMD started: ${said:-see its console above}"
        elif [[ $phase == boot ]] && ((SECONDS > deadline)); then
            guest_failed 123 "the guest did not start CMD within $boot_timeout s (give more with --boot-timeout; see its console above)"
        fi
    done
}

# init_said: what guest/init said, as its last word
init_said() {
    { tr -d '\r' <"$run_dir/console" | sed -n 's/^soft-roce-ci-init: //p' | head -n 1; } 2>/dev/null
}

# panic_said: why the guest's kernel died
panic_said() {
    { tr -d '\r' <"$run_dir/console" | sed -n 's/.*Kernel panic - not syncing: //p' | head -n 1; } 2>/dev/null
}

since() { # since EPOCHREALTIME: seconds, one decimal
    local tenths=$((((${EPOCHREALTIME/./} - ${1/./}) + 50000) / 100000))
    echo "$((tenths / 10)).$((tenths % 10))"
}

# take_exit "exit CODE OUT_BYTES ERR_BYTES": wait until that much output is here, then end as CMD ended
take_exit() {
    local code out_bytes err_bytes step
    read -r _ code out_bytes err_bytes <<<"$1"
    if [[ $out_bytes == - ]]; then
        note "CMD left a process that cannot be ended; its last output may be missing"
        sleep 1
    else
        for ((step = 0; step < output_wait_steps; step++)); do
            (($(stat -c %s "$run_dir/out") < out_bytes || $(stat -c %s "$run_dir/err") < err_bytes)) || break
            sleep 0.05
        done
    fi
    exit "$code"
}
