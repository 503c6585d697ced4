#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 300
# alone: yes
#
# tools/quickstart in a folder of its own: what it prints works, a second run changes
# nothing, and the commands it names do what it says. It builds build/release, which is
# there already when tests/run comes here.

. "$(dirname "$0")/lib.sh"
requires nbdinfo jq meson ninja

quickstart=$PARALLAX_SOURCE/tools/quickstart
dir=$T/store
lib_stores+=("$dir")

"$quickstart" "$dir" >"$T/first" 2>&1 || fail "$(cat "$T/first")"
uri=$(grep -m 1 '^nbd+unix:' "$T/first") || fail "it prints no URI: $(cat "$T/first")"
[ "$(nbdinfo --size "$uri")" = $((10 << 30)) ] || fail "not a disk of 10 GiB: $uri"
pid=$(daemon_pid "$dir")

# Each thing is there to be copied from the screen.
for text in qemu-system nbd-client nbdfuse "<disk type='network'" 'parallax snapshot' \
    'parallax clone' down; do
    grep -qF "$text" "$T/first" || fail "it does not mention: $text"
done
! grep -n ' $\|.\{200\}' "$T/first" || fail "lines nobody can read"

"$quickstart" "$dir" >"$T/second" 2>&1 || fail "second run: $(cat "$T/second")"
[ "$(daemon_pid "$dir")" = "$pid" ] || fail "the second run started another daemon"
[ "$(grep -m 1 '^nbd+unix:' "$T/second")" = "$uri" ] || fail "the second URI differs"

# The commands as it prints them: the lines with our program in them.
sed -n 's/^    \(export PATH=.*\|parallax .*\)$/\1/p' "$T/first" >"$T/commands"
[ "$(wc -l <"$T/commands")" -ge 6 ] || fail "few commands: $(cat "$T/commands")"
bash -eu "$T/commands" >"$T/out" 2>&1 || fail "$(cat "$T/commands" "$T/out")"

# The last of them stopped the daemon and started it again.
is_gone "$pid" || fail "the first daemon still runs"
export PATH="$PARALLAX_SOURCE/build/release/tools:$PATH" PARALLAX=$dir
[ "$(parallax disk ls --json | jq length)" -eq 77 ] || fail "not 1 + 1 + 75 disks"
parallax down
! nbdinfo --size "$uri" >"$T/out" 2>&1 || fail "served without a daemon"
