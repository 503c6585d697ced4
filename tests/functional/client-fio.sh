#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 180
#
# fio writes at random in sizes from 512 bytes to 1 MiB and verifies a checksum of all it
# wrote, with trims, with snapshots taken meanwhile, and again after a restart.

. "$(dirname "$0")/lib.sh"
requires fio
fio --enghelp=nbd >/dev/null 2>&1 || skip "this fio has no nbd engine"

# run_fio DISK OPTION...
run_fio()
{
    local disk=$1
    shift
    fio --name="$disk" --ioengine=nbd --uri="$(uri "$disk")" --size=128M --randseed=7 \
        --verify=crc32c --verify_fatal=1 --verify_state_save=0 \
        --output="$T/fio.$disk" "$@" 2>"$T/fio.$disk.err" ||
        fail "fio $disk $*: $(cat "$T/fio.$disk" "$T/fio.$disk.err")"
}

# Each pass writes over parts of what those before it wrote.
many_sizes()
{
    local size
    for size in 512 4k 13k 64k 1M 1536 4k; do
        run_fio mixed --rw=randrw --rwmixread=20 --io_size=20M --bs="$size" --iodepth=32
    done
}

start_up "$T/store" --capacity 8G
parallax disk create mixed 128M
parallax disk create blocks 128M
parallax disk create trimmed 128M

blocks=(--rw=randwrite --bs=4k --iodepth=64 --fsync=256)
many_sizes &
pid_mixed=$!
run_fio blocks "${blocks[@]}" &
pid_blocks=$!
# A trim and the write after it would overtake each other at a greater depth.
run_fio trimmed --rw=randtrimwrite --bs=16k --iodepth=1 --io_size=64M &
pid_trimmed=$!
for i in $(seq 10); do
    sleep 0.1
    parallax snapshot create "mixed@$i"
    parallax snapshot create "blocks@$i"
    parallax snapshot create "trimmed@$i"
done
wait $pid_mixed
wait $pid_blocks
wait $pid_trimmed

# The same seed gives the same blocks: only verify, in the next daemon.
stop_daemon "$PARALLAX"
start_up "$T/store" --capacity 8G
run_fio blocks "${blocks[@]}" --verify_only
parallax check
