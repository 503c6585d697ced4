/* SPDX-License-Identifier: Apache-2.0 */
/* The face of the copy-on-write layer. */
#ifndef PARALLAX_COW_COW_H
#define PARALLAX_COW_COW_H

#include "cow/disk.h"
#include "cow/host.h"

#endif
