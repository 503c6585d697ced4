/* SPDX-License-Identifier: Apache-2.0 */
/* The overlay against a brute-force model: one entry for each block. */
#include "cow/overlay.h"

#include "tests/unit/check.h"

#define BLOCKS 600U

struct cell {
    bool known;
    struct address address; /* null: zeros */
    uint32_t crc;
};

struct model {
    struct overlay_budget budget;
    struct overlay overlay;
    struct cell cells[BLOCKS];
    uint64_t random;
    uint64_t next_block; /* of the log */
};

static uint64_t draw(struct model *model, uint64_t n)
{
    model->random ^= model->random << 13;
    model->random ^= model->random >> 7;
    model->random ^= model->random << 17;
    return model->random % n;
}

static void model_init(struct model *model, uint64_t seed)
{
    memset(model, 0, sizeof *model);
    model->random = seed * 0x9e3779b97f4a7c15U + 1;
    model->budget.limit_bytes = 1 * MIB;
    overlay_init(&model->overlay, 7, &model->budget);
}

static void model_done(struct model *model)
{
    overlay_done(&model->overlay);
    CHECK(overlay_empty(&model->overlay));
    CHECK_EQ(model->budget.used_bytes, 0);
    CHECK_EQ(model->budget.leaf_count, 0);
}

/* Fresh addresses, never across the end of an extent. */
static struct address fresh(struct model *model, uint64_t count)
{
    if (model->next_block % EXTENT_BLOCKS + count > EXTENT_BLOCKS)
        model->next_block = round_up_u64(model->next_block, EXTENT_BLOCKS);
    struct address address =
        address_of(1, 1 + model->next_block / EXTENT_BLOCKS,
                   (uint32_t)(model->next_block % EXTENT_BLOCKS));
    model->next_block += count + 1;
    return address;
}

static void put_data(struct model *model, uint64_t start, uint64_t count)
{
    uint32_t crcs[BLOCKS];
    struct address address = fresh(model, count);
    for (uint64_t i = 0; i < count; i++) {
        crcs[i] = (uint32_t)draw(model, UINT32_MAX);
        model->cells[start + i] =
            (struct cell){true, address_plus(address, (uint32_t)i), crcs[i]};
    }
    CHECK_EQ(overlay_put(&model->overlay, start, count, address, crcs), 0);
}

static void put_zeros(struct model *model, uint64_t start, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        model->cells[start + i] = (struct cell){.known = true};
    CHECK_EQ(overlay_put(&model->overlay, start, count, ADDRESS_NULL, NULL), 0);
}

/* As after a forced roll: a stretch that was put as one lies somewhere else now. */
static void move(struct model *model)
{
    uint64_t start = draw(model, BLOCKS);
    uint64_t end = start;
    if (!model->cells[start].known || address_is_null(model->cells[start].address))
        return;
    uint64_t was = model->cells[start].address.v;
    while (start > 0 && model->cells[start - 1].known &&
           model->cells[start - 1].address.v == was - 1) {
        start--;
        was--;
    }
    while (end < BLOCKS && model->cells[end].known &&
           model->cells[end].address.v == was + (end - start))
        end++;
    struct address now = fresh(model, end - start);
    overlay_move(&model->overlay, start, end - start, (struct address){was}, now);
    for (uint64_t i = start; i < end; i++)
        model->cells[i].address = address_plus(now, (uint32_t)(i - start));
}

static void check_cell(const struct model *model, uint64_t block)
{
    const struct cell *cell = &model->cells[block];
    const struct interval *at = overlay_at_or_after(&model->overlay, block);
    bool found = at != NULL && at->start <= block;
    CHECK_EQ(found, cell->known);
    if (!found)
        return;
    CHECK(interval_end(at) > block);
    uint32_t skip = (uint32_t)(block - at->start);
    CHECK_EQ(address_is_null(at->address), address_is_null(cell->address));
    if (address_is_null(cell->address))
        return;
    CHECK_EQ(at->address.v + skip, cell->address.v);
    CHECK_EQ(at->crcs[skip], cell->crc);
}

