#!/usr/bin/env bash
# Runs the tests of blockformer-kernels on an emulated CPU with AVX-512, AVX-VNNI, AVX-512 VNNI, AVX-512 BF16 and AMX,
# whatever this machine's CPU has: Linux boots in Bochs, with the tests instead of a system. Needed are Bochs' sources
# (https://github.com/bochs-emu/Bochs, 3.0 or newer; tried with commit 783b58fd) and some packages of Debian:
#   apt-get install g++ make cpio busybox-static grub-common grub-pc-bin xorriso mtools vgabios linux-image-cloud-amd64
#   BOCHS_SOURCE=path/to/Bochs scripts/test-emulated-cpu.sh [TEST FILE...]
# Test files: unit, matmul, rows, attention, which are the default, and packed_equals_plain: whole models. The emulator is
# built once (five minutes on two cores); booting takes half a minute, products and whole models one minute each, and the
# others several.
set -euo pipefail
cd "$(dirname "$0")/.."
[ -n "${BOCHS_SOURCE:-}" ] || { echo "test-emulated-cpu: set BOCHS_SOURCE to a checkout of Bochs" >&2; exit 1; }
source=$(realpath "$BOCHS_SOURCE")/bochs
work=$(realpath -m "${CARGO_TARGET_DIR:-target}")/emulated
limit=${LIMIT:-2400} # seconds
kernel=${KERNEL:-$(find /boot -name 'vmlinuz-*' | sort -V | tail -n 1)}
tests=("$@")
[ $# -gt 0 ] || tests=(unit matmul rows attention)

fail() { echo "test-emulated-cpu: $*" >&2; exit 1; }
for needed in cpio busybox grub-mkrescue xorriso mformat; do
    command -v "$needed" > /dev/null || fail "no $needed: see the packages that this script names"
done
[ -f "$source/cpu/cpuid.cc" ] || fail "no sources of Bochs in $source"
[ -f "$kernel" ] || fail "no kernel: apt-get install linux-image-cloud-amd64, or set KERNEL"

# Three things are mended in a copy: the operand of VDPBF16PS in memory is a whole vector, so its displacement counts
# vectors; Linux uses AMX only where XFD is reported (writes to its registers are ignored); and the CPU model that Linux
# boots on reports the features that are added to it.
version=$(git -C "$source" rev-parse HEAD 2> /dev/null || echo "$source")
if [ ! -x "$work/bochs/bochs" ] || [ "$(cat "$work/bochs.version" 2> /dev/null)" != "$version" ]; then
    rm -rf "$work/bochs"
    mkdir -p "$work"
    cp -r "$source" "$work/bochs"
    (
        cd "$work/bochs"
        mend() { # FILE EXPRESSION WHAT MUST BE THERE THEN
            sed -i -z "$2" "$1"
            grep -q -F "$3" "$1" || fail "$1 of Bochs is not what it was"
        }
        mend cpu/decoder/ia_opcodes_evex.def 's/\(BX_IA_EVEX_VDPBF16PS[^\n]*\)OP_mVdq32/\1OP_mVdq/' 'OP_Vps, OP_Hdq, OP_mVdq, OP_NONE'
        mend cpu/cpuid.cc 's/\(    \/\/ EBX\[31:00\] - The size (in bytes) of the XSAVE area containing\)/    leaf->eax |= (1<<4); \/\/ XFD\n\1/' '(1<<4); // XFD'
        mend cpu/cpuid.cc 's/leaf->ecx = xsave_restore\[subfunction\].attr;/leaf->ecx = xsave_restore[subfunction].attr | (subfunction == 18 ? 4 : 0);/' 'subfunction == 18 ? 4'
        mend cpu/cpudb/intel/corei7_skylake-x.cc \
            's/leaf->eax = 0; \(\/\* report max sub-leaf[^\n]*\)/leaf->eax = 1; \1/; s/    leaf->ecx = 0;\n    leaf->edx = 0;\n    break;\n  default/    leaf->ecx = get_std_cpuid_leaf_7_ecx();\n    leaf->edx = get_std_cpuid_leaf_7_edx(0);\n    break;\n  case 1:\n    leaf->eax = get_std_cpuid_leaf_7_subleaf_1_eax(0);\n    leaf->ebx = leaf->ecx = leaf->edx = 0;\n    break;\n  default/' \
            'get_std_cpuid_leaf_7_subleaf_1_eax(0)'
        ./configure --enable-x86-64 --enable-cpu-level=6 --enable-avx --enable-evex --enable-amx --enable-all-optimizations \
            --disable-plugins --with-nogui --disable-docbook --enable-memtype > configure.log 2>&1 || fail "see $PWD/configure.log"
        make -j "$(nproc)" > make.log 2>&1 || fail "see $PWD/make.log"
    )
    echo "$version" > "$work/bochs.version"
fi

# The tests, and a system of nothing else.
executables() { tee /dev/stderr | sed -n 's/.*Executable \(.*\) (\(.*\))$/\1=\2/p'; }
built=$(cargo test -p blockformer-kernels --no-run 2>&1 | executables)
case " ${tests[*]} " in
    *" packed_equals_plain "*) built+=$'\n'$(cargo test --workspace --test packed_equals_plain --no-run 2>&1 | executables) ;;
