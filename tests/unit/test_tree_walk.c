/* SPDX-License-Identifier: Apache-2.0 */
/* Walks of two trees against a model that compares them block by block, on a log that is
 * an array of nodes. */
#include "cow/tree_walk.h"

#include "tests/unit/on_loops.h"

#define BLOCKS_MAX 150000U /* three levels */
#define NODES_MAX  60000U

struct cell {
    uint64_t address; /* 0: zeros */
    uint32_t generation;
};

/* Stands for the store: nodes by address. */
static struct fake_log {
    struct loop *loop;
    uint8_t *nodes[NODES_MAX];
    uint32_t node_count;
    bool dead[NODES_MAX], damaged[NODES_MAX];
    uint64_t reads, in_flight, most_in_flight;
} fake;

#define NODE_SEQUENCE 1000U

static struct address node_address(uint32_t n)
{
    return address_of(1, NODE_SEQUENCE + n / EXTENT_BLOCKS, n % EXTENT_BLOCKS);
}

static uint32_t node_number(struct address address)
{
    return (uint32_t)(address.v - node_address(0).v);
}

struct answer {
    struct work work;
    struct log_read *read;
};

static void answer_run(struct work *work)
{
    struct answer *answer = container_of(work, struct answer, work);
    struct log_read *read = answer->read;
    uint32_t n = node_number(read->address);
    free(answer);
    CHECK(n < fake.node_count && read->count == 1);
    fake.in_flight--;
    memcpy(read->iov[0].iov_base, fake.nodes[n], BLOCK_SIZE);
    read->result = fake.dead[n]      ? -PLX_EDEAD
                   : fake.damaged[n] ? -PLX_ECHECKSUM
                                     : 0;
    read->done(read);
}

void copies_read(struct copies *copies, struct log_read *read)
{
    struct answer *answer = calloc(1, sizeof *answer);
    CHECK(answer != NULL && copies == NULL);
    answer->work.run = answer_run;
    answer->read = read;
    fake.reads++;
    fake.in_flight++;
    fake.most_in_flight = max_u64(fake.most_in_flight, fake.in_flight);
    loop_post(fake.loop, &answer->work);
}

/* --- trees --- */

struct tree {
    struct map_root root;
    uint64_t blocks;
    struct cell *cells; /* BLOCKS_MAX */
};

struct bench {
    struct loop *loop;
    struct node_cache *cache;
    uint64_t random, next_data;
};

static uint64_t draw(struct bench *bench, uint64_t n)
{
    bench->random ^= bench->random << 13;
    bench->random ^= bench->random >> 7;
    bench->random ^= bench->random << 17;
    return bench->random % n;
}

static struct map_entry add_node(const struct map_node_format *format,
                                 uint32_t generation)
{
    CHECK(fake.node_count < NODES_MAX);
    uint8_t *node = malloc(BLOCK_SIZE);
    CHECK(node != NULL);
    memcpy(node, format, BLOCK_SIZE);
    fake.nodes[fake.node_count] = node;
    return (struct map_entry){node_address(fake.node_count++), 7, generation};
}

static void entry_set(struct map_entry_format *format, struct map_entry entry)
{
    format->address = le64_of(entry.address.v);
    format->crc = le32_of(entry.crc);
    format->generation = le32_of(entry.generation);
}

/* The subtree that has the cells; what did not change is shared with `old`. */
static struct map_entry build(const struct tree *tree, unsigned level, uint64_t index,
                              struct map_entry old, unsigned old_level,
                              uint32_t generation)
{
    struct map_node_format format = {0};
    struct map_entry none = {.address = ADDRESS_NULL};
    bool is_real = !address_is_null(old.address) && old_level == level;
    if (is_real)
        memcpy(&format, fake.nodes[node_number(old.address)], BLOCK_SIZE);
    struct map_node_format before = format;
    for (unsigned i = 0; i < MAP_FANOUT; i++) {
        uint64_t at = index * MAP_FANOUT + i;
        struct map_entry child = is_real ? map_entry_at(&before, i) : none;
        unsigned child_level = level - 1;
        if (!is_real && i == 0 && !address_is_null(old.address)) {
            child = old;
            child_level = old_level;
        }
        if (level == 0) {
            const struct cell *cell = at < BLOCKS_MAX ? &tree->cells[at] : NULL;
            entry_set(&format.entries[i],
                      cell != NULL && cell->address != 0
                          ? (struct map_entry){{cell->address}, 1, cell->generation}
                          : none);
        } else if (at * map_entry_blocks(level) < BLOCKS_MAX) {
            entry_set(&format.entries[i],
                      build(tree, level - 1, at, child, child_level, generation));
        }
    }
    if (bytes_are_zero(&format, sizeof format))
        return none;
    if (is_real && memcmp(&format, &before, sizeof format) == 0)
        return old;
    return add_node(&format, generation);
}

