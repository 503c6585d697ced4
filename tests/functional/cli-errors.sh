#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 120
# builds: release asan
#
# What goes wrong says so in one line, with the right exit code, and changes nothing.

. "$(dirname "$0")/lib.sh"

# code NUMBER COMMAND...: the exit code.
code()
{
    local expected=$1 status=0
    shift
    "$@" >/dev/null 2>&1 || status=$?
    [ "$status" -eq "$expected" ] || fail "$*: ended with $status, not $expected"
}

# --- no daemon, wrong usage ---
expect_error 'which daemon\? Give -c DIR, or set PARALLAX=DIR' parallax status
code 2 parallax status
mkdir "$T/empty"
expect_error "no daemon answers on $T/empty/control.sock: start one with 'parallax up" \
    parallax -c "$T/empty" status
code 3 parallax -c "$T/empty" status
expect_error 'no daemon answers on 127.0.0.1:1:' parallax -c 127.0.0.1:1 status
expect_error 'no daemon answers' parallax -c "$T/nothing" disk ls
expect_error 'no command .frob' parallax frob
expect_error 'disk: no such command: frob' parallax disk frob
expect_error 'needs a command' parallax
expect_error 'disk create: needs NAME SIZE' parallax disk create x
expect_error 'too many arguments' parallax disk create x 1G y
expect_error 'disk create: has no option --json' parallax disk create x 1G --json
expect_error 'unrecognized option .--frob' parallax disk ls --frob
code 2 parallax disk create x

# --- up ---
expect_error 'neither a folder nor a block device' parallax up /etc/passwd --detach
expect_error 'cannot make this folder: No such file' parallax up "$T/a/b" --detach
expect_error 'not a size' parallax up "$T/empty" --capacity lots
expect_error 'loopback only' parallax up "$T/empty" --nbd 0.0.0.0:10809
expect_error 'loopback only' parallax up "$T/empty" --control 0.0.0.0:4444
expect_error 'a port is a number' parallax up "$T/empty" --nbd localhost:99999
expect_error 'too long for a socket' \
    parallax up "$T/empty" --nbd "unix:$(printf 'x%.0s' {1..150})"
expect_error 'a store has at least' parallax up "$T/empty" --detach --capacity 8K
[ ! -e "$T/empty/store" ] || fail "a failed start made a store"
[ ! -e "$T/empty/meta" ] || fail "a failed start left metadata, which the next one finds"
code 1 parallax up /etc/passwd --detach

start_up "$T/store" --capacity 1G
pid=$(daemon_pid "$PARALLAX")
expect_error "store is in use by parallaxd \(pid $pid\)" parallax up "$PARALLAX" --detach
expect_error "store is in use by parallaxd \(pid $pid\)" parallax up "$PARALLAX"
parallax status >/dev/null || fail "the first daemon suffered"

# --- names and sizes ---
for name in '' .x -- -x +x a/b a@b 'a b' ä "$(printf 'x%.0s' {1..129})"; do
    expect_error . parallax disk create -- "$name" 1G
done
for size in '' G -1 1E 12z 1GB 0x10 '1 G'; do
    expect_error 'is not a size; write 4096, 512M, 10G or 1.5T' \
        parallax disk create -- x "$size"
done
expect_error 'a disk of no bytes' parallax disk create x 0
expect_error 'at most 16T' parallax disk create x 17T
expect_error 'too large' parallax disk create x 99999999999P
expect_error 'not a multiple of 4096; the next one is 8192' parallax disk create x 5000
parallax disk create "$(printf 'x%.0s' {1..128})" 4096
parallax disk create :_-+.1 4096

# --- what is there, and what is not ---
parallax disk create d 1M
parallax snapshot create d@s
expect_error 'disk create: .*\bd\b.*exists' parallax disk create d 1M
expect_error '\bd\b.*snapshot.*\bs\b' parallax snapshot create d@s
for command in 'disk show' 'disk uri' 'snapshot ls' 'disk resize' 'disk rename' clone; do
    case $command in
    'disk resize') more=1G ;;
    'disk rename' | clone) more=other ;;
    *) more= ;;
    esac
    # shellcheck disable=SC2086
    expect_error 'nope.*(no such|exist)' parallax $command nope $more
