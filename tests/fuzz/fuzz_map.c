/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Map lookups and merges over nodes of arbitrary bytes. Checksums are not asked for, and
 * every address leads to some node, so that trees get deep, and nodes name themselves.
 *
 *   byte 0     height of the root
 *   byte 1     how many blocks to look at and to put
 *   8 bytes    where they are
 *   the rest   node images, the last one filled up with zeros
 *
 * Every lookup must end, at a span that holds its block; what is merged must be found.
 */
#include "cow/dead_set.c"
#include "cow/map.c"
#include "cow/map_merge.c"
#include "cow/node_cache.c"
#include "cow/overlay.c"

#include "runtime/sim.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len);

#define HEADER_BYTES 10U
#define WRITTEN_MAX  1024U
/* Above all addresses that node images may hold: written by a merge. */
#define WRITTEN_FIRST address_of(UINT16_MAX, EXTENT_SEQUENCE_MAX - 1, 0)

static struct {
    struct loop *loop;
    const uint8_t *images;
    size_t images_len;
    uint8_t *written[WRITTEN_MAX];
    uint32_t written_count;
} fake;

struct answer {
    struct work work;
    struct log_read *read;
};

/* An image may not name what is written later: no real node can. */
static void keep_below_written(uint8_t *node)
{
    for (size_t i = 0; i < BLOCK_SIZE; i += sizeof(struct map_entry_format))
        if (node[i + 7] == UINT8_MAX)
            node[i + 7] = UINT8_MAX - 1;
}

static void answer_run(struct work *work)
{
    struct answer *answer = container_of(work, struct answer, work);
    struct log_read *read = answer->read;
    uint8_t *to = read->iov[0].iov_base;
    uint64_t n = read->address.v - WRITTEN_FIRST.v;
    free(answer);
    memset(to, 0, BLOCK_SIZE);
    if (read->address.v >= WRITTEN_FIRST.v && n < fake.written_count) {
        memcpy(to, fake.written[n], BLOCK_SIZE);
    } else if (fake.images_len > 0) {
        uint64_t count = div_up_u64(fake.images_len, BLOCK_SIZE);
        uint64_t at = read->address.v % count * BLOCK_SIZE;
        memcpy(to, fake.images + at, min_u64(BLOCK_SIZE, fake.images_len - at));
        keep_below_written(to);
    }
    read->result = 0;
    read->done(read);
}

void copies_read(struct copies *copies, struct log_read *read)
{
    struct answer *answer = calloc(1, sizeof *answer);
    (void)copies;
    assert(answer != NULL);
    answer->work.run = answer_run;
    answer->read = read;
    loop_post(fake.loop, &answer->work);
}

static async int keep_node(struct map_sink *map, unsigned level, uint64_t index,
                           struct buffer *buffer, struct map_entry *ret_entry)
{
    (void)map, (void)level, (void)index;
    if (fake.written_count == WRITTEN_MAX)
        return -PLX_EFULL;
    uint8_t *node = malloc(BLOCK_SIZE);
    assert(node != NULL);
    memcpy(node, buffer->data, BLOCK_SIZE);
    *ret_entry = (struct map_entry){.address = {WRITTEN_FIRST.v + fake.written_count},
                                    .generation = 9};
    fake.written[fake.written_count++] = node;
    return 0;
}

static async int wait_for_none(struct map_sink *map)
{
    (void)map;
    return 0;
}

static async void look(struct node_cache *cache, const struct map_root *root,
                       uint64_t block, uint64_t *ret_address)
{
    struct map_span span;
    int rc = map_get(cache, root, block, &span);
    assert(rc == (map_root_sound(root) ? 0 : -PLX_EFORMAT));
    if (rc < 0)
        return;
    assert(span.start <= block && block - span.start < span.count);
    *ret_address = 0;
    if (span.leaf == NULL)
        return;
    for (uint64_t i = 0; i < span.count; i++)
        (void)map_span_entry(&span, span.start + i);
    *ret_address = map_span_entry(&span, block).address.v;
    node_put(cache, span.leaf);
    rc = map_try(cache, root, block, &span);
    assert(rc == 0 || rc == -EAGAIN);
    if (rc == 0)
        node_put(cache, span.leaf);
}