static void check_all(const struct model *model)
{
    uint64_t count = 0, leaves = 0, end = 0;
    const struct interval *at = overlay_at_or_after(&model->overlay, 0);
    for (; at != NULL; at = overlay_next(at)) {
        CHECK(at->start >= end && at->count > 0);
        end = interval_end(at);
        count++;
        uint64_t beyond = (end - 1) / MAP_FANOUT - at->start / MAP_FANOUT;
        leaves += 1 + (address_is_null(at->address) ? beyond > 0 : beyond);
    }
    CHECK_EQ(count, model->overlay.interval_count);
    CHECK_EQ(model->budget.leaf_count, leaves);
    CHECK_EQ(model->budget.used_bytes, model->overlay.bytes);
    CHECK(count == 0 || model->overlay.bytes >= count * sizeof(struct interval));
    for (uint64_t block = 0; block < BLOCKS; block++)
        check_cell(model, block);
}

static void test_random(void)
{
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct model model;
        model_init(&model, seed);
        for (uint32_t i = 0; i < 400; i++) {
            uint64_t start = draw(&model, BLOCKS);
            uint64_t longest = draw(&model, 8) == 0 ? BLOCKS : 12;
            uint64_t count = 1 + draw(&model, min_u64(longest, BLOCKS - start));
            uint64_t kind = draw(&model, 10);
            if (kind < 6)
                put_data(&model, start, min_u64(count, 255));
            else if (kind < 8)
                put_zeros(&model, start, count);
            else
                move(&model);
            if (i % 16 == 0)
                check_all(&model);
        }
        check_all(&model);
        model_done(&model);
    }
}

/* Every way in which a new interval can lie over an old one. */
static void test_splits(void)
{
    for (unsigned zeros = 0; zeros < 4; zeros++) {
        for (uint64_t start = 5; start <= 16; start++) {
            for (uint64_t end = start + 1; end <= 20; end++) {
                struct model model;
                model_init(&model, 1);
                if (zeros & 1)
                    put_zeros(&model, 10, 5);
                else
                    put_data(&model, 10, 5);
                if (zeros & 2)
                    put_zeros(&model, start, end - start);
                else
                    put_data(&model, start, end - start);
                check_all(&model);
                bool inside = start > 10 && end < 15;
                bool covers = start <= 10 && end >= 15;
                CHECK_EQ(model.overlay.interval_count, inside ? 3 : covers ? 1 : 2);
                model_done(&model);
            }
        }
    }
}

/* What was overwritten, whole or in part, does not follow its batch. */
static void test_move_of_the_overwritten(void)
{
    struct model model;
    model_init(&model, 1);
    put_data(&model, 10, 8);
    struct address was = model.cells[10].address;
    put_data(&model, 12, 2);
    put_zeros(&model, 16, 4);
    struct address now = fresh(&model, 8);
    overlay_move(&model.overlay, 10, 8, was, now);
    for (uint32_t i = 0; i < 6; i++)
        if (i != 2 && i != 3)
            model.cells[10 + i].address = address_plus(now, i);
    check_all(&model);
    /* The same once more: nobody has the old addresses now. */
    overlay_move(&model.overlay, 10, 8, was, fresh(&model, 8));
    check_all(&model);
    model_done(&model);
}

/* A trim of the largest disk is one interval without checksums. */
static void test_long_zeros(void)
{
    struct model model;
    model_init(&model, 1);
    CHECK_EQ(overlay_put(&model.overlay, 0, (uint64_t)1 << 32, ADDRESS_NULL, NULL), 0);
    CHECK_EQ(model.overlay.interval_count, 1);
    CHECK(model.overlay.bytes < 256);
    put_data(&model, 100, 3);
    CHECK_EQ(model.overlay.interval_count, 3);
    const struct interval *last = overlay_at_or_after(&model.overlay, 103);
    CHECK_EQ(last->start, 103);
    CHECK_EQ(interval_end(last), (uint64_t)1 << 32);
    CHECK(overlay_at_or_after(&model.overlay, (uint64_t)1 << 32) == NULL);
    model_done(&model);
}

int main(void)
{
    test_random();
    test_splits();
    test_move_of_the_overwritten();
    test_long_zeros();
    return 0;
}
