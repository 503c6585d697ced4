/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A checkpoint's dead list on its way to the log: entries are collected until there are
 * enough for a few blocks, sorted, and written, each block with the place of the one
 * before, so one is committed before the next is made. All of them are flushed together
 * with the checkpoint's nodes, before anybody names them.
 *
 * What can fail is the log. The list is given up then with its checkpoint; `written` says
 * which blocks are garbage.
 */
#include "cow/disk_internal.h"

/* Entries collected before blocks are made of them. */
#define ENTRIES_WAITING (16 * DEAD_ENTRIES_MAX)

struct list_record {
    struct log_record record; /* first: found from it */
    struct list_writer *list;
    struct event over;
    int result;
    uint32_t crc;
};

void list_init(struct list_writer *list, struct disk *disk, uint64_t checkpoint)
{
    *list = (struct list_writer){.disk = disk, .named.checkpoint = checkpoint};
    dead_set_init(&list->written);
}

void list_done(struct list_writer *list)
{
    dead_entries_done(&list->waiting);
    dead_set_done(&list->written);
}

void list_committed(struct log_record *record, const struct log_piece *piece)
{
    struct list_record *self = container_of(record, struct list_record, record);
    struct list_writer *list = self->list;

    if (dead_set_put(&list->written, piece->address, 1) < 0)
        disk_go_down(list->disk, -ENOMEM); /* it would be garbage nobody knows of */
    list->named.head = piece->address;
    list->named.crc = piece->crcs[0];
    list->named.blocks++;
    event_set(&self->over);
}

void list_failed(struct log_record *record, int code)
{
    struct list_record *self = container_of(record, struct list_record, record);

    self->result = code;
    event_set(&self->over);
}

/* Writes one block of what waits. */
static async int write_block(struct list_writer *list)
{
    struct disk *disk = list->disk;
    struct list_record self = {.list = list};
    struct buffer *buffer;
    int rc = buffer_await(disk->host->log_buffers, BLOCK_SIZE, &buffer);

    if (rc == 0 && disk->down) {
        buffer_put(buffer);
        rc = disk->down;
    }
    if (rc < 0)
        return rc;
    dead_block_encode(list->named.checkpoint, list->named.head, list->named.crc,
                      &list->waiting, buffer->data);
    event_init(&self.over);
    self.record = (struct log_record){
        .kind = ENTRY_LIST,
        .key = list->named.blocks,
        .count = 1,
        .generation = disk->append_generation,
        .checkpoint = list->named.checkpoint,
        .use_reserve = true,
        .data = {.buffer = buffer, .len = BLOCK_SIZE},
        .callbacks = &disk->callbacks,
    };
    log_append(disk->log, &self.record);
    event_wait(&self.over);
    return self.result;
}

static async int write_waiting(struct list_writer *list)
{
    int rc = 0;

    dead_entries_sort(&list->waiting);
    while (rc == 0 && list->waiting.run_count + list->waiting.subtree_count > 0)
        rc = write_block(list);
    return rc;
}

static async int write_if_many(struct list_writer *list)
{
    uint32_t waiting = list->waiting.run_count + 2 * list->waiting.subtree_count;

    return waiting < ENTRIES_WAITING ? 0 : write_waiting(list);
}

async int list_add(struct list_writer *list, struct address address, uint32_t count)
{
    int rc = dead_entries_add(&list->waiting, address, count);

    list->dead_blocks += count;
    return rc < 0 ? rc : write_if_many(list);
}

async int list_add_subtree(struct list_writer *list, const struct dead_subtree *subtree)
{
    int rc = dead_entries_add_subtree(&list->waiting, subtree);

    return rc < 0 ? rc : write_if_many(list);
}

async int list_add_set(struct list_writer *list, const struct dead_set *set)
{
    struct dead_cursor cursor = {.begun = false};
    struct dead_run run;
    int rc = 0;

    while (rc == 0 && dead_set_next(set, &cursor, &run))
        rc = list_add(list, run.address, run.count);
    return rc;
}

async int list_add_entries(struct list_writer *list, const struct dead_entries *entries,
                           uint32_t run_count, uint32_t subtree_count)
{
    int rc = 0;

    /* By index: the arrays may grow, and so move, meanwhile. */
    for (uint32_t i = 0; rc == 0 && i < run_count; i++) {
        struct dead_run run = entries->runs[i];
        rc = list_add(list, run.address, run.count);
    }
    for (uint32_t i = 0; rc == 0 && i < subtree_count; i++) {
        struct dead_subtree subtree = entries->subtrees[i];
        rc = list_add_subtree(list, &subtree);
    }
    return rc;
}

async int list_finish(struct list_writer *list)
{
    return write_waiting(list);
}
