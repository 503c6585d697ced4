/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is bad in this node's store is written again, from a copy that is sound.
 *
 * Happy path: a read or the scrub finds a block that does not have its checksum, and puts
 * it into a queue. A task reads it as anybody does, which leads to the other members, and
 * writes it to where it was.
 *
 * What can fail: there is no sound copy within reach, or the device fails again. The
 * block stays as it is, and is found again by whoever reads it next. When the queue is
 * full, what comes is forgotten likewise.
 *
 * On close the task ends after the block it is at.
 */
#include "replication/copies_internal.h"

/* Of a range that could not be read most blocks are sound. */
static async bool is_sound(struct copies *copies, const struct mend *mend, uint8_t *bytes)
{
    return store_read_wait(copies->store, mend->address, 1, bytes) == 0 &&
           crc32c(bytes, BLOCK_SIZE) == mend->crc;
}

static async int mend_with(struct copies *copies, const struct mend *mend, uint8_t *bytes)
{
    if (is_sound(copies, mend, bytes))
        return -PLX_EEXISTS;
    int rc = copies_read_wait(copies, mend->address, &mend->crc, 1, bytes, NULL);
    return rc == 0 ? store_mend_block(copies->store, mend->address, bytes, mend->crc)
                   : rc;
}

static async void mend_block(struct copies *copies, const struct mend *mend)
{
    uint8_t *bytes = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    int rc = bytes != NULL ? mend_with(copies, mend, bytes) : -ENOMEM;
    free(bytes);
    if (rc == -PLX_EEXISTS || rc == -PLX_EDEAD || rc == -PLX_EMISSING ||
        rc == -PLX_ENOTHERE)
        return; /* it is sound, or died meanwhile */
    if (rc == 0)
        metric_add(copies->mended_blocks, 1);
    if (rc == 0)
        log_info(copies->loop, "extent %llx block %u: mended from another copy",
                 (unsigned long long)address_extent(mend->address).v,
                 address_block(mend->address));
    else
        log_warning(copies->loop, "extent %llx block %u: not mended: %s",
                    (unsigned long long)address_extent(mend->address).v,
                    address_block(mend->address), err_text(rc));
}

static void mend_main(struct task_call *call)
{
    struct copies *copies = container_of(call, struct copies, mend_task);
    while (copies->mend_count > 0 && !copies->is_stopping) {
        mend_block(copies, &copies->mends[0]);
        copies->mend_count--;
        memmove(&copies->mends[0], &copies->mends[1],
                copies->mend_count * sizeof copies->mends[0]);
    }
    copies->mends_run = false;
    waitlist_wake_all(&copies->mends_over);
}

void copies_mend(struct copies *copies, struct address address, uint32_t crc)
{
    if (copies->is_alone || copies->is_stopping || copies->mend_count == MENDS_MAX)
        return;
    for (uint32_t i = 0; i < copies->mend_count; i++) {
        if (address_equal(copies->mends[i].address, address))
            return;
    }
    copies->mends[copies->mend_count++] = (struct mend){address, crc};
    if (copies->mends_run)
        return;
    copies->mends_run = true;
    copies->mend_task = (struct task_call){
        .main = mend_main, .name = "mend", .system = true};
    task_start(copies->loop, &copies->mend_task);
}

void copies_mend_extent(struct copies *copies, struct address extent)
{
    if (copies->damage_fn != NULL && !copies->is_stopping)
        copies->damage_fn(copies->damage_arg, extent);
}

void copies_on_damage(struct copies *copies, void (*fn)(void *arg, struct address extent),
                      void *arg)
{
    copies->damage_fn = fn;
    copies->damage_arg = arg;
}

async void copies_stop(struct copies *copies)
{
    copies->is_stopping = true;
    while (copies->mends_run)
        waitlist_wait(&copies->mends_over);
}
