/* SPDX-License-Identifier: Apache-2.0 */
/* Batch headers, roll records, superblocks and extent records: what goes in comes out,
 * and whatever is damaged is refused. */
#include "blockstore/store_internal.h"
#include "tests/unit/check.h"

static uint8_t block[BLOCK_SIZE];

static struct header sample(enum header_kind kind, uint32_t count)
{
    return (struct header){
        .kind = kind,
        .cluster = {{1, 2, 3}},
        .disk = 77,
        .extent = address_of(3, 1234567, 0),
        .block = kind == HEADER_ROLL ? 0 : 4000,
        .epoch = 9,
        .number = kind == HEADER_ROLL ? 0 : 1000001,
        .generation = 4,
        .previous_crc = kind == HEADER_ROLL ? 0 : 0xdeadbeef,
        .nonce = 0x1122334455667788,
        .committed = 1000000,
        .flushed = 999990,
        .checkpoint = 12,
        .count = count,
    };
}

static void check_same_head(const struct header *a, const struct header *b)
{
    CHECK_EQ(a->kind, b->kind);
    CHECK(uid_equal(a->cluster, b->cluster));
    CHECK_EQ(a->disk, b->disk);
    CHECK_EQ(a->extent.v, b->extent.v);
    CHECK_EQ(a->block, b->block);
    CHECK_EQ(a->epoch, b->epoch);
    CHECK_EQ(a->number, b->number);
    CHECK_EQ(a->generation, b->generation);
    CHECK_EQ(a->previous_crc, b->previous_crc);
    CHECK_EQ(a->nonce, b->nonce);
    CHECK_EQ(a->committed, b->committed);
    CHECK_EQ(a->flushed, b->flushed);
    CHECK_EQ(a->checkpoint, b->checkpoint);
    CHECK_EQ(a->count, b->count);
}

static const struct entry kinds[] = {
    {.kind = ENTRY_DATA, .key = ((uint64_t)1 << 48) - 1, .count = 1, .crc = 5},
    {.kind = ENTRY_NODE, .key = 17, .count = 1, .crc = 0xffffffff, .aux = 2},
    {.kind = ENTRY_LIST, .key = 0, .count = 1, .crc = 1},
    {.kind = ENTRY_ZERO, .key = 1000, .count = (uint64_t)1 << 32},
    {.kind = ENTRY_MARKER, .key = 42},
};

static void test_batch(void)
{
    struct entry entries[BATCH_BLOCKS], got[BATCH_BLOCKS];
    struct header head, want = sample(HEADER_BATCH, BATCH_BLOCKS);
    for (uint32_t i = 0; i < BATCH_BLOCKS; i++)
        entries[i] = kinds[i % ARRAY_LEN(kinds)];
    CHECK_EQ(header_data_blocks(entries, BATCH_BLOCKS), 153);
    uint32_t crc = header_encode(&want, entries, block);
    CHECK_EQ(header_decode(block, &head, got), 0);
    check_same_head(&head, &want);
    CHECK_EQ(head.crc, crc);
    for (uint32_t i = 0; i < BATCH_BLOCKS; i++) {
        CHECK_EQ(got[i].kind, entries[i].kind);
        CHECK_EQ(got[i].key, entries[i].key);
        CHECK_EQ(got[i].count, entries[i].count);
        CHECK_EQ(got[i].crc, entries[i].crc);
        CHECK_EQ(got[i].aux, entries[i].aux);
    }
    CHECK_EQ(header_decode(block, &head, NULL), 0);
    CHECK_EQ(roll_decode(block, &head, NULL), -PLX_EFORMAT);
}

