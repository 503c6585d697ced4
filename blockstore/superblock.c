/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The superblock: what makes a file or device a store.
 *
 * Happy path: two copies at both ends of slab 0 are equal; one is used.
 *
 * What can fail: a torn write leaves one copy bad or old; the other counts. With both bad
 * the store is refused with a line that says whether it is foreign, newer or damaged.
 *
 * Each open and each orderly close write both again, with the next generation.
 */
#include "blockstore/store_internal.h"

#define COPIES 2U

static const uint64_t copy_offset_bytes[COPIES] = {0, SLAB_BYTES - BLOCK_SIZE};

void superblock_encode(const struct superblock *sb, void *ret_block)
{
    struct superblock_format *f = ret_block;
    assert(sb->capacity_bytes % SLAB_BYTES == 0);
    memset(f, 0, sizeof *f);
    memcpy(f->magic, SUPERBLOCK_MAGIC, sizeof f->magic);
    f->version = le32_of(SUPERBLOCK_VERSION);
    f->block_bytes = le32_of(BLOCK_SIZE);
    f->slab_bytes = le32_of((uint32_t)SLAB_BYTES);
    f->piece_bytes = le32_of((uint32_t)PIECE_BYTES);
    f->cluster = sb->cluster;
    f->store = sb->store;
    f->capacity_bytes = le64_of(sb->capacity_bytes);
    f->created_wall_ns = le64_of(sb->created_wall_ns);
    f->generation = le64_of(sb->generation);
    f->crc = le32_of(crc32c(f, offsetof(struct superblock_format, crc)));
}

int superblock_decode(const void *block, struct superblock *ret)
{
    const struct superblock_format *f = block;
    if (memcmp(f->magic, SUPERBLOCK_MAGIC, sizeof f->magic) != 0)
        return -PLX_EFORMAT;
    if (crc32c(f, offsetof(struct superblock_format, crc)) != le32_get(f->crc))
        return -PLX_ECHECKSUM;
    if (le32_get(f->version) > SUPERBLOCK_VERSION ||
        (le64_get(f->incompatible) & ~SUPERBLOCK_INCOMPATIBLE_KNOWN) != 0)
        return -PLX_ENEWER;
    struct superblock sb = {
        .cluster = f->cluster,
        .store = f->store,
        .capacity_bytes = le64_get(f->capacity_bytes),
        .created_wall_ns = le64_get(f->created_wall_ns),
        .generation = le64_get(f->generation),
    };
    if (le32_get(f->version) == 0 || le32_get(f->block_bytes) != BLOCK_SIZE ||
        le32_get(f->slab_bytes) != SLAB_BYTES || le32_get(f->piece_bytes) != PIECE_BYTES)
        return -PLX_EFORMAT;
    if (sb.capacity_bytes % SLAB_BYTES != 0 || sb.capacity_bytes < STORE_BYTES_MIN ||
        sb.capacity_bytes / SLAB_BYTES > SLABS_MAX)
        return -PLX_EFORMAT;
    *ret = sb;
    return 0;
}

async int superblock_store(struct file *file, const struct superblock *sb)
{
    cleanup(free_ptr) void *block = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    if (block == NULL)
        return -ENOMEM;
    superblock_encode(sb, block);
    for (uint32_t i = 0; i < COPIES; i++) {
        int result = file_write(file, block, BLOCK_SIZE, copy_offset_bytes[i]);
        if (result == 0)
            result = file_sync(file);
        if (result < 0)
            return result;
    }
    return 0;
}

/* What a copy says of its format, if a newer program wrote it. */
struct newer {
    uint32_t version;
    uint64_t features; /* those that are not known here */
};

static void note_newer(const void *block, struct newer *ret)
{
    const struct superblock_format *f = block;
    ret->version = le32_get(f->version);
    ret->features = le64_get(f->incompatible) & ~SUPERBLOCK_INCOMPATIBLE_KNOWN;
}

static int refuse_newer(const char *path, const struct newer *newer, struct error *err)
{
    return err_set(err, -PLX_ENEWER,
                   "%s: store of format %u, features %#llx, written by a newer version "
                   "of this program; this one knows format %u and none of these features",
                   path, newer->version, (unsigned long long)newer->features,
                   SUPERBLOCK_VERSION);
}

/* What to say when no copy is good. */
static int refuse(const char *path, const int results[COPIES], const struct newer *newer,
                  struct error *err)
{
    for (uint32_t i = 0; i < COPIES; i++) {
        if (results[i] == -PLX_ENEWER)
            return refuse_newer(path, newer, err);
    }
    for (uint32_t i = 0; i < COPIES; i++) {
        if (results[i] == -PLX_ECHECKSUM)
            return err_set(err, -PLX_EDAMAGED,
                           "%s: both copies of the superblock are damaged", path);
        if (results[i] != -PLX_EFORMAT)
            return err_set(err, results[i], "%s: superblock cannot be read: %s", path,
                           err_text(results[i]));
    }
    return err_set(err, -PLX_EFORMAT, "%s: not a store", path);
}

async int superblock_load(struct file *file, const char *path, struct superblock *ret,
                          struct error *err)
{
    if (file_size_bytes(file) < SLAB_BYTES)
        return err_set(err, -PLX_EFORMAT, "%s: not a store, or truncated: %llu bytes",
                       path, (unsigned long long)file_size_bytes(file));
    cleanup(free_ptr) void *block = aligned_alloc(BLOCK_SIZE, BLOCK_SIZE);
    if (block == NULL)
        return err_set(err, -ENOMEM, "%s: out of memory", path);
    struct superblock copies[COPIES];
    int results[COPIES];
    struct newer newer = {0};
    const struct superblock *best = NULL;
    for (uint32_t i = 0; i < COPIES; i++) {
        results[i] = file_read(file, block, BLOCK_SIZE, copy_offset_bytes[i]);
        if (results[i] == 0)
            results[i] = superblock_decode(block, &copies[i]);
        if (results[i] == -PLX_ENEWER)
            note_newer(block, &newer);
        if (results[i] == 0 && (best == NULL || copies[i].generation > best->generation))
            best = &copies[i];
    }
    if (best == NULL)
        return refuse(path, results, &newer, err);
    /* A newer program has begun to convert it. */
    if (results[0] == -PLX_ENEWER || results[1] == -PLX_ENEWER)
        return refuse(path, results, &newer, err);
    *ret = *best;
    return 0;
}
