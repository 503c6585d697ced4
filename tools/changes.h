/* SPDX-License-Identifier: Apache-2.0 */
/* What has changed in an export of our daemon since a snapshot, asked for over NBD. */
#ifndef PARALLAX_TOOLS_CHANGES_H
#define PARALLAX_TOOLS_CHANGES_H

#include <libnbd.h>

#include "runtime/base.h"
#include "runtime/error.h"

/* Of export `name` (for messages, too) at `uri`, since the snapshot `base` of its disk.
 */
struct changes {
    struct nbd_handle *ranges; /* is asked what has changed */
    struct nbd_handle *data;   /* is asked what is a hole; the caller may read from it */
    const char *name;
    uint64_t size_bytes;
};
int changes_open(struct changes *ret, const char *uri, const char *name, const char *base,
                 struct error *err);
void changes_close(struct changes *changes);

/* Calls fn for each changed range, in order, with what is zeros told apart where it is
 * worth a question. Work in proportion to the change. What fn returns ends it. */
typedef int changes_fn(void *arg, uint64_t offset_bytes, uint64_t len_bytes,
                       bool is_zero);
int changes_each(struct changes *changes, changes_fn *fn, void *arg, struct error *err);

#endif
