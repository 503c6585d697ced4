#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# timeout: 280
# builds: release
#
# The same as cluster-partition with five hosts, of which three vote: there are groups of
# which a host that is cut off has nothing, and two that leave a majority to the others.
HOSTS=5 exec "$(dirname "$0")/cluster-partition.sh"
