#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# builds: release
#
# The device of one host of three fails: guests notice nothing, its store goes out of
# service by itself, so that its node counts as down; it does not start without the
# device, and has all copies again when that is back.

. "$(dirname "$0")/lib.sh"
requires_root
requires losetup nbdkit nbdfuse nbdcopy fusermount3
requires_device /dev/loop-control
requires_device /dev/fuse
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

# --- a device that fails as long as a file is there ---
mkdir "$T/mnt"
nbdkit -f -U "$T/kit.sock" --filter=error memory 512M error-file="$T/fails" error=EIO \
    error-rate=100% 2>"$T/kit.log" &
kit=$!
wait_for 10 test -S "$T/kit.sock"
nbdfuse "$T/mnt/dev" "nbd+unix:///?socket=$T/kit.sock" 2>"$T/fuse.log" &
fuse=$!
end_device()
{
    rm -f "$T/fails"
    [ -z "${device-}" ] || losetup --detach "$device"
    fusermount3 -u "$T/mnt/dev" 2>/dev/null || umount "$T/mnt/dev" 2>/dev/null
    kill "$fuse" "$kit" 2>/dev/null
    wait "$fuse" "$kit"
}
cleanup_fn end_device
wait_for 10 test -s "$T/mnt/dev"
device=$(losetup --find --show "$T/mnt/dev") || skip "no free loop device"
folder=/var/lib/parallax/${device##*/}
[ ! -e "$folder" ] || skip "$folder is in use"
end_host()
{
    end_daemon KILL "$folder"
    rm -rf "$folder"
}
cleanup_fn end_host # before its device ends

start_cluster 2 --capacity 512M
parallax cluster token | parallax cluster join "$device" "$(node_address 1)" --token - \
    --listen "$(node_address 3)" >/dev/null
lib_stores+=("$folder")
unchecked "$folder"
parallax up "$device" --detach
has_three()
{
    is_whole && [ "$(parallax node ls --json | grep -c '"state": "up"')" = 3 ]
}
wait_for 60 has_three

# --- it fails under load ---
parallax disk create web 64M
/usr/bin/python3 - "$(uri web)" "$T/data" "$T/held" "$T/stop" <<'END' &
import nbd, os, random, sys, time
h = nbd.NBD()
h.connect_uri(sys.argv[1])
content = bytearray(random.randbytes(16 << 20))
for at in range(0, len(content), 1 << 20):
    h.pwrite(content[at:at + (1 << 20)], at)
h.flush()
open(sys.argv[3], "w").close()
while not os.path.exists(sys.argv[4]):
    block = random.randrange(len(content) // 4096) * 4096
    data = random.randbytes(4096)
    h.pwrite(data, block)
    content[block:block + 4096] = data
    assert h.pread(4096, block) == data
    time.sleep(0.001)
h.shutdown()
with open(sys.argv[2], "wb") as file:
    file.write(content)
END
client=$!
wait_for 60 test -e "$T/held"
touch "$T/fails"
wait_for 60 node_is 3 down
parallax -c "$device" status | grep -q 'health *failed: the store is out of service' ||
    fail "it does not say so: $(parallax -c "$device" status)"
touch "$T/stop"
wait "$client" || fail "the client noticed"

# --- it is gone, and back ---
parallax -c "$device" down
expect_error 'superblock' parallax up "$device" --detach
rm "$T/fails"
parallax up "$device" --detach
wait_for 60 has_three
kill9_daemon "$T/2" # so that what was away is needed
nbdcopy "$(uri web)" "$T/back"
cmp -n $((16 << 20)) "$T/data" "$T/back" || fail "web is another one"
start_up "$T/2"
