#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 240
# builds: release
#
# The hosts of three stores go one after the other while disks are written, so that each
# knows less than the one before; the one that knows all is lost for good. What the other
# two have together is there, and after a while each of them has it. doc/operations.md,
# "A host is gone for good".

. "$(dirname "$0")/lib.sh"
/usr/bin/python3 -c "import nbd" || skip "python3-libnbd is not installed"

# Hosts 1, 2 and 3 vote, so that whatever becomes of the stores there is a majority.
start_cluster 1 --capacity 1G
join_cluster 2 --witness
join_cluster 3 --witness
join_cluster 4 --capacity 1G
join_cluster 5 --capacity 1G
unchecked "$T/1" # it is no node any more at the end, and does not start
T=$T timeout 200 /usr/bin/python3 "$TESTS/cluster_loss.py" || fail "see above"