static void write_tree(struct tree *tree, uint32_t generation)
{
    struct map_root *root = &tree->root;
    unsigned height = map_height(tree->blocks);
    height = height < root->height ? root->height : height;
    struct map_entry old = {root->address, root->crc, root->generation};
    struct map_entry entry = build(tree, height - 1, 0, old,
                                   root->height != 0 ? root->height - 1U : 0,
                                   generation);
    *root = (struct map_root){entry.address, entry.crc, entry.generation,
                              address_is_null(entry.address) ? 0 : (uint8_t)height};
}

static struct tree tree_copy(const struct tree *from, uint64_t blocks)
{
    struct tree tree = {.root = from->root, .blocks = blocks};
    tree.cells = malloc(BLOCKS_MAX * sizeof *tree.cells);
    CHECK(tree.cells != NULL);
    memcpy(tree.cells, from->cells, BLOCKS_MAX * sizeof *tree.cells);
    return tree;
}

static struct tree tree_empty(uint64_t blocks)
{
    struct tree tree = {.blocks = blocks};
    tree.cells = calloc(BLOCKS_MAX, sizeof *tree.cells);
    CHECK(tree.cells != NULL);
    return tree;
}

static void change(struct bench *bench, struct tree *tree, uint32_t generation,
                   uint32_t changes)
{
    for (uint32_t n = 0; n < changes; n++) {
        uint64_t start = draw(bench, tree->blocks);
        uint64_t count = 1 + draw(bench, draw(bench, 8) == 0 ? 3000 : 20);
        bool zeros = draw(bench, 4) == 0;
        for (uint64_t i = start; i < min_u64(start + count, tree->blocks); i++)
            tree->cells[i] = zeros ? (struct cell){0}
                                   : (struct cell){1 << 20 | bench->next_data++,
                                                   generation};
    }
    write_tree(tree, generation);
}

static void bench_init(struct bench *bench, struct loop *loop, uint64_t seed,
                       uint64_t cache_bytes)
{
    memset(&fake, 0, sizeof fake);
    fake.loop = loop;
    *bench = (struct bench){.loop = loop, .random = 88172645463325252U + seed};
    bench->cache = node_cache_create(NULL, cache_bytes);
    CHECK(bench->cache != NULL);
}

static async void bench_done(struct bench *bench)
{
    node_cache_destroy(bench->cache);
    for (uint32_t i = 0; i < fake.node_count; i++)
        free(fake.nodes[i]);
}

/* --- walks --- */

struct seen {
    const struct tree *root, *against;
    uint32_t bound;
    uint64_t next;       /* no block below was left out */
    uint64_t data;
    uint8_t *nodes;      /* done, by number */
    uint64_t node_count;
    bool misses_nodes;   /* some are unreadable */
};

static bool is_wanted(const struct seen *seen, uint64_t block)
{
    const struct cell *cell = &seen->root->cells[block];
    uint64_t other =
        seen->against != NULL ? seen->against->cells[block].address : 0;
    return cell->address != 0 && cell->address != other &&
           cell->generation > seen->bound;
}

static async int on_data(void *arg, uint64_t block, struct map_entry entry,
                         struct map_entry other)
{
    struct seen *seen = arg;
    CHECK(block < BLOCKS_MAX && block >= seen->next);
    for (uint64_t i = seen->next; i < block && !seen->misses_nodes; i++)
        CHECK(!is_wanted(seen, i));
    CHECK(is_wanted(seen, block));
    CHECK_EQ(entry.address.v, seen->root->cells[block].address);
    CHECK_EQ(entry.generation, seen->root->cells[block].generation);
    if (seen->against != NULL)
        CHECK_EQ(other.address.v, seen->against->cells[block].address);
    seen->next = block + 1;
    seen->data++;
    return 0;
}

