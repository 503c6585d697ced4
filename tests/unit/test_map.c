/* SPDX-License-Identifier: Apache-2.0 */
/* Map lookups and merges against a brute-force model, on a log that is an array. */
#include "cow/map.h"

#include "tests/unit/on_loops.h"

#define BLOCKS_MAX 150000U
#define NODES_MAX  60000U

struct cell {
    uint64_t address; /* 0: zeros */
    uint32_t crc, generation;
};

/* Stands for the store: nodes by address. */
static struct fake_log {
    struct loop *loop;
    uint8_t *nodes[NODES_MAX];
    uint32_t node_count;
    uint64_t reads;
    int64_t fail_read, fail_write; /* the nth from now; -1: none */
} fake;

struct answer {
    struct work work;
    struct log_read *read;
};

#define NODE_SEQUENCE 1000U

static struct address node_address(uint32_t n)
{
    return address_of(1, NODE_SEQUENCE + n / EXTENT_BLOCKS, n % EXTENT_BLOCKS);
}

static void answer_run(struct work *work)
{
    struct answer *answer = container_of(work, struct answer, work);
    struct log_read *read = answer->read;
    uint64_t n = read->address.v - node_address(0).v;
    free(answer);
    read->result = 0;
    if (fake.fail_read >= 0 && fake.fail_read-- == 0) {
        read->result = -EIO;
    } else {
        CHECK(n < fake.node_count && read->count == 1);
        memcpy(read->iov[0].iov_base, fake.nodes[n], BLOCK_SIZE);
        if (crc32c(fake.nodes[n], BLOCK_SIZE) != read->crcs[0])
            read->result = -PLX_ECHECKSUM;
    }
    read->done(read);
}

void copies_read(struct copies *copies, struct log_read *read)
{
    struct answer *answer = calloc(1, sizeof *answer);
    CHECK(answer != NULL && copies == NULL);
    answer->work.run = answer_run;
    answer->read = read;
    fake.reads++;
    loop_post(fake.loop, &answer->work);
}

/* Addresses, of nodes and of data. */
struct addresses {
    uint64_t *at;
    size_t count, cap;
};

struct sink {
    struct map_sink map;
    struct node_cache *cache;
    uint32_t generation, writes, bound;
    struct addresses dead;
};

static void add_address(struct addresses *addresses, uint64_t address)
{
    if (addresses->count == addresses->cap) {
        addresses->cap = addresses->cap ? addresses->cap * 2 : 1024;
        addresses->at = realloc(addresses->at, addresses->cap * sizeof *addresses->at);
        CHECK(addresses->at != NULL);
    }
    addresses->at[addresses->count++] = address;
}

/* The entry and all below it that is younger than the bound. */
static void add_tree(struct addresses *addresses, struct map_entry entry, int level,
                     uint32_t bound)
{
    if (address_is_null(entry.address) || entry.generation <= bound)
        return;
    add_address(addresses, entry.address.v);
    if (level < 0)
        return;
    uint64_t n = entry.address.v - node_address(0).v;
    CHECK(n < fake.node_count);
    for (unsigned i = 0; i < MAP_FANOUT; i++)
        add_tree(addresses, map_entry_at((const void *)fake.nodes[n], i), level - 1,
                 bound);
}

static void add_root(struct addresses *addresses, const struct map_root *root,
                     uint32_t bound)
{
    if (root->height > 0)
        add_tree(addresses,
                 (struct map_entry){root->address, root->crc, root->generation},
                 root->height - 1, bound);
}

static int by_value(const void *a, const void *b)
{
    const uint64_t *left = a, *right = b;
    return *left < *right ? -1 : *left > *right;
}

static void sort_addresses(struct addresses *addresses)
{
    if (addresses->count > 1)
        qsort(addresses->at, addresses->count, sizeof *addresses->at, by_value);
}

/* Dead is what the old tree had and the new one has not, each once. */
static void check_dead(struct addresses *dead, const struct map_root *old,
                       const struct map_root *new, uint32_t bound)
{
    struct addresses before = {.at = NULL}, after = {.at = NULL};
    size_t found = 0;
    add_root(&before, old, bound);
    add_root(&after, new, 0);
    sort_addresses(&before);
    sort_addresses(&after);
    sort_addresses(dead);
    for (size_t i = 0; i < before.count; i++) {
        uint64_t address = before.at[i];
        if (after.count > 0 &&
            bsearch(&address, after.at, after.count, sizeof address, by_value) != NULL)
            continue;
        CHECK(found < dead->count && dead->at[found] == address);
        found++;
    }
    CHECK_EQ(found, dead->count);
    free(before.at);
    free(after.at);
}

