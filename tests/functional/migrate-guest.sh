#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 300
#
# A guest that writes all the time moves between two hosts of a cluster of three and back,
# 20 times, and its disk with it; one migration is cancelled. Every block it was told to
# be written is there at the end, once. A source that is made to run again cannot write.

. "$(dirname "$0")/lib.sh"
. "$TESTS/guest/lib.sh"
requires cc python3 jq
need_guest

blocks=2048
mkdir "$T/initrd"

echo "int main(void) { return 0; }" | cc -static -x c -o "$T/static" - 2>"$T/cc.err" ||
    skip "cannot make static programs: $(head -n 1 "$T/cc.err")"
cc -D_GNU_SOURCE -static -O2 -Wall -Werror -o "$T/initrd/stream" "$TESTS/guest/stream.c"
cat >"$T/initrd/stream-init" <<END
#!/bin/busybox sh
/bin/busybox --install -s /bin
mkdir -p /proc
mount -t proc proc /proc
mount -t devtmpfs dev /dev
while read -r module; do
    insmod "\$module"
done </modules/list
while [ ! -b /dev/vda ]; do
    usleep 50000
done
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -icanon
exec /stream /dev/vda $blocks
END
chmod 755 "$T/initrd/stream-init"
(cd "$T/initrd" && find . | cpio --quiet -o -H newc) >"$T/more.cpio"
cat "$GUEST/initrd" "$T/more.cpio" >"$T/stream.initrd"

start_cluster 3 --capacity 1G
wait_for 60 is_whole
parallax disk create web $((blocks * 4096))
timeout 250 python3 "$TESTS/migrate_guest.py" "$T" "$GUEST/vmlinuz" "$T/stream.initrd" \
    "$blocks" || fail "see above"
if grep -E ' error:' "$T"/[123]/log; then
    fail "the hosts say errors"
fi
sed -n 's/.*: taken over, changes waited \([0-9]*\) us/\1/p' "$T"/[12]/log | sort -n |
    awk '{ us[NR] = $1 }
        END { printf "%d hand-overs; the first change waited for ", NR
            printf "a median of %.1f ms, at most %.1f ms\n",
                us[int((NR + 1) / 2)] / 1000, us[NR] / 1000 }'