static async int on_node(void *arg, unsigned level, uint64_t index,
                         struct map_entry entry)
{
    struct seen *seen = arg;
    uint32_t n = node_number(entry.address);
    uint64_t end = (index + 1) * map_entry_blocks(level + 1);
    CHECK(n < fake.node_count && !seen->nodes[n]);
    CHECK(entry.generation > seen->bound);
    for (; seen->next < min_u64(end, BLOCKS_MAX); seen->next++)
        CHECK(seen->misses_nodes || !is_wanted(seen, seen->next));
    /* All below it that is walked is done already. */
    const struct map_node_format *format = (const void *)fake.nodes[n];
    for (unsigned i = 0; level > 0 && i < MAP_FANOUT; i++) {
        struct map_entry child = map_entry_at(format, i);
        if (!address_is_null(child.address) && child.generation > seen->bound &&
            seen->against == NULL && !seen->misses_nodes)
            CHECK(seen->nodes[node_number(child.address)]);
    }
    seen->nodes[n] = 1;
    seen->node_count++;
    return 0;
}

static void mark_nodes(struct map_entry entry, unsigned level, uint8_t *nodes)
{
    if (address_is_null(entry.address))
        return;
    nodes[node_number(entry.address)] = 1;
    for (unsigned i = 0; level > 0 && i < MAP_FANOUT; i++)
        mark_nodes(map_entry_at((const void *)fake.nodes[node_number(entry.address)], i),
                   level - 1, nodes);
}

static void mark_tree(const struct tree *tree, uint8_t *nodes)
{
    const struct map_root *root = &tree->root;
    if (root->height != 0)
        mark_nodes((struct map_entry){root->address, root->crc, root->generation},
                   root->height - 1U, nodes);
}

/* Exactly the nodes and blocks that only root has; all of them are younger than the
 * bound when nothing else shares them. */
static async void check_walk(struct bench *bench, const struct tree *root,
                             const struct tree *against, uint32_t bound, bool exact)
{
    static const struct tree_walk_ops ops = {.data = on_data, .node_done = on_node};
    struct seen seen = {.root = root, .against = against, .bound = bound};
    struct tree_walk walk = {.loop = bench->loop, .cache = bench->cache,
                             .root = root->root, .bound = bound};
    if (against != NULL)
        walk.against = against->root;
    seen.nodes = calloc(NODES_MAX, 1);
    CHECK(seen.nodes != NULL);
    CHECK_EQ(tree_walk(&walk, &ops, &seen), 0);
    for (; seen.next < BLOCKS_MAX; seen.next++)
        CHECK(!is_wanted(&seen, seen.next));
    if (exact) {
        uint8_t *mine = calloc(NODES_MAX, 1), *other = calloc(NODES_MAX, 1);
        CHECK(mine != NULL && other != NULL);
        mark_tree(root, mine);
        if (against != NULL)
            mark_tree(against, other);
        for (uint32_t n = 0; n < fake.node_count; n++)
            CHECK_EQ(seen.nodes[n], mine[n] && !other[n]);
        free(mine);
        free(other);
    }
    free(seen.nodes);
}

/* --- differences --- */

struct diff_seen {
    const struct tree *before, *now;
    uint64_t next, end;
    bool was_zero;
};

static int on_range(void *arg, uint64_t block, uint64_t count, bool is_zero)
{
    struct diff_seen *seen = arg;
    CHECK(count > 0 && block >= seen->next && block + count <= seen->end);
    for (uint64_t i = seen->next; i < block; i++)
        CHECK_EQ(seen->before->cells[i].address, seen->now->cells[i].address);
    for (uint64_t i = block; i < block + count; i++) {
        CHECK(seen->before->cells[i].address != seen->now->cells[i].address);
        CHECK_EQ(is_zero, seen->now->cells[i].address == 0);
    }
    CHECK(block != seen->next || seen->next == 0 || is_zero != seen->was_zero ||
          block == 0 || seen->before->cells[block - 1].address ==
                            seen->now->cells[block - 1].address);
    seen->next = block + count;
    seen->was_zero = is_zero;
    return 0;
}