static async int sink_dead(struct map_sink *map, struct map_entry entry, int level)
{
    struct sink *sink = container_of(map, struct sink, map);
    CHECK(entry.generation > sink->bound);
    add_tree(&sink->dead, entry, level, sink->bound);
    return 0;
}

static async int sink_write(struct map_sink *map, unsigned level, uint64_t index,
                            struct buffer *buffer, struct map_entry *ret_entry)
{
    struct sink *sink = container_of(map, struct sink, map);
    (void)level, (void)index;
    if (fake.fail_write >= 0 && fake.fail_write-- == 0)
        return -PLX_EFULL;
    CHECK(fake.node_count < NODES_MAX);
    uint8_t *node = malloc(BLOCK_SIZE);
    CHECK(node != NULL);
    memcpy(node, buffer->data, BLOCK_SIZE);
    fake.nodes[fake.node_count] = node;
    *ret_entry = (struct map_entry){.address = node_address(fake.node_count),
                                    .crc = crc32c(node, BLOCK_SIZE),
                                    .generation = sink->generation};
    fake.node_count++;
    sink->writes++;
    return 0;
}

static async int sink_wait(struct map_sink *map)
{
    (void)map;
    return 0;
}

struct bench {
    struct loop *loop;
    struct node_cache *cache;
    struct buffer_pool *buffers;
    struct overlay_budget budget;
    struct overlay overlay;
    struct map_root root;
    uint64_t blocks;
    uint32_t writes; /* of the last merge */
    uint64_t random, next_data;
    struct cell *cells;
};

static uint64_t draw(struct bench *bench, uint64_t n)
{
    bench->random ^= bench->random << 13;
    bench->random ^= bench->random >> 7;
    bench->random ^= bench->random << 17;
    return bench->random % n;
}

static void bench_init(struct bench *bench, struct loop *loop, uint64_t cache_bytes)
{
    *bench = (struct bench){.loop = loop, .random = 88172645463325252U};
    memset(&fake, 0, sizeof fake);
    fake.loop = loop;
    fake.fail_read = fake.fail_write = -1;
    bench->budget.limit_bytes = 64 * MIB;
    bench->cache = node_cache_create(NULL, cache_bytes);
    bench->buffers = buffer_pool_create(64 * KIB);
    bench->cells = calloc(BLOCKS_MAX, sizeof *bench->cells);
    CHECK(bench->cache != NULL && bench->buffers != NULL && bench->cells != NULL);
    overlay_init(&bench->overlay, 1, &bench->budget);
}

static async void bench_done(struct bench *bench)
{
    overlay_done(&bench->overlay);
    CHECK_EQ(bench->budget.used_bytes, 0);
    node_cache_destroy(bench->cache);
    CHECK_EQ(buffer_pool_used_bytes(bench->buffers), 0);
    buffer_pool_destroy(bench->buffers);
    free(bench->cells);
    for (uint32_t i = 0; i < fake.node_count; i++)
        free(fake.nodes[i]);
}

/* Forgets what is in memory. */
static async void chill(struct bench *bench)
{
    node_cache_destroy(bench->cache);
    bench->cache = node_cache_create(NULL, 1 * MIB);
    CHECK(bench->cache != NULL);
}

static void put(struct bench *bench, uint64_t start, uint64_t count, bool zeros)
{
    uint32_t crcs[255];
    if (zeros) {
        for (uint64_t i = start; i < min_u64(start + count, BLOCKS_MAX); i++)
            bench->cells[i] = (struct cell){0};
        CHECK_EQ(overlay_put(&bench->overlay, start, count, ADDRESS_NULL, NULL), 0);
        return;
    }
    CHECK(count <= ARRAY_LEN(crcs));
    if (bench->next_data % EXTENT_BLOCKS + count > EXTENT_BLOCKS)
        bench->next_data = round_up_u64(bench->next_data, EXTENT_BLOCKS);
    struct address address = address_of(1, 1 + bench->next_data / EXTENT_BLOCKS,
                                        (uint32_t)(bench->next_data % EXTENT_BLOCKS));
    bench->next_data += count;
    for (uint64_t i = 0; i < count; i++) {
        crcs[i] = (uint32_t)draw(bench, UINT32_MAX);
        if (start + i < BLOCKS_MAX)
            bench->cells[start + i] =
                (struct cell){address.v + i, crcs[i], bench->overlay.generation};
    }
    CHECK_EQ(overlay_put(&bench->overlay, start, count, address, crcs), 0);
}

