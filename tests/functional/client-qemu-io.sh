#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# builds: release asan
#
# qemu-io: patterns, unaligned too, discard, write zeroes, many requests at once.

. "$(dirname "$0")/lib.sh"
requires qemu-io

# io NAME COMMAND...: every command must succeed and every pattern be found.
io()
{
    local name=$1 arguments=() command
    shift
    for command in "$@"; do
        arguments+=(-c "$command")
    done
    qemu-io -f raw -t none "${arguments[@]}" "$(uri "$name")" >"$T/out" 2>&1 ||
        fail "$name: $*: $(cat "$T/out")"
    ! grep -iE 'failed|error' "$T/out" || fail "$name: $*: $(cat "$T/out")"
}

start_up "$T/store" --capacity 4G
parallax disk create d 256M

io d 'read -P 0 0 1M' 'write -P 0x11 0 64k' 'write -P 0x22 64k 64k' \
    'read -P 0x11 0 64k' 'read -P 0x22 64k 64k' 'read -P 0 128k 64k'
parallax snapshot create d@patterns

# Parts of blocks, across blocks, FUA.
io d 'write -P 0x33 512 512' 'write -f -P 0x44 5000 10000' 'write -P 0x55 65535 2' \
    'read -P 0x11 0 512' 'read -P 0x33 512 512' 'read -P 0x11 1024 3976' \
    'read -P 0x44 5000 10000' 'read -P 0x11 15000 50535' 'read -P 0x55 65535 2' \
    'read -P 0x22 65537 65535'

# Zeroes and discards, of whole blocks and of parts.
io d 'write -P 0x66 1M 1M' 'write -z 1M 64k' 'write -z -u 1100k 10000' \
    'discard 1500k 100k' 'discard 1700001 5' 'flush' \
    'read -P 0 1M 64k' 'read -P 0x66 1088k 12k' 'read -P 0 1100k 10000' \
    'read -P 0x66 1136400 399600' 'read -P 0 1500k 100k' 'read -P 0x66 1600k 50k'

# Vectors, and requests that overtake each other in different places.
io d 'writev -P 0x77 4M 4k 8k 64k 1k' 'readv -P 0x77 4M 77k'
commands=()
for i in $(seq 0 63); do
    commands+=("aio_write -P $((i + 1)) $((8 * 1024 + i * 100))k 100k")
done
io d "${commands[@]}" aio_flush
commands=()
for i in $(seq 0 63); do
    commands+=("aio_read -P $((i + 1)) $((8 * 1024 + i * 100))k 100k")
done
io d "${commands[@]}" aio_flush

# The very end.
io d 'write -P 0x88 268435455 1' 'read -P 0x88 268435455 1' 'read -P 0 268435391 64'

# None of it is in the snapshot, nor in a clone of it.
parallax clone d@patterns c
io c 'read -P 0x11 0 64k' 'read -P 0x22 64k 64k' 'read -P 0 128k 16M'
qemu-io -r -f raw -c 'read -P 0x11 0 64k' -c 'read -P 0x22 64k 64k' \
    -c 'read -P 0 128k 16M' "$(uri d@patterns)" >"$T/out" || fail "$(cat "$T/out")"
