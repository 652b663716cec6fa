# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # variables of soft-roce-ci/run and of its other parts
# Debian's stock kernels for the guest, unpacked under the cache and never installed, and the initramfs
# that boots them. Sourced by soft-roce-ci/run. Sets kernel_dir, kernel_version, initramfs.

# Modules in the initramfs, in the order they are wanted; the optional ones exist on some kernels only.
readonly first_modules=(virtio_pci virtio_console 9pnet_virtio 9p overlay)
readonly later_modules=(nvme ext4 virtio_net rdma_rxe ib_uverbs rdma_ucm)
readonly optional_modules=(crc32c_generic crc32_generic)

# kernel_suites KERNEL: the Debian suites that carry it, best first
kernel_suites() {
    case $1 in
        6.1) echo bookworm ;;
        6.12) echo bookworm-backports trixie ;;
        latest) echo trixie-backports sid ;;
    esac
}

# default_kernel: the kernel of the machine's own Debian release
default_kernel() {
    local codename=
    if [[ -r /etc/os-release ]]; then
        # shellcheck source=/dev/null
        codename=$(. /etc/os-release && echo "${VERSION_CODENAME-}")
    fi
    case $codename in
        trixie) echo 6.12 ;;
        forky | sid) echo latest ;;
        *) echo 6.1 ;;
    esac
}

# own_apt_sources: print "URI|SIGNED-BY" for each entry in this machine's apt configuration, of either
# format, that is a Debian archive with the component main
own_apt_sources() {
    local -a lists=() stanzas=()
    local etc=${VKV_APT_DIR:-/etc/apt} keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    if [[ -n ${VKV_DEBIAN_MIRROR-} ]]; then
        [[ -r $keyring ]] || keyring=
        echo "$VKV_DEBIAN_MIRROR|$keyring"
        return
    fi
    [[ -r $etc/sources.list ]] && lists+=("$etc/sources.list")
    local file
    for file in "$etc"/sources.list.d/*; do
        [[ -r $file ]] || continue
        case $file in
            *.list) lists+=("$file") ;;
            *.sources) stanzas+=("$file") ;;
        esac
    done
    ((${#stanzas[@]} == 0)) || awk -f "$here/guest/deb822.awk" "${stanzas[@]}"
    ((${#lists[@]} == 0)) || awk -f "$here/guest/one-line.awk" "${lists[@]}"
}

# write_apt_config DIR SUITE URI SIGNED_BY: an apt of its own in DIR that sees this one suite
write_apt_config() {
    mkdir -p "$1/state/lists/partial" "$1/cache/archives/partial"
    : >"$1/status"
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\nTargets: Packages\n' "$3" "$2"
        [[ -z $4 ]] || printf 'Signed-By: %s\n' "$4"
    } >"$1/debian.sources"
    cat >"$1/apt.conf" <<END
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
APT::Architecture "amd64";
APT::Architectures "amd64";
APT::Default-Release "";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Dir::State "$1/state";
Dir::State::status "$1/status";
Dir::Cache "$1/cache";
Dir::Etc::SourceList "$1/debian.sources";
Dir::Etc::SourceParts "/dev/null";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "/dev/null";
END
}

# kernel_packages APT_DIR: the packages that hold linux-image-amd64's kernel and modules
kernel_packages() {
    local -a queue=(linux-image-amd64)
    local -A seen=()
    local name
    while ((${#queue[@]} > 0)); do
        name=${queue[0]}
        queue=("${queue[@]:1}")
        [[ -v seen[$name] ]] && continue
        seen[$name]=1
        [[ $name == linux-image-amd64 ]] || echo "$name"
        while read -r name; do
            queue+=("$name")
        done < <(apt-cache -c "$1/apt.conf" depends --important "$name" |
            sed -n 's/^ *Depends: \(linux-\(image\|binary\|modules\|base\)-[0-9][^ ]*\)$/\1/p')
    done
}

# fetch_kernel APT_DIR INTO: download and unpack it; everything it prints goes to a log
fetch_kernel() {
    local -a packages
    apt-get -c "$1/apt.conf" -q update || return 1
    mapfile -t packages < <(kernel_packages "$1")
    ((${#packages[@]} > 0)) || return 1
    mkdir "$1/debs" "$1/files"
    (cd "$1/debs" && apt-get -c "$1/apt.conf" -q download "${packages[@]}") || return 1
    local deb
    for deb in "$1/debs"/*.deb; do
        dpkg-deb -x "$deb" "$1/files" || return 1
    done
    local modules version image
    modules=$(compgen -G "$1/files/lib/modules/*" || compgen -G "$1/files/usr/lib/modules/*") || return 1
    version=${modules##*/}
    image=$1/files/boot/vmlinuz-$version
    [[ -e $image ]] || image=$modules/vmlinuz
    unpack_image "$image" "$2/vmlinux" || return 1
    mkdir -p "$2/lib/modules"
    mv "$modules" "$2/lib/modules/"
    rm -f "$2/lib/modules/$version/build" "$2/lib/modules/$version/source"
    depmod -b "$2" "$version" || return 1
    echo "$version" >"$2/version"
}