static void test_roll(void)
{
    struct roll_entry entries[ROLL_ENTRIES_MAX], got[ROLL_ENTRIES_MAX];
    struct header head, want = sample(HEADER_ROLL, ROLL_ENTRIES_MAX);
    for (uint32_t i = 0; i < ROLL_ENTRIES_MAX; i++)
        entries[i] = (struct roll_entry){address_of(1, i, 0), i, i * 3};
    entries[0].length = EXTENT_BLOCKS;
    roll_encode(&want, entries, block);
    CHECK_EQ(roll_decode(block, &head, got), 0);
    check_same_head(&head, &want);
    for (uint32_t i = 0; i < ROLL_ENTRIES_MAX; i++) {
        CHECK_EQ(got[i].extent.v, entries[i].extent.v);
        CHECK_EQ(got[i].length, entries[i].length);
        CHECK_EQ(got[i].last_number, entries[i].last_number);
    }
    CHECK_EQ(header_decode(block, &head, NULL), -PLX_EFORMAT);
}

/* Any bit that differs is found, and outputs stay untouched. */
static void test_every_bit(void)
{
    struct header head = {0}, want = sample(HEADER_BATCH, ARRAY_LEN(kinds));
    header_encode(&want, kinds, block);
    for (uint32_t bit = 0; bit < BLOCK_SIZE * 8; bit++) {
        block[bit / 8] ^= (uint8_t)(1U << (bit % 8));
        CHECK(header_decode(block, &head, NULL) < 0);
        CHECK_EQ(head.number, 0);
        block[bit / 8] ^= (uint8_t)(1U << (bit % 8));
    }
    CHECK_EQ(header_decode(block, &head, NULL), 0);
}

static int decode_sealed(void)
{
    struct header_format *f = (struct header_format *)(void *)block;
    struct header head;
    f->crc = le32_of(crc32c(f, offsetof(struct header_format, crc)));
    int batch = header_decode(block, &head, NULL);
    int roll = roll_decode(block, &head, NULL);
    return batch == 0 || roll == 0 ? 0 : batch == -PLX_EFORMAT ? roll : batch;
}

/* Nonsense with a good CRC. */
static void test_ranges(void)
{
    struct header_format *f = (struct header_format *)(void *)block;
    struct header want = sample(HEADER_BATCH, ARRAY_LEN(kinds));
#define REFUSED(change, code)                                                            \
    do {                                                                                 \
        header_encode(&want, kinds, block);                                              \
        CHECK_EQ(decode_sealed(), 0);                                                    \
        change;                                                                          \
        CHECK_EQ(decode_sealed(), code);                                                 \
    } while (0)
    REFUSED(f->head.magic = le32_of(1), -PLX_EFORMAT);
    REFUSED(f->head.version = le16_of(0), -PLX_EFORMAT);
    REFUSED(f->head.version = le16_of(HEADER_VERSION + 1), -PLX_ENEWER);
    REFUSED(f->head.kind = le16_of(3), -PLX_EFORMAT);
    REFUSED(f->head.kind = le16_of(HEADER_ROLL), -PLX_EFORMAT); /* has a number */
    REFUSED(f->head.number = le64_of(0), -PLX_EFORMAT);
    REFUSED(f->head.count = le16_of(BATCH_BLOCKS + 1), -PLX_EFORMAT);
    REFUSED(f->head.count = le16_of(20), -PLX_EFORMAT); /* entries of kind 0 */
    REFUSED(f->head.block = le32_of(EXTENT_BLOCKS), -PLX_EFORMAT);
    REFUSED(f->head.block = le32_of(EXTENT_BLOCKS - 3), -PLX_EFORMAT);
    REFUSED(f->head.extent = le64_of(want.extent.v + 1), -PLX_EFORMAT);
    REFUSED(f->head.extent = le64_of(0), -PLX_EFORMAT);
    REFUSED(f->entries[0].kind = 6, -PLX_EFORMAT);
    REFUSED(le48_set(f->entries[3].u.interval.count, 0), -PLX_EFORMAT);
    REFUSED(le48_set(f->entries[3].u.interval.count, ((uint64_t)1 << 48) - 999),
            -PLX_EFORMAT);
#undef REFUSED
}