static async void check_diff(struct bench *bench, const struct tree *before,
                             const struct tree *now)
{
    struct tree_walk walk = {.loop = bench->loop, .cache = bench->cache,
                             .root = before->root, .against = now->root};
    struct diff_seen seen = {before, now, 0, BLOCKS_MAX, false};
    CHECK_EQ(tree_diff(&walk, on_range, &seen), 0);
    for (uint64_t i = seen.next; i < BLOCKS_MAX; i++)
        CHECK_EQ(before->cells[i].address, now->cells[i].address);
    /* A part of it. */
    walk.first = draw(bench, BLOCKS_MAX);
    walk.end = walk.first + 1 + draw(bench, BLOCKS_MAX - walk.first);
    seen = (struct diff_seen){before, now, walk.first, walk.end, false};
    CHECK_EQ(tree_diff(&walk, on_range, &seen), 0);
    for (uint64_t i = seen.next; i < walk.end; i++)
        CHECK_EQ(before->cells[i].address, now->cells[i].address);
}

/* A chain of three versions, of sizes that need from one to three levels. */
static async void run_random(struct body *body)
{
    for (uint64_t seed = 1; seed <= 12; seed++) {
        static const uint64_t sizes[] = {200, 5000, 65536, 70000, BLOCKS_MAX};
        struct bench bench;
        bench_init(&bench, body->loop, seed, seed % 3 == 0 ? 64 * KIB : 4 * MIB);
        struct tree first = tree_empty(sizes[draw(&bench, 5)]);
        change(&bench, &first, 1, 1 + (uint32_t)draw(&bench, 30));
        struct tree second = tree_copy(&first, max_u64(first.blocks,
                                                       sizes[draw(&bench, 5)]));
        change(&bench, &second, 2, (uint32_t)draw(&bench, 30));
        struct tree third = tree_copy(&second, max_u64(second.blocks,
                                                       sizes[draw(&bench, 5)]));
        change(&bench, &third, 3, (uint32_t)draw(&bench, 20));
        check_walk(&bench, &first, NULL, 0, true);
        check_walk(&bench, &second, &first, 0, true);
        check_walk(&bench, &first, &second, 0, true);
        check_walk(&bench, &second, &third, 1, false); /* what its collapse frees */
        check_walk(&bench, &third, NULL, 2, false);
        check_walk(&bench, &third, &third, 0, true);
        check_diff(&bench, &first, &second);
        check_diff(&bench, &second, &first);
        check_diff(&bench, &first, &third);
        check_diff(&bench, &third, &third);
        free(first.cells);
        free(second.cells);
        free(third.cells);
        bench_done(&bench);
    }
}

/* One leaf of many differs: what is read is the way down to it. */
static async void run_cost(struct body *body)
{
    struct bench bench;
    struct seen seen;
    bench_init(&bench, body->loop, 1, 4 * MIB);
    struct tree first = tree_empty(BLOCKS_MAX);
    for (uint64_t i = 0; i < BLOCKS_MAX; i++)
        first.cells[i] = (struct cell){1 << 20 | i, 1};
    write_tree(&first, 1);
    struct tree second = tree_copy(&first, BLOCKS_MAX);
    second.cells[70000] = (struct cell){1 << 21, 2};
    write_tree(&second, 2);
    fake.reads = 0;
    check_walk(&bench, &second, &first, 0, true);
    CHECK_EQ(fake.reads, 6);
    fake.reads = 0;
    check_walk(&bench, &second, NULL, 1, false);
    CHECK_EQ(fake.reads, 0); /* in memory by now */
    /* A walk of all reads ahead. */
    fake.most_in_flight = 0;
    check_walk(&bench, &first, NULL, 0, true);
    CHECK(fake.most_in_flight >= 16);
    (void)seen;
    free(first.cells);
    free(second.cells);
    bench_done(&bench);
}

/* --- what cannot be read --- */

static async int pass_over(void *arg, unsigned level, uint64_t index,
                           struct map_entry entry, bool of_against, int code)
{
    uint32_t *passed = arg;
    (void)level, (void)index, (void)of_against;
    CHECK(fake.damaged[node_number(entry.address)] && code == -PLX_ECHECKSUM);
    ++*passed;
    return 0;
}

static async int nothing(void *arg, uint64_t block, struct map_entry entry,
                         struct map_entry other)
{
    (void)arg, (void)block, (void)entry, (void)other;
    return 0;
}

static async int count_node(void *arg, unsigned level, uint64_t index,
                            struct map_entry entry)
{
    (void)level, (void)index;
    CHECK(!fake.dead[node_number(entry.address)]);
    ++*(uint32_t *)arg;
    return 0;
}