/* Merges what was put since the last time; the next generation begins. */
static async int merge(struct bench *bench)
{
    uint32_t generation = bench->overlay.generation;
    struct sink sink = {.map = {.write = sink_write, .wait = sink_wait,
                                .dead = sink_dead, .buffers = bench->buffers},
                        .generation = generation,
                        .bound = (uint32_t)draw(bench, 2) * (generation - 1)};
    struct map_root root;
    if (sink.bound > 0)
        sink.bound -= (uint32_t)draw(bench, sink.bound);
    int rc = map_merge(bench->cache, &bench->root, &bench->overlay, bench->blocks,
                       sink.bound, &sink.map, &root);
    bench->writes = sink.writes;
    if (rc == 0)
        check_dead(&sink.dead, &bench->root, &root, sink.bound);
    free(sink.dead.at);
    if (rc < 0)
        return rc;
    CHECK(map_root_sound(&root));
    bench->root = root;
    uint32_t next = bench->overlay.generation + 1;
    overlay_done(&bench->overlay);
    overlay_init(&bench->overlay, next, &bench->budget);
    return 0;
}

static async void check_map(struct bench *bench, const struct map_root *root,
                            const struct cell *cells, uint64_t blocks)
{
    for (uint64_t block = 0; block < blocks;) {
        struct map_span span;
        CHECK_EQ(map_get(bench->cache, root, block, &span), 0);
        CHECK(span.start <= block && block - span.start < span.count);
        uint64_t end = min_u64(blocks, span.start + span.count);
        for (; block < end; block++) {
            struct map_entry entry = {.address = ADDRESS_NULL};
            if (span.leaf != NULL)
                entry = map_span_entry(&span, block);
            CHECK_EQ(entry.address.v, cells[block].address);
            CHECK_EQ(entry.crc, cells[block].crc);
            CHECK_EQ(entry.generation, cells[block].generation);
        }
        if (span.leaf != NULL)
            node_put(bench->cache, span.leaf);
    }
}

/* No entry is younger than the node it stands in, nor names what was never written. */
static void check_generations(const struct map_entry *entry, unsigned level)
{
    uint64_t n = entry->address.v - node_address(0).v;
    CHECK(n < fake.node_count);
    const struct map_node_format *node = (const void *)fake.nodes[n];
    for (unsigned i = 0; i < MAP_FANOUT; i++) {
        struct map_entry child = map_entry_at(node, i);
        CHECK(child.generation <= entry->generation);
        if (!address_is_null(child.address) && level > 0)
            check_generations(&child, level - 1);
    }
}

static void check_root(const struct map_root *root)
{
    struct map_entry entry = {root->address, root->crc, root->generation};
    if (root->height > 0)
        check_generations(&entry, root->height - 1U);
}

static void put_some(struct bench *bench)
{
    uint64_t pieces = 1 + draw(bench, 60);
    for (uint64_t i = 0; i < pieces; i++) {
        bool zeros = draw(bench, 4) == 0;
        uint64_t longest = !zeros ? 255 : draw(bench, 4) == 0 ? bench->blocks : 3000;
        uint64_t start = draw(bench, bench->blocks);
        uint64_t count = 1 + draw(bench, min_u64(longest, bench->blocks - start));
        put(bench, start, count, zeros);
    }
}

