#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# builds: release asan
#
# The folder of a host is put back from a copy that was made a while ago: the others do
# not let it in, since it has forgotten what it agreed to. With the right one it goes on.

. "$(dirname "$0")/lib.sh"

start_cluster 3 --capacity 256M
wait_for 60 is_whole
stop_daemon "$T/3"
cp -a "$T/3" "$T/old"
parallax up "$T/3" --detach
for i in 1 2 3; do
    parallax -c "$T/$i" disk create "disk$i" 16M
done
applied()
{
    [ "$(parallax -c "$T/3" disk ls --json | grep -c '"disk[123]"')" = 3 ]
}
wait_for 20 applied
sleep 5 # host 3 greets one of the others every two seconds
stop_daemon "$T/3"
mv "$T/3" "$T/new"
mv "$T/old" "$T/3"
expect_error 'node 3 runs with an old copy of its store' parallax up "$T/3" --detach
rm -r "$T/3"
mv "$T/new" "$T/3"
parallax up "$T/3" --detach
wait_for 60 is_whole
wait_for 20 applied