static async int skip_all(void *arg, unsigned level, uint64_t index,
                          struct map_entry entry)
{
    (void)index, (void)entry;
    ++*(uint32_t *)arg;
    return level == 0;
}

static async int fail_at(void *arg, uint64_t block, struct map_entry entry,
                         struct map_entry other)
{
    (void)arg, (void)entry, (void)other;
    return block == 70000 ? -EIO : 0;
}

static async void run_unreadable(struct body *body)
{
    struct bench bench;
    bench_init(&bench, body->loop, 2, 64 * KIB);
    struct tree tree = tree_empty(BLOCKS_MAX);
    for (uint64_t i = 0; i < BLOCKS_MAX; i++)
        tree.cells[i] = (struct cell){1 << 20 | i, 1};
    write_tree(&tree, 1);
    struct tree_walk walk = {.loop = body->loop, .cache = bench.cache,
                             .root = tree.root, .dead_is_done = true};
    struct tree_walk_ops ops = {.data = nothing, .node_done = count_node};
    uint32_t leaf = 3, count = 0;
    fake.dead[leaf] = true;
    CHECK_EQ(tree_walk(&walk, &ops, &count), 0);
    CHECK_EQ(count, fake.node_count - 1);
    walk.dead_is_done = false;
    CHECK_EQ(tree_walk(&walk, &ops, &count), -PLX_EDEAD);
    fake.dead[leaf] = false;
    fake.damaged[leaf] = true;
    walk.dead_is_done = true;
    CHECK_EQ(tree_walk(&walk, &ops, &count), -PLX_ECHECKSUM);
    ops = (struct tree_walk_ops){.data = nothing, .unreadable = pass_over};
    count = 0;
    CHECK_EQ(tree_walk(&walk, &ops, &count), 0);
    CHECK_EQ(count, 1);
    fake.damaged[leaf] = false;
    /* The caller ends it, or looks only at what is above leaves. */
    ops = (struct tree_walk_ops){.data = fail_at};
    CHECK_EQ(tree_walk(&walk, &ops, NULL), -EIO);
    ops = (struct tree_walk_ops){.data = fail_at, .enter = skip_all};
    count = 0;
    CHECK_EQ(tree_walk(&walk, &ops, &count), 0);
    CHECK_EQ(count, fake.node_count);
    walk.root.height = 9;
    CHECK_EQ(tree_walk(&walk, &ops, &count), -PLX_EFORMAT);
    free(tree.cells);
    bench_done(&bench);
}

static async void run_subtree(struct body *body)
{
    struct bench bench;
    bench_init(&bench, body->loop, 3, 4 * MIB);
    struct tree tree = tree_empty(BLOCKS_MAX);
    change(&bench, &tree, 4, 40);
    struct tree_walk walk = {.loop = body->loop, .cache = bench.cache, .bound = 3};
    static const struct tree_walk_ops ops = {.data = on_data, .node_done = on_node};
    struct seen seen = {.root = &tree, .bound = 3, .nodes = calloc(NODES_MAX, 1)};
    struct map_entry root = {tree.root.address, tree.root.crc, 4};
    CHECK(seen.nodes != NULL);
    CHECK_EQ(tree_walk_subtree(&walk, root, tree.root.height - 1U, 0, &ops, &seen), 0);
    CHECK_EQ(seen.node_count, fake.node_count);
    /* Its second child alone. */
    const struct map_node_format *format =
        (const void *)fake.nodes[node_number(root.address)];
    struct map_entry child = map_entry_at(format, 1);
    memset(seen.nodes, 0, NODES_MAX);
    seen.next = 65536;
    seen.node_count = seen.data = 0;
    CHECK_EQ(tree_walk_subtree(&walk, child, 1, 1, &ops, &seen), 0);
    CHECK(seen.node_count > 1 && seen.nodes[node_number(child.address)]);
    walk.bound = 4;
    CHECK_EQ(tree_walk_subtree(&walk, child, 1, 1, &ops, NULL), 0);
    free(seen.nodes);
    free(tree.cells);
    bench_done(&bench);
}

int main(void)
{
    run_on_sim(run_random);
    run_on_sim(run_cost);
    run_on_sim(run_unreadable);
    run_on_sim(run_subtree);
    return 0;
}