/* A disk that grows, with every root it ever had still telling its own state. */
static async void test_random(struct body *body)
{
    static const uint64_t sizes[] = {100,   256,   257,    5000,   5000,  65536,
                                     65536, 65537, 140000, 140000, 140000};
    struct map_root roots[ARRAY_LEN(sizes) * 3];
    struct cell *states[ARRAY_LEN(roots)];
    struct bench bench;
    uint32_t count = 0;
    bench_init(&bench, body->loop, 256 * KIB);
    for (uint32_t i = 0; i < ARRAY_LEN(sizes); i++) {
        bench.blocks = sizes[i];
        for (uint32_t j = 0; j < 3; j++) {
            put_some(&bench);
            CHECK_EQ(merge(&bench), 0);
            check_root(&bench.root);
            roots[count] = bench.root;
            states[count] = malloc(BLOCKS_MAX * sizeof *bench.cells);
            CHECK(states[count] != NULL);
            memcpy(states[count], bench.cells, BLOCKS_MAX * sizeof *bench.cells);
            count++;
        }
    }
    for (uint32_t i = 0; i < count; i++) {
        check_map(&bench, &roots[i], states[i], BLOCKS_MAX);
        free(states[i]);
    }
    CHECK(node_cache_used_bytes(bench.cache) <= 256 * KIB + 8 * BLOCK_SIZE);
    bench_done(&bench);
}

static async void test_heights(struct body *body)
{
    (void)body;
    CHECK_EQ(map_height(1), 1);
    CHECK_EQ(map_height(256), 1);
    CHECK_EQ(map_height(257), 2);
    CHECK_EQ(map_height(65536), 2);
    CHECK_EQ(map_height(65537), 3);
    CHECK_EQ(map_height(1 << 24), 3);
    CHECK_EQ(map_height((1 << 24) + 1), 4);
    CHECK_EQ(map_height((uint64_t)1 << 32), 4);
}

static async struct map_entry look(struct bench *bench, uint64_t block)
{
    struct map_span span;
    struct map_entry entry = {.address = ADDRESS_NULL};
    CHECK_EQ(map_get(bench->cache, &bench->root, block, &span), 0);
    CHECK(span.start <= block && block - span.start < span.count);
    if (span.leaf == NULL)
        return entry;
    entry = map_span_entry(&span, block);
    node_put(bench->cache, span.leaf);
    return entry;
}

/* From one leaf to four levels, with and without a change under the first entry. */
static async void test_growth(struct body *body)
{
    for (unsigned first_touched = 0; first_touched < 2; first_touched++) {
        struct bench bench;
        bench_init(&bench, body->loop, 1 * MIB);
        bench.blocks = 256;
        put(&bench, 3, 2, false);
        CHECK_EQ(merge(&bench), 0);
        CHECK_EQ(bench.root.height, 1);
        struct map_root old = bench.root;
        bench.blocks = (uint64_t)1 << 32;
        put(&bench, bench.blocks - 1, 1, false);
        if (first_touched)
            put(&bench, 4, 1, false);
        CHECK_EQ(merge(&bench), 0);
        CHECK_EQ(bench.root.height, 4);
        /* The path to the last block, and that to the first leaf, old or new. */
        CHECK_EQ(bench.writes, 4U + 2U + first_touched);
        check_root(&bench.root);
        CHECK_EQ(look(&bench, 3).address.v, bench.cells[3].address);
        CHECK_EQ(look(&bench, 4).address.v, bench.cells[4].address);
        CHECK_EQ(look(&bench, bench.blocks - 1).generation, 2);
        CHECK(address_is_null(look(&bench, 1 << 20).address));
        bench.root = old;
        CHECK(address_is_null(look(&bench, 1 << 20).address));
        bench_done(&bench);
    }
}

/* One block costs one node a level; everything else is shared. */
static async void test_sharing(struct body *body)
{
    struct bench bench;
    bench_init(&bench, body->loop, 4 * MIB);
    bench.blocks = 140000;
    for (uint64_t block = 0; block < 140000; block += 250)
        put(&bench, block, 250, false);
    CHECK_EQ(merge(&bench), 0);
    CHECK_EQ(bench.writes, 547 + 3 + 1);
    put(&bench, 70000, 1, false);
    CHECK_EQ(merge(&bench), 0);
    CHECK_EQ(bench.writes, 3);
    check_map(&bench, &bench.root, bench.cells, 140000);
    /* Nothing at all: the same root. */
    struct map_root root = bench.root;
    CHECK_EQ(merge(&bench), 0);
    CHECK_EQ(bench.writes, 0);
    CHECK_EQ(bench.root.address.v, root.address.v);
    bench_done(&bench);
}