static void test_roll_ranges(void)
{
    struct roll_format *f = (struct roll_format *)(void *)block;
    struct header want = sample(HEADER_ROLL, 2);
    struct roll_entry entries[] = {{address_of(1, 1, 0), 5, 1},
                                   {address_of(1, 2, 0), 0, 0}};
#define REFUSED(change)                                                                  \
    do {                                                                                 \
        roll_encode(&want, entries, block);                                              \
        CHECK_EQ(decode_sealed(), 0);                                                    \
        change;                                                                          \
        CHECK_EQ(decode_sealed(), -PLX_EFORMAT);                                         \
    } while (0)
    REFUSED(f->head.block = le32_of(1));
    REFUSED(f->head.number = le64_of(1));
    REFUSED(f->head.previous_crc = le32_of(1));
    REFUSED(f->head.count = le16_of(ROLL_ENTRIES_MAX + 1));
    REFUSED(f->head.count = le16_of(3));
    REFUSED(f->entries[0].length = le32_of(EXTENT_BLOCKS + 1));
    REFUSED(f->entries[1].extent = le64_of(1));
#undef REFUSED
}

static void test_chain(void)
{
    struct chain chain = {.cluster = {{1, 2, 3}},
                          .disk = 77,
                          .epoch = 9,
                          .nonce = 0x1122334455667788,
                          .extent = address_of(3, 1234567, 0)};
    struct header roll = sample(HEADER_ROLL, 0), batch = sample(HEADER_BATCH, 1);
    CHECK(chain_accepts(&chain, &roll));
    batch.block = batch.previous_crc = 0;
    CHECK(!chain_accepts(&chain, &batch)); /* the roll record comes first */
    roll.crc = 11;
    chain_advance(&chain, &roll, 0);
    CHECK(!chain_accepts(&chain, &roll));
    batch.block = 1;
    CHECK(!chain_accepts(&chain, &batch));
    batch.previous_crc = 11;
    CHECK(chain_accepts(&chain, &batch)); /* the first may have any number */
    batch.crc = 12;
    chain_advance(&chain, &batch, 3);
    struct header next = batch;
    next.block = 5;
    next.previous_crc = 12;
    next.number++;
    CHECK(chain_accepts(&chain, &next));
#define REFUSED(change)                                                                  \
    do {                                                                                 \
        struct header bad = next;                                                        \
        change;                                                                          \
        CHECK(!chain_accepts(&chain, &bad));                                             \
    } while (0)
    REFUSED(bad.cluster.b[5] = 1);
    REFUSED(bad.disk++);
    REFUSED(bad.extent = address_of(3, 1, 0));
    REFUSED(bad.block++);
    REFUSED(bad.epoch++);
    REFUSED(bad.epoch--);
    REFUSED(bad.number++);
    REFUSED(bad.number--);
    REFUSED(bad.nonce++);
    REFUSED(bad.previous_crc++);
    REFUSED(bad.kind = HEADER_ROLL);
#undef REFUSED
}

/* --- superblock --- */

