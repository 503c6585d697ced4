#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 300
# builds: release
#
# What is imported is what is exported, whatever the format; nothing half-made is left.

. "$(dirname "$0")/lib.sh"
requires qemu-img qemu-nbd nbdkit jq

start_up "$T/store" --capacity 4G

# A sparse image: data, a hole, data, zeros that are data to the file system, a hole.
raw=$T/image.raw
truncate -s 96M "$raw"
dd if=/dev/urandom of="$raw" bs=1M count=9 conv=notrunc status=none
dd if=/dev/urandom of="$raw" bs=4K seek=10003 count=77 conv=notrunc status=none
dd if=/dev/zero of="$raw" bs=1M seek=50 count=8 conv=notrunc status=none

# is_image DISK: the disk has the content of the image.
is_image()
{
    cmp "$raw" <(parallax export "$1" -) || fail "$1 is not the image"
}

used()
{
    parallax disk show "$1" --json | jq .used_bytes
}

# --- raw ---
parallax import "$raw" raw
is_image raw
[ "$(used raw)" -lt $((16 << 20)) ] || fail "holes and zeros take space: $(used raw)"
parallax export raw "$T/out.raw"
cmp "$raw" "$T/out.raw" || fail "export to a file"
[ "$(du -m "$T/out.raw" | cut -f 1)" -lt 16 ] ||
    fail "an exported file has no holes"
qemu-img compare "$raw" "$(uri raw)"

# --- pipes ---
parallax import - piped <"$raw"
is_image piped
head -c 96M "$raw" | parallax import - piped2
is_image piped2
[ "$(used piped2)" -lt $((16 << 20)) ] || fail "zeros from a pipe take space"
mkfifo "$T/fifo"
cat "$raw" >"$T/fifo" &
parallax import "$T/fifo" piped3
is_image piped3
expect_error 'cannot write|Broken pipe' bash -o pipefail -c \
    'trap "" PIPE; parallax export raw - | head -c 10 >/dev/null'

# --- formats ---
for format in qcow2 vmdk vhdx vdi; do
    qemu-img convert -O "$format" "$raw" "$T/in.$format"
    parallax import "$T/in.$format" "in-$format"
    is_image "in-$format"
    parallax export raw "$T/out.$format"
    [ "$(qemu-img info --output=json "$T/out.$format" | jq -r .format)" = "$format" ] ||
        fail "out.$format has another format"
    qemu-img compare "$raw" "$T/out.$format"
    qemu-img compare "$T/out.$format" "$(uri raw)"
done
qemu-img check -q "$T/out.qcow2"
cp "$T/in.qcow2" "$T/no-ending"
parallax import "$T/no-ending" content-decides
is_image content-decides
parallax import "$T/in.qcow2" as-raw --format raw
cmp <(parallax export as-raw - | head -c "$(stat -c %s "$T/in.qcow2")") "$T/in.qcow2" ||
    fail "--format raw"
parallax export raw "$T/odd.qcow2" --format raw
cmp "$raw" "$T/odd.qcow2" || fail "export --format raw"
parallax export raw "$T/odd:name, with=signs.qcow2"
qemu-img compare "$raw" "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\
\"filename\":\"$T/odd:name, with=signs.qcow2\"}}"
parallax import "$T/odd:name, with=signs.qcow2" odd-name
is_image odd-name

# --- NBD URIs ---
nbdkit -U "$T/nbdkit.sock" -P "$T/nbdkit.pid" --exit-with-parent -f file "$raw" &
wait_for 10 test -S "$T/nbdkit.sock"
parallax import "nbd+unix:///?socket=$T/nbdkit.sock" from-nbd
is_image from-nbd
parallax disk create target 128M
dd if=/dev/urandom bs=1M count=96 status=none >"$T/noise.raw"
parallax import "$T/noise.raw" noise
parallax export raw "$(uri noise)" # over what was there
is_image noise
parallax export raw "$(uri target)" # larger than the source
cmp -n "$(stat -c %s "$raw")" "$raw" <(parallax export target -)
parallax disk create small 1M
expect_error 'has 1048576 bytes; the disk has' parallax export raw "$(uri small)"
parallax snapshot create raw@s
expect_error 'read-only' parallax export noise "$(uri raw@s)"
parallax export raw@s "$T/snapshot.raw"
cmp "$raw" "$T/snapshot.raw"

# --- sizes ---
head -c 5000 "$raw" >"$T/5000.raw"
parallax import "$T/5000.raw" rounded 2>"$T/text"
grep -q '5000 bytes; the disk has 8192' "$T/text" || fail "rounding is not told"
[ "$(parallax disk show rounded --json | jq .size_bytes)" -eq 8192 ] || fail "5000 bytes"
cmp <(cat "$T/5000.raw" <(head -c 3192 /dev/zero)) <(parallax export rounded -)
head -c 1 "$raw" | parallax import - one --quiet
[ "$(parallax disk show one --json | jq .size_bytes)" -eq 4096 ] || fail "1 byte"

# --- nothing half-made ---
is_free()
{
    parallax disk create "$1" 4096 2>/dev/null && parallax disk rename "$1" "was-$2"
}

# Starts an import that waits for more than it gets.
begin_import()
{
    mkfifo "$T/slow.$1"
    parallax import "$T/slow.$1" half 2>"$T/import.err" &
    import=$!
    exec 9>"$T/slow.$1"
    head -c 20M /dev/urandom >&9
}

for signal in INT TERM KILL; do
    begin_import $signal
    expect_error 'half' parallax disk create half 4096 # the name is taken
    parallax disk ls --json | jq -e 'all(.name != "half")' >/dev/null ||
        fail "an unfinished import is in the list"
    kill -s $signal "$import"
    wait "$import" && fail "$signal: the import succeeded"
    exec 9>&-
    [ $signal = KILL ] || grep -q 'import: .*interrupted' "$T/import.err" ||
        fail "$signal: $(cat "$T/import.err")"
    # The daemon sees the end of a killed command a moment later.
    wait_for 15 is_free half $signal
done
begin_import restart
kill9_daemon "$PARALLAX"
exec 9>&-
wait "$import" && fail "the import survived its daemon"
start_up "$T/store"
is_free half restart || fail "an import of before the restart is there"
is_image raw
expect_error 'exist' parallax import "$raw" raw
is_image raw

# A store that is full keeps what it has.
head -c 6G /dev/zero | tr '\0' x >"$T/fifo" &
wants="full: no space in the store; nothing was kept"
expect_error "$wants" parallax import "$T/fifo" full
is_free full full || fail "a failed import left a disk"
is_image raw

# An export that fails leaves what was there.
echo before >"$T/kept.raw"
expect_error . parallax export nope "$T/kept.raw"
[ "$(cat "$T/kept.raw")" = before ] || fail "a failed export replaced a file"
find "$T" -maxdepth 1 -name '.*' | grep . && fail "temporary files are left"
parallax check