/* Zeros over whole subtrees cut them off unread; the last data gone, the map is empty. */
static async void test_cutting(struct body *body)
{
    struct bench bench;
    bench_init(&bench, body->loop, 4 * MIB);
    bench.blocks = 140000;
    for (uint64_t block = 0; block < 140000; block += 250)
        put(&bench, block, 250, false);
    CHECK_EQ(merge(&bench), 0);
    chill(&bench);
    uint64_t before = fake.reads;
    put(&bench, 100, 139000, true);
    CHECK_EQ(merge(&bench), 0);
    /* The root, and at both ends an inner node and a leaf. */
    CHECK(fake.reads - before <= 5);
    CHECK(bench.writes <= 5);
    check_map(&bench, &bench.root, bench.cells, 140000);
    chill(&bench);
    before = fake.reads;
    put(&bench, 0, bench.blocks, true);
    CHECK_EQ(merge(&bench), 0);
    CHECK(fake.reads - before <= 3);
    check_map(&bench, &bench.root, bench.cells, 140000);
    put(&bench, 0, 3 * 65536, true);
    CHECK_EQ(merge(&bench), 0);
    CHECK(address_is_null(bench.root.address) && bench.root.height == 0);
    bench_done(&bench);
}

static async void test_cold(struct body *body)
{
    struct bench bench;
    struct map_span span;
    bench_init(&bench, body->loop, 1 * MIB);
    bench.blocks = 1000;
    CHECK_EQ(map_try(bench.cache, &bench.root, 7, &span), 0);
    CHECK(span.leaf == NULL && span.count >= 1000);
    put(&bench, 7, 1, false);
    CHECK_EQ(merge(&bench), 0);
    CHECK_EQ(map_try(bench.cache, &bench.root, 7, &span), -EAGAIN);
    CHECK_EQ(look(&bench, 7).address.v, bench.cells[7].address);
    CHECK_EQ(map_try(bench.cache, &bench.root, 7, &span), 0);
    CHECK(span.leaf != NULL);
    node_put(bench.cache, span.leaf);
    struct map_root bad = bench.root;
    bad.height = 5;
    CHECK_EQ(map_try(bench.cache, &bad, 7, &span), -PLX_EFORMAT);
    bad.height = 0;
    CHECK_EQ(map_get(bench.cache, &bad, 7, &span), -PLX_EFORMAT);
    bad = bench.root;
    bad.crc++;
    chill(&bench);
    CHECK_EQ(map_get(bench.cache, &bad, 7, &span), -PLX_ECHECKSUM);
    /* Nothing of the failure is kept. */
    CHECK_EQ(node_cache_used_bytes(bench.cache), 0);
    CHECK_EQ(look(&bench, 7).address.v, bench.cells[7].address);
    bench_done(&bench);
}

/* Every read and write of a merge fails once; the old tree is untouched by that. */
static async void test_failures(struct body *body)
{
    struct bench bench;
    bench_init(&bench, body->loop, 4 * MIB);
    bench.blocks = 140000;
    for (uint64_t block = 0; block < 140000; block += 500)
        put(&bench, block, 200, false);
    CHECK_EQ(merge(&bench), 0);
    for (unsigned write = 0; write < 2; write++) {
        int64_t *fail = write ? &fake.fail_write : &fake.fail_read;
        for (int64_t n = 0;; n++) {
            chill(&bench);
            for (uint64_t i = 0; i < 20 && overlay_empty(&bench.overlay); i++)
                put(&bench, draw(&bench, 139000), 1 + draw(&bench, 255), i == 7);
            *fail = n;
            int rc = merge(&bench);
            CHECK_EQ(buffer_pool_used_bytes(bench.buffers), 0);
            if (*fail >= 0)
                break;
            /* A leaf that was read ahead in vain is read again. */
            CHECK(rc == (write ? -PLX_EFULL : -EIO) || (rc == 0 && !write));
        }
        fake.fail_write = fake.fail_read = -1;
        check_map(&bench, &bench.root, bench.cells, 140000);
    }
    bench_done(&bench);
}

int main(void)
{
    static void (*const tests[])(struct body *body) = {
        test_heights, test_random, test_growth,   test_sharing,
        test_cutting, test_cold,   test_failures,
    };
    for (size_t i = 0; i < ARRAY_LEN(tests); i++) {
        struct sim_world *world = sim_world_create(1);
        run_in_world(world, tests[i], NULL);
        sim_world_destroy(world);
    }
    return 0;
}