static void test_superblock(void)
{
    struct superblock got = {.generation = 99};
    struct superblock sb = {.cluster = {{1}},
                            .store = {{2}},
                            .capacity_bytes = 64 * MIB,
                            .created_wall_ns = 5,
                            .generation = 3};
    superblock_encode(&sb, block);
    for (uint32_t bit = 0; bit < BLOCK_SIZE * 8; bit++) {
        block[bit / 8] ^= (uint8_t)(1U << (bit % 8));
        CHECK(superblock_decode(block, &got) < 0);
        CHECK_EQ(got.generation, 99);
        block[bit / 8] ^= (uint8_t)(1U << (bit % 8));
    }
    CHECK_EQ(superblock_decode(block, &got), 0);
    CHECK(uid_equal(got.cluster, sb.cluster) && uid_equal(got.store, sb.store));
    CHECK_EQ(got.capacity_bytes, sb.capacity_bytes);
    CHECK_EQ(got.generation, 3);
    struct superblock_format *f = (struct superblock_format *)(void *)block;
#define REFUSED(change, code)                                                            \
    do {                                                                                 \
        superblock_encode(&sb, block);                                                   \
        change;                                                                          \
        f->crc = le32_of(crc32c(f, offsetof(struct superblock_format, crc)));            \
        CHECK_EQ(superblock_decode(block, &got), code);                                  \
    } while (0)
    REFUSED(f->version = le32_of(SUPERBLOCK_VERSION + 1), -PLX_ENEWER);
    REFUSED(f->incompatible = le64_of(1), -PLX_ENEWER);
    REFUSED(f->compatible = le64_of(1), 0);
    REFUSED(f->version = le32_of(0), -PLX_EFORMAT);
    REFUSED(f->slab_bytes = le32_of(4096), -PLX_EFORMAT);
    REFUSED(f->capacity_bytes = le64_of(64 * MIB + 1), -PLX_EFORMAT);
    REFUSED(f->capacity_bytes = le64_of(0), -PLX_EFORMAT);
    REFUSED(f->capacity_bytes = le64_of((uint64_t)1 << 62), -PLX_EFORMAT);
#undef REFUSED
}

/* --- extent records --- */

static void sample_extent(struct extent *e, enum extent_state state)
{
    *e = (struct extent){.address = address_of(2, 99, 0),
                         .disk = 5,
                         .epoch = 6,
                         .nonce = 7,
                         .state = (uint8_t)state,
                         .length = state == EXTENT_OPEN ? 0 : 300,
                         .durable = 300,
                         .restart_scanned = state == EXTENT_STOPPED};
    CHECK_EQ(runs_add(&e->runs, (struct run){16, 16}), 0);
    if (state == EXTENT_STOPPED) {
        e->headers = calloc(1, BITMAP_BYTES);
        bitmap_set(e->headers, 0);
        bitmap_set(e->headers, 1);
        bitmap_set(e->headers, 299);
    }
    /* A compacted one has 19 pieces of blocks, one of digest. */
    uint32_t count = state == EXTENT_FINAL ? 4 : 16;
    CHECK_EQ(runs_add(&e->runs, (struct run){64, count}), 0);
    if (state != EXTENT_FINAL)
        return;
    e->live_map = malloc(BITMAP_BYTES);
    e->layout = malloc(BITMAP_BYTES);
    bitmap_fill(e->layout, 300);
    bitmap_fill(e->live_map, 300);
    bitmap_clear(e->layout, 17);
    bitmap_clear(e->live_map, 17);
    bitmap_clear(e->live_map, 100);
}

/* Each of these alone makes a record of the sample one that is refused. */
static void check_unsound(void (*spoil)(struct extent *e), enum extent_state state)
{
    struct extent e;
    struct writer w = {0};
    uint8_t key[EXTENT_KEY_BYTES];
    sample_extent(&e, state);
    spoil(&e);
    extent_key(e.address, key);
    record_encode(&e, RECORD_PIECES_MAX, &w);
    struct extent *d = calloc(1, sizeof *d);
    CHECK_EQ(record_decode(key, sizeof key, w.bytes, w.len, d), -PLX_EDAMAGED);
    extent_free(d);
    writer_done(&w);
    runs_done(&e.runs);
    free(e.live_map);
    free(e.layout);
    free(e.headers);
}

static void no_roll(struct extent *e)
{
    bitmap_clear(e->headers, 0);
}

static void dead_header(struct extent *e)
{
    e->live_map = malloc(BITMAP_BYTES);
    bitmap_fill(e->live_map, 299);
}

static void both_kinds(struct extent *e)
{
    e->headers = malloc(BITMAP_BYTES);
    bitmap_fill(e->headers, 1);
}

static void no_digest(struct extent *e)
{
    (void)runs_cut_last(&e->runs, 19);
}

static void long_digest(struct extent *e)
{
    CHECK_EQ(runs_add(&e->runs, (struct run){100, DIGEST_PIECES_MAX}), 0);
}