esac
root=$work/root
rm -rf "$root" "$work/iso"
mkdir -p "$root"/{bin,proc,sys,dev,lib64,tests} "$work/iso/boot/grub"
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
for name in "${tests[@]}"; do
    case $name in unit) file="unittests src/lib.rs" ;; *) file="tests/$name.rs" ;; esac
    program=$(sed -n "s|^$file=||p" <<< "$built")
    [ -n "$program" ] || fail "no test file $name"
    strip -o "$root/tests/$name" "$program"
    ldd "$program" | grep -o '/lib[^ ]*' | while read -r library; do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
done
cat > "$root/init" <<'INIT'
#!/bin/sh
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t devtmpfs dev /dev
exec > /dev/ttyS0 2>&1
export RAYON_NUM_THREADS=2 BLOCKFORMER_TEST_LEVELS="portable avx2 avx2_vnni avx512 avx512_vnni avx512_bf16 amx"
for test in /tests/*; do
    echo "=== $test"
    $test --test-threads=1 && echo "=== passed"
done
echo "=== end"
$busybox sleep 3
$busybox poweroff -f
INIT
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc --quiet | gzip -1) > "$work/iso/boot/initrd.gz"
cp "$kernel" "$work/iso/boot/vmlinuz"
cat > "$work/iso/boot/grub/grub.cfg" <<'GRUB'
set timeout=0
menuentry tests { linux /boot/vmlinuz console=ttyS0 quiet lsm=capability mitigations=off nosmp panic=-1; initrd /boot/initrd.gz; }
GRUB
grub-mkrescue -o "$work/boot.iso" "$work/iso" > "$work/iso.log" 2>&1 || fail "see $work/iso.log"

cat > "$work/bochsrc" <<BOCHSRC
cpu: model=corei7_skylake_x, add_features="avx512vnni,avx512bf16,amx,amx_bf16,avx_vnni", ignore_bad_msrs=1, count=1, ips=50000000
memory: guest=1024, host=1024
romimage: file=$work/bochs/bios/BIOS-bochs-latest
vgaromimage: file=${VGABIOS:-/usr/share/vgabios/vgabios.bin}
ata0-master: type=cdrom, path=$work/boot.iso, status=inserted
boot: cdrom
display_library: nogui
com1: enabled=1, mode=file, dev=$work/serial.log
log: $work/bochs.log
panic: action=fatal
clock: sync=none
BOCHSRC
rm -f "$work/serial.log"
# Bochs does not end by itself with the system that it runs.
"$work/bochs/bochs" -q -f "$work/bochsrc" > "$work/bochs.out" 2>&1 < /dev/null &
emulator=$!
trap 'kill $emulator 2> /dev/null || true' EXIT
while kill -0 $emulator 2> /dev/null && ! grep -q -a -s -E '^=== end|Kernel panic' "$work/serial.log"; do
    [ $SECONDS -lt "$limit" ] || fail "no end after $limit s (LIMIT): see $work/serial.log and $work/bochs.log"
    sleep 1
done
[ -f "$work/serial.log" ] || fail "the emulator wrote nothing: see $work/bochs.log and $work/bochs.out"
tr -d '\r' < "$work/serial.log" | grep -a -E '^(===|test|thread|assertion|  (left|right))' || true
passed=$(grep -a -c '^=== passed' "$work/serial.log" || true)
[ "$passed" -eq ${#tests[@]} ] || fail "$passed of ${#tests[@]} passed: see $work/serial.log and $work/bochs.log"
echo "test-emulated-cpu: $passed test files passed on all levels up to AMX"
