/* SPDX-License-Identifier: Apache-2.0 */
/* The same bodies on real files and on simulated ones. */
#include "tests/unit/on_loops.h"

#define FILE_BYTES (8 * MIB)
#define MANY       (AIO_DEPTH + 100U)

static uint8_t *blocks_create(uint32_t count)
{
    uint8_t *blocks = aligned_alloc(BLOCK_SIZE, (size_t)count * BLOCK_SIZE);
    CHECK(blocks != NULL);
    memset(blocks, 0, (size_t)count * BLOCK_SIZE);
    return blocks;
}

static void fill(uint8_t *block, uint32_t number)
{
    for (uint32_t i = 0; i < BLOCK_SIZE; i++)
        block[i] = (uint8_t)(number * 31 + i * 7 + (i >> 8) + 1);
}

static bool is_filled(const uint8_t *block, uint32_t number)
{
    uint8_t want[BLOCK_SIZE];
    fill(want, number);
    return memcmp(block, want, BLOCK_SIZE) == 0;
}

static struct file *create_file(struct body *body, const char *name)
{
    struct file_options options = {.create = true, .size_bytes = FILE_BYTES};
    struct file *file = NULL;
    CHECK_EQ(file_open(body->loop, body_path(body, name), &options, &file, NULL), 0);
    CHECK_EQ(file_size_bytes(file), FILE_BYTES);
    CHECK(!file_is_device(file));
    return file;
}

static void test_open(struct body *body)
{
    struct file_options plain = {0}, create = {.create = true, .size_bytes = FILE_BYTES};
    struct error err = {0};
    struct file *file = NULL, *other = NULL;
    const char *path = body_path(body, "a");
    CHECK_EQ(file_open(body->loop, path, &plain, &other, &err), -ENOENT);
    CHECK(strstr(err.text, path) != NULL);
    file = create_file(body, "a");
    err = (struct error){0};
    CHECK_EQ(file_open(body->loop, path, &create, &other, &err), -EEXIST);
    CHECK(strstr(err.text, path) != NULL);
    err = (struct error){0};
    CHECK_EQ(file_open(body->loop, path, &plain, &other, &err), -EBUSY);
    CHECK(strstr(err.text, "in use") != NULL);
    CHECK(other == NULL);
    file_close(file);
    CHECK_EQ(file_open(body->loop, path, &plain, &other, &err), 0);
    CHECK_EQ(file_size_bytes(other), FILE_BYTES);
    file_close(other);
}

static void test_read_write(struct body *body)
{
    struct file *file = create_file(body, "a");
    uint8_t *out = blocks_create(4), *in = blocks_create(4);
    for (uint32_t i = 0; i < 4; i++)
        fill(out + i * BLOCK_SIZE, i);
    CHECK_EQ(file_read(file, in, BLOCK_SIZE, FILE_BYTES - BLOCK_SIZE), 0);
    CHECK(bytes_are_zero(in, BLOCK_SIZE));
    CHECK_EQ(file_write(file, out, 4 * BLOCK_SIZE, 64 * KIB - 2 * BLOCK_SIZE), 0);
    CHECK_EQ(file_sync(file), 0);
    file_close(file);
    struct file_options options = {0};
    CHECK_EQ(file_open(body->loop, body_path(body, "a"), &options, &file, NULL), 0);
    CHECK_EQ(file_read(file, in, 4 * BLOCK_SIZE, 64 * KIB - 2 * BLOCK_SIZE), 0);
    CHECK(memcmp(in, out, 4 * BLOCK_SIZE) == 0);
    file_close(file);
    free(out);
    free(in);
}

static void test_grow_and_punch(struct body *body)
{
    struct file *file = create_file(body, "a");
    uint8_t *block = blocks_create(1);
    fill(block, 1);
    CHECK_EQ(file_grow(file, FILE_BYTES / 2), 0);
    CHECK_EQ(file_size_bytes(file), FILE_BYTES);
    CHECK_EQ(file_grow(file, 2 * FILE_BYTES), 0);
    CHECK_EQ(file_size_bytes(file), 2 * FILE_BYTES);
    uint64_t last = 2 * FILE_BYTES - BLOCK_SIZE;
    CHECK_EQ(file_write(file, block, BLOCK_SIZE, last), 0);
    CHECK_EQ(file_write(file, block, BLOCK_SIZE, 0), 0);
    int rc = file_punch(file, BLOCK_SIZE, last);
    CHECK(rc == 0 || rc == -ENOTSUP);
    if (rc == 0) {
        CHECK_EQ(file_read(file, block, BLOCK_SIZE, last), 0);
        CHECK(bytes_are_zero(block, BLOCK_SIZE));
    }
    CHECK_EQ(file_read(file, block, BLOCK_SIZE, 0), 0);
    CHECK(is_filled(block, 1));
    file_close(file);
    free(block);
}