# unpack_image BZIMAGE INTO: the kernel proper, which QEMU boots as it is (PVH); unpacking itself takes the
# emulated processor two seconds. The offsets are those of the x86 boot protocol's set-up header.
unpack_image() {
    local sectors offset length magic
    local -a unpack
    sectors=$(od -An -tu1 -j $((0x1f1)) -N 1 "$1")
    offset=$(((sectors + 1) * 512 + $(od -An -tu4 -j $((0x248)) -N 4 "$1")))
    length=$(($(od -An -tu4 -j $((0x24c)) -N 4 "$1") - 4)) # behind it stands the unpacked size
    magic=$(od -An -tx1 -j "$offset" -N 4 "$1")
    case $magic in
        " fd 37 7a 58") unpack=(xz -dc --single-stream) ;;
        " 28 b5 2f fd") unpack=(zstd -qdc) ;;
        " 1f 8b"*) unpack=(gzip -dc) ;;
        *)
            echo "the kernel image is packed in an unknown way ($magic)"
            return 1
            ;;
    esac
    head -c "$((offset + length))" "$1" | tail -c "$length" | "${unpack[@]}" >"$2"
}

# version_fits KERNEL VERSION
version_fits() {
    case $1 in
        latest) [[ $2 =~ ^[0-9]+\.[0-9]+ ]] ;;
        *) [[ $2 == "$1".* ]] ;;
    esac
}

# need_kernel KERNEL: have it under the cache
need_kernel() {
    kernel_dir=$cache/kernels/$1
    mkdir -p "$cache/kernels"
    if [[ ! -s $kernel_dir/version ]]; then
        local lock
        exec {lock}>"$cache/kernels/$1.lock"
        flock "$lock"
        [[ -s $kernel_dir/version ]] || make_kernel "$1"
        exec {lock}>&-
    fi
    kernel_dir=$(readlink -f -- "$kernel_dir") # the guest looks it up where no link of the host leads anywhere
    kernel_version=$(<"$kernel_dir/version")
}