static void not_stored(struct extent *e)
{
    bitmap_set(e->live_map, 17);
}

static void beyond(struct extent *e)
{
    bitmap_set(e->layout, 300);
}

static void check_record(enum extent_state state)
{
    struct extent e, got = {0};
    struct writer w = {0};
    uint8_t key[EXTENT_KEY_BYTES];
    sample_extent(&e, state);
    extent_key(e.address, key);
    record_encode(&e, EXTENT_PIECES, &w);
    struct extent *d = calloc(1, sizeof *d);
    CHECK_EQ(record_decode(key, sizeof key, w.bytes, w.len, d), 0);
    CHECK_EQ(d->address.v, e.address.v);
    CHECK_EQ(d->state, state);
    CHECK_EQ(d->length, e.length);
    CHECK_EQ(d->durable, 300);
    CHECK_EQ(d->restart_scanned, e.restart_scanned);
    CHECK_EQ(d->nonce, 7);
    CHECK_EQ(d->runs.count, 2);
    CHECK_EQ(d->live, state == EXTENT_FINAL ? 298 : e.length);
    CHECK_EQ(d->stored, state == EXTENT_FINAL ? 299 : e.length);
    CHECK_EQ(d->headers != NULL, state == EXTENT_STOPPED);
    if (d->headers != NULL)
        CHECK(memcmp(d->headers, e.headers, BITMAP_BYTES) == 0);
    extent_free(d);
    for (size_t bit = 0; bit < w.len * 8; bit++) {
        w.bytes[bit / 8] ^= (uint8_t)(1U << (bit % 8));
        d = calloc(1, sizeof *d);
        CHECK(record_decode(key, sizeof key, w.bytes, w.len, d) < 0);
        extent_free(d);
        w.bytes[bit / 8] ^= (uint8_t)(1U << (bit % 8));
        bit += 6;
    }
    for (size_t len = 0; len < w.len; len++) {
        d = calloc(1, sizeof *d);
        CHECK(record_decode(key, sizeof key, w.bytes, len, d) < 0);
        extent_free(d);
    }
    /* Cut while writing: what stays still covers the length, or it is refused. */
    w.len = 0;
    record_encode(&e, 16, &w);
    CHECK_EQ(record_decode(key, sizeof key, w.bytes, w.len, &got), -PLX_EDAMAGED);
    runs_done(&got.runs);
    free(got.live_map);
    free(got.layout);
    free(got.headers);
    writer_done(&w);
    runs_done(&e.runs);
    free(e.live_map);
    free(e.layout);
    free(e.headers);
}

static void test_identity(void)
{
    struct superblock sb = {.cluster = {{1}}, .store = {{2}}, .generation = 3}, got;
    struct identity_format f;
    identity_encode(&sb, &f);
    CHECK_EQ(identity_decode(&f, sizeof f, &got), 0);
    CHECK(uid_equal(got.cluster, sb.cluster) && uid_equal(got.store, sb.store));
    CHECK_EQ(got.generation, 3);
    CHECK(identity_decode(&f, sizeof f - 1, &got) < 0);
    f.store.b[3] = 1;
    CHECK_EQ(identity_decode(&f, sizeof f, &got), -PLX_EDAMAGED);
}

int main(void)
{
    test_batch();
    test_roll();
    test_every_bit();
    test_ranges();
    test_roll_ranges();
    test_chain();
    test_superblock();
    check_record(EXTENT_OPEN);
    check_record(EXTENT_STOPPED);
    check_record(EXTENT_FINAL);
    check_unsound(no_roll, EXTENT_STOPPED);
    check_unsound(dead_header, EXTENT_STOPPED);
    check_unsound(both_kinds, EXTENT_FINAL);
    check_unsound(no_digest, EXTENT_FINAL);
    check_unsound(long_digest, EXTENT_FINAL);
    check_unsound(not_stored, EXTENT_FINAL);
    check_unsound(beyond, EXTENT_FINAL);
    test_identity();
    return 0;
}