done
expect_error 'no snapshot nope' parallax disk uri d@nope
expect_error 'snapshot.*nope' parallax clone d@nope other
expect_error 'snapshot.*nope' parallax snapshot rollback d@nope
expect_error 'nope' parallax snapshot create nope@s
expect_error 'is not DISK@SNAP' parallax snapshot create d
expect_error 'is not DISK@SNAP' parallax snapshot rollback d@
expect_error 'exist' parallax disk rename d :_-+.1
expect_error 'exist' parallax clone d :_-+.1
expect_error '--count 0: a number' parallax clone d other --count 0
expect_error '--count 1x: a number' parallax clone d other --count 1x
parallax clone d lab-2
expect_error 'lab-2.*exist' parallax clone d lab --count 3
[ "$(parallax disk ls | grep -c '^lab-')" -eq 1 ] || fail "some of the clones were made"

# --- images ---
expect_error 'nothing.raw: cannot open: No such file' parallax import "$T/nothing.raw" i
expect_error 'a folder is no image' parallax import "$T" i
: >"$T/empty.raw"
expect_error 'is empty' parallax import "$T/empty.raw" i
expect_error 'is empty' parallax import - i
expect_error 'i.*' parallax import "nbd+unix:///x?socket=$T/nothing" i
expect_error 'only raw' parallax import - i --format qcow2
expect_error 'a folder; name a file in it' parallax export d "$T"
expect_error 'cannot make this file: No such' parallax export d "$T/a/b.raw"
expect_error 'no such disk|nope' parallax export nope "$T/x.raw"
expect_error 'no snapshot nope' parallax export d@nope "$T/x.raw"
expect_error 'Unknown file format|frob' parallax export d "$T/x.raw" --format frob
expect_error 'exist' parallax import /etc/passwd d --format raw
[ ! -e "$T/x.raw" ] || fail "a failed export left a file"
if command -v qemu-img >/dev/null; then
    dd if=/dev/urandom of="$T/d.raw" bs=64K count=64 status=none
    qemu-img convert -O qcow2 "$T/d.raw" "$T/d.qcow2"
    truncate -s 1M "$T/d.qcow2"
    expect_error 'the image is damaged' parallax import "$T/d.qcow2" i
    qemu-img create -q -f qcow2 -b "$T/d.raw" -F raw "$T/o.qcow2"
    expect_error "is based on $T/d.raw; say --backing" parallax import "$T/o.qcow2" i
    parallax import "$T/o.qcow2" backed --backing
    cmp "$T/d.raw" <(parallax export backed -) || fail "--backing"
fi
if [ "$(id -u)" -ne 0 ]; then
    echo data >"$T/unreadable.raw"
    chmod 0 "$T/unreadable.raw"
    expect_error 'Permission denied' parallax import "$T/unreadable.raw" i
fi
parallax disk ls | grep -q '^i ' && fail "a failed import left a disk"

# --- the control socket ---
python3 - "$PARALLAX/control.sock" <<'END' || fail "control socket"
import json, socket, sys

def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    return s, s.makefile("rb")

def ask(line):
    s, f = connect()
    s.sendall(line)
    s.shutdown(socket.SHUT_WR)
    lines = []
    try:
        lines.extend(f)
    except ConnectionResetError: # it did not want to read all of it
        pass
    return [json.loads(line) for line in lines]