make_kernel() { # KERNEL; under its lock
    command -v apt-get >/dev/null ||
        fail 122 "kernel $1 comes from Debian's package and this machine has no apt (put vmlinux, version and lib/modules into $kernel_dir)"
    note "fetching kernel $1 from Debian"
    rm -rf "$cache/kernels/.$1".* # left by a run that was killed
    local -a sources
    mapfile -t sources < <(own_apt_sources)
    ((${#sources[@]} > 0)) ||
        fail 122 "no apt source of this machine is a Debian archive (add one, or name its address in VKV_DEBIAN_MIRROR)"
    local log=$run_dir/kernel.log suite source apt_dir fresh version
    local -a suites
    read -r -a suites <<<"$(kernel_suites "$1")"
    for suite in "${suites[@]}"; do
        for source in "${sources[@]}"; do
            fresh=$(mktemp -d "$cache/kernels/.$1.XXXXXX")
            apt_dir=$fresh/apt
            write_apt_config "$apt_dir" "$suite" "${source%%|*}" "${source#*|}"
            if fetch_kernel "$apt_dir" "$fresh" >>"$log" 2>&1; then
                version=$(<"$fresh/version")
                if version_fits "$1" "$version"; then
                    rm -rf "$apt_dir" "$kernel_dir"
                    mv "$fresh" "$kernel_dir"
                    return
                fi
                echo "suite $suite has $version, not $1" >>"$log"
            fi
            rm -rf "$fresh"
        done
    done
    tail -n 15 "$log" >&2
    fail 122 "kernel $1 could not be fetched from ${suites[*]} (see the lines above; check the network and apt sources)"
}

# need_initramfs: one for this kernel, this busybox and this guest/init
need_initramfs() {
    local busybox sum
    busybox=$(command -v busybox)
    sum=$(cat "$here/guest/init" "$here/guest/kernel.sh" "$busybox" | sha256sum)
    initramfs=$cache/initramfs/$kernel_version-${sum:0:16}.cpio
    [[ -s $initramfs ]] && return
    mkdir -p "$cache/initramfs"
    make_initramfs "$busybox" ||
        fail 122 "the initramfs for kernel $kernel_version cannot be built (see the lines above; remove $kernel_dir to fetch it anew)"
}

# plain_module FILE INTO: copy a module, unpacked
plain_module() {
    local name=${1##*/}
    case $name in
        *.xz) xz -dc "$1" >"$2/${name%.xz}" ;;
        *.zst) zstd -qdc "$1" >"$2/${name%.zst}" ;;
        *) cp "$1" "$2/$name" ;;
    esac
}

# module_files MODULE: the files to load for it, in order
module_files() {
    modprobe -d "$kernel_dir" -S "$kernel_version" --show-depends "$1" | sed -n 's/^insmod \(.*\.ko\(\.[a-z]*\)\{0,1\}\)\( .*\)\{0,1\}$/\1/p'
}

# add_modules TREE LIST MODULE...: put them, and what they need, into the tree and at the end of that list
add_modules() {
    local tree=$1 list=$2 module files file name
    shift 2
    for module in "$@"; do
        files=$(module_files "$module") || return 1
        while read -r file; do
            name=${file##*/}
            name=${name%%.ko*}.ko
            [[ -n $file && ! -e $tree/modules/$name ]] || continue
            plain_module "$file" "$tree/modules" || return 1
            echo "$name" >>"$tree/modules/$list"
        done <<<"$files"
    done
}

make_initramfs() { # BUSYBOX
    local tree=$run_dir/initramfs module lib
    mkdir -p "$tree"/{bin,dev,proc,sys,modules}
    cp "$1" "$tree/bin/busybox"
    # A busybox that is not static brings its libraries.
    while read -r lib; do
        mkdir -p "$tree/${lib%/*}"
        cp -L "$lib" "$tree/$lib"
    done < <(LC_ALL=C ldd "$1" 2>/dev/null | sed -n 's|^.*[[:space:]]\(/[^ ]*\) (0x.*$|\1|p')
    install -m 755 "$here/guest/init" "$tree/init"
    add_modules "$tree" first "${first_modules[@]}" || return 1
    add_modules "$tree" later "${later_modules[@]}" || return 1
    for module in "${optional_modules[@]}"; do
        add_modules "$tree" later "$module" 2>/dev/null || true
    done
    (cd "$tree" && find . -print0 | cpio --null --create --format=newc --owner=0:0 --quiet) >"$run_dir/initramfs.cpio" || return 1
    find "$cache/initramfs" -name '*.cpio' -mtime +7 -delete
    cp "$run_dir/initramfs.cpio" "$initramfs.$$"
    mv "$initramfs.$$" "$initramfs"
    rm -rf "$tree"
}
