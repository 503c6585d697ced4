/* SPDX-License-Identifier: Apache-2.0 */
#include "cow/disk_internal.h"

struct layer *layer_top(const struct disk *disk)
{
    return TAILQ_FIRST(&disk->layers);
}

struct layer *layer_push(struct disk *disk, uint32_t generation, uint64_t covers)
{
    struct layer *top = layer_top(disk);
    struct layer *layer = calloc(1, sizeof *layer);

    if (!layer)
        return NULL;
    overlay_init(&layer->overlay, generation, &disk->host->overlay);
    layer->settled = true;
    TAILQ_INSERT_HEAD(&disk->layers, layer, link);
    if (top) {
        top->covers = covers;
        disk->frozen_count++;
    }
    return layer;
}

void layers_done(struct disk *disk)
{
    struct layer *layer;

    while ((layer = TAILQ_FIRST(&disk->layers))) {
        TAILQ_REMOVE(&disk->layers, layer, link);
        overlay_done(&layer->overlay);
        free(layer);
    }
    disk->frozen_count = 0;
}

void layers_clear(struct disk *disk)
{
    struct layer *layer;

    assert(!disk_serves_reads(disk) && !disk->checkpoint_running);
    TAILQ_FOREACH (layer, &disk->layers, link)
        overlay_done(&layer->overlay);
}

uint64_t layers_bytes(const struct disk *disk)
{
    const struct layer *layer;
    uint64_t bytes = 0;

    TAILQ_FOREACH (layer, &disk->layers, link)
        bytes += layer->overlay.bytes;
    return bytes;
}

struct layer_run layers_find(const struct disk *disk, uint64_t block, uint64_t end)
{
    const struct layer *layer;

    TAILQ_FOREACH (layer, &disk->layers, link) {
        const struct interval *at = overlay_at_or_after(&layer->overlay, block);
        if (!at)
            continue;
        if (at->start > block) {
            end = min_u64(end, at->start);
            continue;
        }
        uint64_t skip = block - at->start;
        bool zeros = address_is_null(at->address);
        return (struct layer_run){
            .count = min_u64(end, interval_end(at)) - block,
            .in_layers = true,
            .address = zeros ? ADDRESS_NULL : address_plus(at->address, (uint32_t)skip),
            .crcs = zeros ? NULL : at->crcs + skip,
        };
    }
    return (struct layer_run){.count = end - block};
}

uint64_t layers_replaced(const struct layer *from, uint32_t count, uint64_t block,
                         uint64_t end)
{
    for (uint64_t was = UINT64_MAX; block < end && block != was;) {
        const struct layer *layer = from;
        was = block;
        for (uint32_t i = 0; i < count; i++) {
            const struct interval *at = overlay_at_or_after(&layer->overlay, block);
            if (at && at->start <= block)
                block = interval_end(at);
            if (layer->version)
                break;
            layer = TAILQ_PREV(layer, layer_list, link);
        }
    }
    return min_u64(block, end);
}

int layers_take(struct disk *disk, const struct log_piece *piece)
{
    struct layer *top = layer_top(disk);

    if (top->overlay.generation != piece->generation) { /* D2 */
        if (overlay_empty(&top->overlay))
            top->overlay.generation = piece->generation;
        else
            top = layer_push(disk, piece->generation, piece->number - 1);
        if (!top)
            return -ENOMEM;
    }
    return overlay_put(&top->overlay, piece->key, piece->count, piece->address,
                       piece->crcs);
}