/* Space that was set aside is the file's: what is written there takes no more. */
static void test_space(struct body *body)
{
    struct file *file = create_file(body, "a");
    struct file_space before, after;
    uint8_t *block = blocks_create(1);
    fill(block, 1);
    CHECK_EQ(file_allocate(file, 0, 2 * FILE_BYTES), -EINVAL);
    CHECK_EQ(file_space(file, &before), 0);
    CHECK(before.free_bytes > 0);
    int rc = file_allocate(file, 0, FILE_BYTES);
    CHECK(rc == 0 || rc == -ENOTSUP);
    CHECK_EQ(file_space(file, &before), 0);
    CHECK_EQ(file_write(file, block, BLOCK_SIZE, FILE_BYTES / 2), 0);
    CHECK_EQ(file_space(file, &after), 0);
    CHECK(rc < 0 || after.stored_bytes == before.stored_bytes);
    CHECK(after.stored_bytes < 2 * FILE_BYTES);
    file_close(file);
    free(block);
}

struct many {
    struct file *file;
    struct task *task;
    struct file_io io[MANY];
    struct iovec iov[MANY][2];
    uint32_t completed;
    bool submitting, closes;
};
static struct many many; /* too large for the stack of a task */

static void many_done(struct file_io *io)
{
    CHECK(!many.submitting);
    CHECK_EQ(io->result, 0);
    if (++many.completed == MANY) {
        if (many.closes)
            file_close(many.file);
        task_wake(many.task);
    }
}

/* More than the kernel takes at once, two vectors each, in blocks that are swapped. */
static void many_submit(struct body *body, enum file_op op, uint8_t *blocks, bool plugged)
{
    many.completed = 0;
    many.submitting = true;
    if (plugged) {
        file_plug(body->loop);
        file_plug(body->loop);
    }
    for (uint32_t i = 0; i < MANY; i++) {
        uint8_t *first = blocks + (size_t)i * 2 * BLOCK_SIZE;
        many.iov[i][0] = (struct iovec){first + BLOCK_SIZE, BLOCK_SIZE};
        many.iov[i][1] = (struct iovec){first, BLOCK_SIZE};
        many.io[i] = (struct file_io){
            .op = op,
            .offset_bytes = (uint64_t)i * 2 * BLOCK_SIZE,
            .iov = many.iov[i],
            .iov_count = 2,
            .done = many_done,
        };
        file_submit(many.file, &many.io[i]);
    }
    if (plugged) {
        file_unplug(body->loop);
        file_unplug(body->loop);
    }
    many.submitting = false;
    while (many.completed < MANY)
        task_park();
}

static void test_many(struct body *body)
{
    struct file_options options = {.create = true, .size_bytes = FILE_BYTES};
    uint8_t *blocks = blocks_create(2 * MANY);
    many.task = task_current();
    CHECK_EQ(file_open(body->loop, body_path(body, "a"), &options, &many.file, NULL), 0);
    CHECK((uint64_t)MANY * 2 * BLOCK_SIZE <= FILE_BYTES);
    for (uint32_t i = 0; i < 2 * MANY; i++)
        fill(blocks + (size_t)i * BLOCK_SIZE, i);
    many.closes = false;
    many_submit(body, FILE_WRITE, blocks, true);
    CHECK_EQ(file_sync(many.file), 0);
    memset(blocks, 0, (size_t)2 * MANY * BLOCK_SIZE);
    many.closes = true;
    many_submit(body, FILE_READ, blocks, false);
    for (uint32_t i = 0; i < 2 * MANY; i++)
        CHECK(is_filled(blocks + (size_t)i * BLOCK_SIZE, i));
    free(blocks);
}

/* io_submit itself refuses this one. */
static void test_refused(struct body *body)
{
    struct file *file = create_file(body, "a");
    file_close(file);
    struct file_options options = {.read_only = true};
    CHECK_EQ(file_open(body->loop, body_path(body, "a"), &options, &file, NULL), 0);
    uint8_t *block = blocks_create(1);
    CHECK_EQ(file_write(file, block, BLOCK_SIZE, 0), -EBADF);
    CHECK_EQ(file_read(file, block, BLOCK_SIZE, 0), 0);
    file_close(file);
    free(block);
}

int main(void)
{
    run_on_both(test_open);
    run_on_both(test_read_write);
    run_on_both(test_grow_and_punch);
    run_on_both(test_space);
    run_on_both(test_many);
    run_on_real(test_refused);
    return 0;
}