assert ask(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")[0]["error"]["code"] == "EINVAL"
assert len(ask(b'GET / HTTP/1.1\r\n\r\n{"op":"status"}\n')) == 1 # and it is over
assert ask(b"[" * 60000 + b"\n")[0]["error"]["code"] == "EINVAL"
for depth in 9, 1000, 2000: # the daemon stays, too
    array = b"[" * (depth - 1) + b"]" * (depth - 1)
    assert ask(b'{"op":"status","x":' + array + b'}\n')[0]["error"]["code"] == "EINVAL"
    objects = b'{"x":' * depth + b"1" + b"}" * depth
    assert ask(objects + b"\n")[0]["error"]["code"] == "EINVAL"
assert ask(b"x" * 70000)[0]["error"]["code"] == "EMSGSIZE"
assert ask(b'{"op":"frob"}\n')[0]["error"]["code"] == "EOPNOTSUPP"
assert ask(b'{"op":["status"]}\n')[0]["error"]["code"] == "EOPNOTSUPP"
assert ask(b'{"op":"status","x":1}\n')[0]["error"]["code"] == "EINVAL"
assert ask(b'{"op":"disk.show"}\n')[0]["error"]["code"] == "EINVAL"
assert ask(b'{"op":"disk.show","name":7}\n')[0]["error"]["code"] == "EINVAL"
assert ask(b'{"op":"disk.show","name":"nope"}\n')[0]["error"]["code"] == "PLX_EMISSING"
assert ask(b'{"op":"disk.create","name":"y","size_bytes":-4096}\n')[0]["error"]
assert ask(b'{"op":"import.publish","name":"d","size_bytes":4096}\n')[0]["error"]
assert ask(b'{"op":"import.discard","name":"d"}\n')[0]["error"]
assert len([r for r in ask(b'{"op":"status"}\n' * 50) if "ok" in r]) == 50
many = [connect() for _ in range(100)] # more than the daemon takes
full = [json.loads(f.readline()) for _, f in many[70:]]
assert all(r["error"]["code"] == "PLX_ELIMIT" for r in full)
END
wait_for 10 parallax status >/dev/null

# --- damaged stores ---
stop_daemon "$T/store"
expect_error 'no daemon answers' parallax status
cp -r --sparse=always "$T/store" "$T/truncated"
truncate -s 4096 "$T/truncated/store"
expect_error 'truncated/store' parallax up "$T/truncated" --detach
cp -r --sparse=always "$T/store" "$T/lost"
rm "$T/lost/store"
expect_error 'lost/store' parallax up "$T/lost" --detach
[ ! -e "$T/lost/store" ] || fail "a lost store was replaced by an empty one"
# One copy of the superblock is enough; without both there is no store.
cp -r --sparse=always "$T/store" "$T/garbage"
dd if=/dev/urandom of="$T/garbage/store" bs=4096 count=1 conv=notrunc status=none
start_up "$T/garbage"
unchecked "$T/garbage"
stop_daemon "$T/garbage"
dd if=/dev/urandom of="$T/garbage/store" bs=1M count=1 conv=notrunc status=none
expect_error 'garbage/store' parallax up "$T/garbage" --detach
cp -r --sparse=always "$T/store" "$T/newer"
python3 - "$T/newer/store" <<'END'
import struct, sys

def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF

with open(sys.argv[1], "r+b") as store:
    for offset in 0, (1 << 20) - 4096: # blockstore/block_format.h
        store.seek(offset)
        block = store.read(4096)
        assert block[:8] == b"PLXSTORE"
        assert struct.unpack("<I", block[-4:])[0] == crc32c(block[:-4])
        block = block[:8] + struct.pack("<I", 99) + block[12:-4]
        store.seek(offset)
        store.write(block + struct.pack("<I", crc32c(block)))
END
expect_error 'newer/store.*newer version' parallax up "$T/newer" --detach
cp -r --sparse=always "$T/store" "$T/nometa"
rm -r "$T/nometa/meta"
expect_error 'nometa' parallax up "$T/nometa" --detach
[ "$(stat -c %s "$T/nometa/store")" = "$(stat -c %s "$T/store/store")" ] ||
    fail "a store whose metadata was lost was touched"
# What an interrupted creation has left is made anew.
mkdir -p "$T/half/meta"
touch "$T/half/creating" "$T/half/store" "$T/half/meta/CURRENT"
start_up "$T/half" --capacity 1G
stop_daemon "$T/half"

start_up "$T/store"
parallax disk show d >/dev/null || fail "the store is not what it was"
stop_daemon "$T/store"