struct input {
    struct task_call call;
    struct map_root root;
    uint32_t count;
    uint64_t at;
    bool is_over;
};

/* Scattered over the disk, near and far. */
static uint64_t block_of(const struct input *input, uint32_t i)
{
    uint64_t hash = (input->at + i / 2) * 0x9e3779b97f4a7c15U;
    return (i % 2 == 0 ? input->at + i : hash) & 0xffffffffU;
}

/* What a dead list can name. */
static async int check_dead(struct map_sink *sink, struct map_entry entry, int level)
{
    (void)sink;
    assert(address_group(entry.address) > 0 && entry.generation > 3);
    assert(level >= MAP_BLOCK && level < (int)MAP_HEIGHT_MAX);
    return 0;
}

static async void merge_some(struct node_cache *cache, const struct input *input)
{
    struct buffer_pool *pool = buffer_pool_create(64 * KIB);
    struct overlay_budget budget = {.limit_bytes = MIB};
    struct map_sink sink = {.write = keep_node, .wait = wait_for_none,
                            .dead = check_dead, .buffers = pool};
    struct overlay overlay;
    struct map_root root;
    uint32_t crc = 1;
    overlay_init(&overlay, 9, &budget);
    for (uint32_t i = 0; i < input->count; i++) {
        bool zeros = i % 3 == 2;
        struct address address = zeros ? ADDRESS_NULL : address_of(1, 1, i);
        int rc = overlay_put(&overlay, block_of(input, i), 1, address,
                             zeros ? NULL : &crc);
        assert(rc == 0);
    }
    int rc = map_merge(cache, &input->root, &overlay, (uint64_t)1 << 32, 3, &sink, &root);
    assert(rc == 0 || rc == -PLX_EFULL || rc == -PLX_EFORMAT);
    for (uint32_t i = 0; rc == 0 && i < input->count; i++) {
        uint64_t block = block_of(input, i), address = 0;
        const struct interval *at = overlay_at_or_after(&overlay, block);
        look(cache, &root, block, &address);
        assert(address == at->address.v);
    }
    overlay_done(&overlay);
    assert(budget.used_bytes == 0);
    buffer_pool_destroy(pool);
}

static void input_main(struct task_call *call)
{
    struct input *input = container_of(call, struct input, call);
    struct node_cache *cache = node_cache_create(NULL, 64 * KIB);
    uint64_t address;
    assert(cache != NULL);
    for (uint32_t i = 0; i < input->count; i++)
        look(cache, &input->root, block_of(input, i), &address);
    if (input->count > 0)
        merge_some(cache, input);
    node_cache_destroy(cache);
    input->is_over = true;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t len)
{
    if (len < HEADER_BYTES)
        return 0;
    struct input input = {.call = {.main = input_main, .name = "fuzz"},
                          .count = bytes[1] % 64U};
    memcpy(&input.at, bytes + 2, sizeof input.at);
    input.at &= 0xffffffffU;
    input.root = (struct map_root){.height = bytes[0]};
    if (len > HEADER_BYTES)
        input.root.address = address_of(1, 1, 1);
    fake.images = bytes + HEADER_BYTES;
    fake.images_len = len - HEADER_BYTES;
    struct sim_world *world = sim_world_create(1);
    fake.loop = sim_process_create(world);
    task_start(fake.loop, &input.call);
    bool ended = sim_world_run_until(world, &input.is_over, NS_PER_S);
    assert(ended);
    (void)ended;
    sim_process_end(fake.loop, SIM_KILL);
    sim_world_destroy(world);
    while (fake.written_count > 0)
        free(fake.written[--fake.written_count]);
    return 0;
}
