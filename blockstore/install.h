/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A copy of a final extent that comes from another store. doc/store.md.
 *
 *     begin --> plan --> put ... put --> finish
 *        \________\_________\__________> abandon
 *
 * Until it is finished it is no copy: reads answer -PLX_ENOTHERE, or are served by what
 * was there before, and a restart knows nothing of it. What is trimmed meanwhile is
 * remembered, and dead in the copy: so whoever asks another store what is live begins
 * first. A deletion ends it.
 */
#ifndef PARALLAX_BLOCKSTORE_INSTALL_H
#define PARALLAX_BLOCKSTORE_INSTALL_H

#include "blockstore/store.h"

#define STORE_INSTALLS_MAX 16U /* at once: 272 KiB each, at most */

struct store_install;

/* What the other store says of its copy. */
struct install_plan {
    uint64_t disk, epoch, nonce;
    uint32_t length;
    const uint8_t *live;    /* a bit for each block, BITMAP_BYTES bytes */
    const uint8_t *headers; /* those of these that are headers or the roll record;
                               NULL: its headers are dead */
};

struct install_block {
    uint32_t block;     /* in the extent */
    struct entry entry; /* what its header said of it */
    bool is_known;      /* else nobody knows, or it is a header itself */
    bool is_bad; /* it is as rotten everywhere: readers are to see the same error */
};

/* -PLX_EEXISTS: there is a final copy; -PLX_EBUSY: it is being installed; -PLX_ELIMIT;
 * -ENOMEM; -PLX_EFAILED. */
int store_install_begin(struct store *store, struct address extent,
                        struct store_install **ret_install);
/* Takes space for what is live: dense, with a digest; an extent whose headers are live
 * keeps all its places, so that it can be walked. -PLX_EFORMAT: it cannot be so;
 * -PLX_EFULL: more than the reserve must be left; -ENOMEM, -PLX_EFAILED. */
int store_install_plan(struct store_install *install, const struct install_plan *plan);
/* The first block from `from` on that is needed and was not put yet: one that is live, or
 * any header, if the plan had them. EXTENT_BLOCKS: there is none. */
uint32_t store_install_missing(const struct store_install *install, uint32_t from);
/* Blocks in ascending order, their bytes one behind the other, aligned to BLOCK_SIZE.
 * Several calls may be under way, for different blocks. -PLX_ECHECKSUM: one of them does
 * not fit; -PLX_EFORMAT: it is none of the plan's; -PLX_EMISSING: the extent was deleted;
 * -PLX_EFAILED; or of the file. */
async int store_install_put(struct store_install *install,
                            const struct install_block *blocks, uint32_t count,
                            const void *bytes);
/* The other store says that this block is dead by now. */
void store_install_bury(struct store_install *install, uint32_t block);
/* Makes it a final copy, in place of one that was stopped, durably. Nothing is left of
 * the install whatever this returns:
 *   0: the copy is there, or all of it is dead and it is gone
 *   -PLX_ENOTHERE: some block that is needed was not put
 *   -PLX_EMISSING: the extent was deleted; -PLX_EEXISTS: there is a final copy
 *   -PLX_EPRECONDITION: what is there is open, or of another nonce
 *   -ENOMEM, -PLX_EFAILED, or of the file. */
async int store_install_finish(struct store_install *install);
/* No put may be under way. NULL ok. */
void store_install_abandon(struct store_install *install);

#endif
