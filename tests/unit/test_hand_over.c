/* SPDX-License-Identifier: Apache-2.0 */
/* Disks that go from host to host: what is forwarded, what moves one, who may not, and
 * that nothing acknowledged is lost on the way. */
#include "tests/unit/host_machine.h"

#define SIZE  (2 * MIB)
#define BYTES 4096U

static void fill_with(uint8_t *data, uint8_t with)
{
    memset(data, with, BYTES);
}

static async void check_byte(struct disk *disk, uint64_t offset, uint8_t expected)
{
    uint8_t data[BYTES];
    CHECK_EQ(read_bytes_at(disk, offset, BYTES, data), 0);
    for (uint32_t i = 0; i < BYTES; i++)
        CHECK_EQ(data[i], expected);
}

static async int write_byte(struct disk *disk, uint64_t offset, uint8_t with)
{
    uint8_t data[BYTES];
    fill_with(data, with);
    return write_bytes_at(disk, offset, BYTES, data, 0);
}

static async int write_byte_as(struct disk *disk, uint32_t opened, uint64_t offset,
                               uint8_t with)
{
    uint8_t data[BYTES];
    fill_with(data, with);
    return write_as(disk, opened, offset, BYTES, data);
}

/* A disk that host 1 owns and has a client of. */
static async struct disk *make(struct hosts *h)
{
    DO(disk_create(h->parties[1].host, "web", SIZE, &err));
    struct disk *disk = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(write_byte(disk, 0, 1), 0);
    CHECK_EQ(owner_of(h, "web"), 1);
    return disk;
}

/* --- one thing at a time --- */

static async void run_forwarded(struct hosts *h)
{
    struct disk *here = make(h);
    uint64_t epoch = disk_state(h, "web")->epoch;
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    struct disk_range range;
    uint32_t count;
    uint8_t part[512];
    CHECK_EQ(disk_size_bytes(there), SIZE);
    CHECK(!disk_is_read_only(there));
    check_byte(there, 0, 1);
    check_byte(there, SIZE - BYTES, 0);
    CHECK_EQ(read_bytes_at(there, 100, sizeof part, part), 0);
    CHECK_EQ(part[0], 1);
    CHECK_EQ(write_byte(here, BYTES, 2), 0);
    check_byte(there, BYTES, 2);
    CHECK_EQ(flush(there), 0);
    CHECK_EQ(disk_block_status(there, 10, 1000, &range, 1, &count), 0);
    CHECK(count == 1 && range.len_bytes == 1000 && range.kind == DISK_DATA);
    CHECK_EQ(read_bytes_at(there, SIZE, 1, part), -EINVAL);
    CHECK_EQ(change(there, DISK_ZERO, SIZE, 1), -ENOSPC);
    task_sleep_ns(NS_PER_S);
    CHECK(h->parties[1].prepared > 0);
    CHECK_EQ(h->parties[1].handed_over, 0);
    disk_close(there);
    task_sleep_ns(20 * NS_PER_S);
    CHECK(disk_find(h->parties[2].host, disk_state(h, "web")->id, 0) == NULL);
    CHECK_EQ(write_byte(here, 0, 3), 0);
    CHECK_EQ(owner_of(h, "web"), 1);
    CHECK_EQ(disk_state(h, "web")->epoch, epoch);
    disk_close(here);
}

/* What is to be merged at the hand-over was merged before. */
static async void run_prepared(struct hosts *h)
{
    struct disk *here = make(h);
    uint64_t before = disk_state(h, "web")->checkpoint.number;
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    task_sleep_ns(NS_PER_S);
    CHECK(disk_state(h, "web")->checkpoint.number > before);
    CHECK_EQ(write_byte(here, 0, 2), 0);
    before = disk_state(h, "web")->checkpoint.number;
    task_sleep_ns(10 * NS_PER_S);
    CHECK(disk_state(h, "web")->checkpoint.number > before);
    disk_close(there);
    disk_close(here);
}

static async void run_first_change(struct hosts *h)
{
    static const enum disk_op kinds[] = {DISK_WRITE, DISK_TRIM, DISK_ZERO};
    for (uint32_t i = 0; i < ARRAY_LEN(kinds); i++) {
        struct disk *here = i == 0 ? make(h) : attach_to(h, 1, "web", DISK_READ_WRITE);
        uint32_t opened = disk_opened(here);
        CHECK_EQ(write_byte(here, BYTES, 7), 0);
        struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
        if (kinds[i] == DISK_WRITE)
            CHECK_EQ(write_byte(there, 0, 9), 0);
        else
            CHECK_EQ(change(there, kinds[i], 0, BYTES), 0);
        CHECK_EQ(owner_of(h, "web"), 2);
        CHECK(here->is_remote && here->log == NULL && !there->is_remote);
        check_byte(there, BYTES, 7);
        /* The old side: flushes succeed, reads are of what is there now, writes fail. */
        CHECK_EQ(flush(here), 0);
        check_byte(here, 0, kinds[i] == DISK_WRITE ? 9 : 0);
        CHECK_EQ(write_byte_as(here, opened, 0, 66), -PLX_EBUSY);
        check_byte(there, 0, kinds[i] == DISK_WRITE ? 9 : 0);
        CHECK_EQ(owner_of(h, "web"), 2);
        DO_FAILS(disk_open(h->parties[1].host, "web", DISK_READ_WRITE, &here, &err),
                 -PLX_EBUSY);
        disk_close(there);
        /* Nobody is there any more: the late write gets it back. */
        CHECK_EQ(write_byte_as(here, opened, 2 * BYTES, 8), 0);
        CHECK_EQ(owner_of(h, "web"), 1);
        check_byte(here, BYTES, 7);
        check_byte(here, 2 * BYTES, 8);
        CHECK_EQ(flush(here), 0);
        disk_close(here);
    }
}

/* A connection of its own does not make an idle one's owner: nobody has it. */
static async void run_unowned(struct hosts *h)
{
    struct disk *here = make(h);
    disk_close(here);
    task_sleep_ns(20 * NS_PER_S);
    CHECK_EQ(owner_of(h, "web"), 0);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    CHECK_EQ(owner_of(h, "web"), 2);
    check_byte(there, 0, 1);
    CHECK_EQ(write_byte(there, 0, 2), 0);
    disk_close(there);
    DO(snapshot_create(h->parties[2].host, "web", "monday", &err));
    DO_FAILS(disk_open(h->parties[2].host, "web@monday", DISK_INCOMING, &there, &err),
             -EROFS);
}

/* The owner's clients go while somebody only reads there. */
static async void run_owner_closes(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    check_byte(there, 0, 1);
    disk_close(here);
    task_sleep_ns(20 * NS_PER_S);
    CHECK_EQ(owner_of(h, "web"), 0);
    check_byte(there, 0, 1);
    CHECK_EQ(owner_of(h, "web"), 2);
    disk_close(there);
}

/* What is read there keeps the disk open here, unless it is closing: it would be gone
 * before the read has ended. */
static async void run_read_while_it_closes(struct hosts *h)
{
    struct disk *here = make(h);
    uint64_t id = disk_state(h, "web")->id;
    CHECK_EQ(read_raw(h, id, 0, BYTES), 0);
    here->state = DISK_CLOSING;
    CHECK_EQ(read_raw(h, id, 0, BYTES), -EAGAIN);
    here->is_yielding = true; /* but if it goes to another host */
    CHECK_EQ(read_raw(h, id, 0, BYTES), 0);
    here->is_yielding = false;
    here->state = DISK_OPEN;
    CHECK_EQ(read_raw(h, id, 0, BYTES), 0);
    disk_close(here);
}

static async void check_refused(struct hosts *h, uint64_t node)
{
    struct error err = {0};
    struct disk *disk;
    CHECK(disk_open(h->parties[node].host, "web", DISK_READ_WRITE, &disk, &err) < 0);
    CHECK(strstr(err.text, "web") != NULL && strstr(err.text, "node 1") != NULL);
}

static async void run_second_attach(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    check_refused(h, 2);
    check_refused(h, 3);
    DO_FAILS(snapshot_create(h->parties[2].host, "web", "s", &err), -PLX_EBUSY);
    CHECK_EQ(owner_of(h, "web"), 1);
    CHECK_EQ(write_byte(here, 0, 2), 0);
    disk_close(there);
    disk_close(here);
}

/* What is only open elsewhere, without a client, comes at once. */
static async void run_idle_elsewhere(struct hosts *h)
{
    struct disk *here = make(h);
    DO_FAILS(disk_pull(h->parties[3].host, "web", &err), -PLX_EBUSY);
    disk_close(here);
    CHECK_EQ(owner_of(h, "web"), 1);
    struct disk *there = attach_to(h, 3, "web", DISK_READ_WRITE);
    CHECK_EQ(owner_of(h, "web"), 3);
    check_byte(there, 0, 1);
    CHECK_EQ(write_byte(there, 0, 2), 0);
    disk_close(there);
    DO(disk_pull(h->parties[2].host, "web", &err));
    CHECK_EQ(owner_of(h, "web"), 2);
    DO(snapshot_create(h->parties[1].host, "web", "s", &err));
    CHECK_EQ(owner_of(h, "web"), 1);
    DO_FAILS(disk_pull(h->parties[2].host, "web@s", &err), -EROFS);
    DO_FAILS(disk_pull(h->parties[2].host, "nobody", &err), -PLX_EMISSING);
    here = attach_to(h, 1, "web", DISK_READ_WRITE);
    check_byte(here, 0, 2);
    disk_close(here);
    /* What needs it closed has it closed. */
    DO(snapshot_rollback(h->parties[3].host, "web", "s", &err));
    here = attach_to(h, 1, "web", DISK_READ_WRITE);
    check_byte(here, 0, 2);
    DO_FAILS(snapshot_rollback(h->parties[3].host, "web", "s", &err), -PLX_EBUSY);
    DO_FAILS(disk_remove(h->parties[3].host, "web", DISK_REMOVE_RECURSIVE, &err),
             -PLX_EBUSY);
    disk_close(here);
    /* Silence is no consent. */
    h->parties[1].mood = SILENT;
    DO_FAILS(disk_pull(h->parties[2].host, "web", &err), -PLX_EOWNED);
    party_release(&h->parties[1], -ECONNRESET);
    h->parties[1].mood = ANSWERS;
    DO(disk_remove(h->parties[3].host, "web", DISK_REMOVE_RECURSIVE, &err));
}

/* --- under way --- */

/* Of the writes that the old side has in flight those that are acknowledged are there;
 * the others fail. */
static async void run_in_flight(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    struct op *ops = calloc(64, sizeof *ops);
    uint8_t data[BYTES];
    uint32_t acknowledged = 0, refused = 0;
    CHECK(ops != NULL);
    for (uint32_t i = 0; i < 32; i++) {
        fill_with(data, (uint8_t)(100 + i));
        op_start(&ops[i], here, DISK_WRITE, i % 4 == 0 ? DISK_FUA : 0, i * BYTES, BYTES,
                 data);
    }
    struct op first, last_flush;
    fill_with(data, 5);
    op_start(&first, there, DISK_WRITE, 0, 200 * BYTES, BYTES, data);
    op_start(&last_flush, here, DISK_FLUSH, 0, 0, 0, NULL);
    for (uint32_t i = 32; i < 64; i++) {
        while (!here->door_closed && !here->is_remote && i == 32)
            task_yield();
        fill_with(data, (uint8_t)(100 + i));
        op_start(&ops[i], here, DISK_WRITE, 0, i * BYTES, BYTES, data);
    }
    CHECK_EQ(op_wait(&first, NULL), 0);
    CHECK_EQ(op_wait(&last_flush, NULL), 0);
    for (uint32_t i = 0; i < 64; i++) {
        int rc = op_wait(&ops[i], NULL);
        CHECK(rc == 0 || (i >= 32 && rc == -PLX_EBUSY));
        acknowledged += rc == 0;
        refused += rc != 0;
        if (rc == 0)
            check_byte(there, i * BYTES, (uint8_t)(100 + i));
        else
            check_byte(there, i * BYTES, 0);
    }
    CHECK(acknowledged >= 32 && refused > 0);
    check_byte(there, 200 * BYTES, 5);
    CHECK_EQ(owner_of(h, "web"), 2);
    free(ops);
    disk_close(there);
    disk_close(here);
}

/* Back and forth, each time with a new client, the old one still there for a while. */
/* Once the lease is given up anybody may have it, and write: what is known here may be
 * old, though the log has not ended yet. */
static async void run_read_at_the_end(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    struct op first, late;
    uint8_t data[BYTES];
    fill_with(data, 9);
    op_start(&first, there, DISK_WRITE, 0, 0, BYTES, data);
    while (owner_of(h, "web") == 1)
        task_yield();
    CHECK(!here->is_remote); /* else it comes too late */
    struct disk_range range;
    uint32_t count;
    op_start(&late, here, DISK_READ, 0, 0, BYTES, NULL);
    CHECK_EQ(disk_block_status(here, 8 * BYTES, BYTES, &range, 1, &count), 0);
    CHECK_EQ(range.kind, DISK_DATA); /* nobody here knows */
    CHECK_EQ(op_wait(&late, data), 0);
    CHECK(here->is_remote);
    CHECK(data[0] == 1 || data[0] == 9);
    CHECK_EQ(op_wait(&first, NULL), 0);
    check_byte(here, 0, 9);
    disk_close(there);
    disk_close(here);
}

static async void run_back_and_forth(struct hosts *h)
{
    struct model *model = model_create(SIZE);
    DO(disk_create(h->parties[1].host, "web", SIZE, &err));
    struct disk *disk = attach_to(h, 1, "web", DISK_READ_WRITE);
    for (uint64_t i = 0; i < 20; i++) {
        uint64_t node = 1 + i % 2, next = 3 - node;
        struct machine *m = &h->parties[node].machine;
        random_rounds(m, disk, model, 12);
        struct disk *there = attach_to(h, next, "web", DISK_INCOMING);
        random_rounds(m, disk, model, 6); /* while it comes in */
        uint32_t opened = disk_opened(disk);
        random_rounds(&h->parties[next].machine, there, model, 6);
        CHECK_EQ(owner_of(h, "web"), next);
        CHECK_EQ(write_byte_as(disk, opened, 0, 66), -PLX_EBUSY);
        check_content(there, model);
        check_content(disk, model);
        if (sim_world_random(h->world, 2) == 0) {
            DO(snapshot_create(h->parties[next].host, "web", i % 4 < 2 ? "a" : "b",
                               &err));
            const char *name = i % 4 < 2 ? "a" : "b";
            DO(snapshot_remove(h->parties[next].host, "web", &name, 1, &err));
        }
        disk_close(disk);
        disk = there;
    }
    check_content(disk, model);
    disk_close(disk);
    task_sleep_ns(20 * NS_PER_S);
    check_clean(&h->parties[1].machine);
    free(model);
}

/* An old client that never goes away, on the host that the disk comes back to. */
static async void run_back_to_former(struct hosts *h)
{
    struct disk *old = make(h);
    uint32_t opened = disk_opened(old);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    CHECK_EQ(write_byte(there, 0, 2), 0);
    struct disk *back = attach_to(h, 1, "web", DISK_INCOMING);
    CHECK(back == old && disk_opened(back) != opened);
    CHECK_EQ(write_byte(back, BYTES, 3), 0);
    CHECK_EQ(owner_of(h, "web"), 1);
    CHECK_EQ(write_byte_as(old, opened, 0, 66), -PLX_EEPOCH);
    check_byte(back, 0, 2);
    disk_close(there);
    disk_close(old);
    CHECK_EQ(write_byte(back, 0, 4), 0);
    disk_close(back);
}

struct writer_of_many {
    struct task_call call;
    struct hosts *h;
    uint64_t node;
    uint64_t base; /* its blocks */
    uint32_t acknowledged[64]; /* the number last written there, or being written */
    bool is_unknown[64];
    uint32_t done;
    bool is_over;
};

static void check_one_owner(struct hosts *h, const char *name)
{
    uint32_t writers = 0;
    for (uint64_t node = 1; node <= HOSTS_MAX; node++) {
        const struct disk *disk =
            disk_find(h->parties[node].host, disk_state(h, name)->id, 0);
        if (disk != NULL && disk->log != NULL && disk->state == DISK_OPEN && !disk->down)
            writers++;
    }
    CHECK(writers <= 1);
}

/* Attaches anew for every few writes, so that it is the one who comes in. */
static async void many_main(struct task_call *call)
{
    struct writer_of_many *self = container_of(call, struct writer_of_many, call);
    for (uint32_t i = 1; i <= 60; i++) {
        struct disk *disk = attach_to(self->h, self->node, "web", DISK_INCOMING);
        uint32_t opened = disk_opened(disk);
        for (uint32_t k = 0; k < 4; k++) {
            uint32_t at = (i * 4 + k) % 64;
            uint8_t data[BYTES] = {0};
            uint32_t number = i * 4 + k;
            memcpy(data, &number, sizeof number);
            int rc = write_as(disk, opened, (self->base + at) * BLOCK_SIZE, BYTES, data);
            CHECK(rc == 0 || rc == -PLX_EBUSY || rc == -PLX_EEPOCH);
            check_one_owner(self->h, "web");
            if (rc != 0)
                break;
            self->acknowledged[at] = number;
            self->done++;
        }
        disk_close(disk);
        task_sleep_ns(sim_world_random(self->h->world, 3 * NS_PER_MS));
    }
    self->is_over = true;
}

/* Both sides write at once: one owner at any time, and nothing acknowledged is lost. */
static async void run_both_write(struct hosts *h)
{
    struct disk *here = make(h);
    disk_close(here);
    struct writer_of_many *many = calloc(HOSTS_MAX, sizeof *many);
    CHECK(many != NULL);
    for (uint64_t i = 0; i < HOSTS_MAX; i++) {
        many[i] = (struct writer_of_many){.h = h, .node = i + 1, .base = 64 * (i + 1)};
        many[i].call = (struct task_call){.main = many_main, .name = "many"};
        task_start(h->loop, &many[i].call);
    }
    for (uint64_t i = 0; i < HOSTS_MAX; i++)
        while (!many[i].is_over)
            task_sleep_ns(NS_PER_MS);
    struct disk *disk = attach_to(h, 1, "web", DISK_INCOMING);
    for (uint64_t i = 0; i < HOSTS_MAX; i++) {
        CHECK(many[i].done > 20);
        for (uint64_t at = 0; at < 64; at++) {
            uint8_t data[BYTES];
            uint32_t number;
            CHECK_EQ(read_bytes_at(disk, (many[i].base + at) * BLOCK_SIZE, BYTES, data),
                     0);
            memcpy(&number, data, sizeof number);
            CHECK_EQ(number, many[i].acknowledged[at]);
        }
    }
    disk_close(disk);
    free(many);
}

/* --- what goes wrong --- */

/* Something does not end: the owner refuses in time, and goes on. */
static async void run_refused(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    uint64_t epoch = disk_state(h, "web")->epoch;
    struct op waiting;
    uint8_t data[BYTES];
    here->users++; /* as an operation under way */
    struct op first;
    fill_with(data, 5);
    op_start(&first, there, DISK_WRITE, 0, 0, BYTES, data);
    while (!here->door_closed)
        task_yield();
    fill_with(data, 6);
    op_start(&waiting, here, DISK_WRITE, 0, BYTES, BYTES, data);
    CHECK_EQ(op_wait(&first, NULL), -PLX_EBUSY);
    CHECK_EQ(op_wait(&waiting, NULL), 0);
    CHECK_EQ(owner_of(h, "web"), 1);
    CHECK_EQ(disk_state(h, "web")->epoch, epoch);
    check_byte(there, BYTES, 6);
    disk_release(here);
    CHECK_EQ(write_byte(there, 0, 7), 0);
    CHECK_EQ(owner_of(h, "web"), 2);
    disk_close(there);
    disk_close(here);
}

/* Something ends late, or the owner is being changed: whoever comes in waits for it. */
static async void run_busy_for_a_while(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    uint8_t data[BYTES];
    struct op first;
    here->users++;
    fill_with(data, 5);
    op_start(&first, there, DISK_WRITE, 0, 0, BYTES, data);
    task_sleep_ns(8 * NS_PER_S);
    CHECK_EQ(owner_of(h, "web"), 1);
    disk_release(here);
    CHECK_EQ(op_wait(&first, NULL), 0);
    CHECK_EQ(owner_of(h, "web"), 2);
    disk_close(here);
    here = attach_to(h, 1, "web", DISK_INCOMING);
    there->exclusive = true;
    op_start(&first, here, DISK_WRITE, 0, 0, BYTES, data);
    task_sleep_ns(NS_PER_S);
    CHECK_EQ(owner_of(h, "web"), 2);
    there->exclusive = false;
    CHECK_EQ(op_wait(&first, NULL), 0);
    CHECK_EQ(owner_of(h, "web"), 1);
    disk_close(there);
    disk_close(here);
}

/* The disk goes out of service while what is under way is waited for. */
static async void run_down_at_the_door(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    uint8_t data[BYTES];
    struct op first;
    here->users++;
    fill_with(data, 5);
    op_start(&first, there, DISK_WRITE, 0, 0, BYTES, data);
    while (!here->door_closed)
        task_yield();
    uint64_t began_ns = loop_now_ns(h->loop);
    disk_go_down(here, -PLX_EFAILED);
    CHECK_EQ(op_wait(&first, NULL), -PLX_EFAILED);
    CHECK(loop_now_ns(h->loop) - began_ns < NS_PER_S);
    disk_release(here);
    disk_close(there);
    disk_close(here);
}

static async void run_resized(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    DO(disk_resize(h->parties[1].host, "web", 2 * SIZE, &err));
    task_sleep_ns(NS_PER_MS);
    CHECK_EQ(disk_size_bytes(there), 2 * SIZE);
    CHECK_EQ(write_byte(here, 2 * SIZE - BYTES, 4), 0);
    check_byte(there, 2 * SIZE - BYTES, 4);
    CHECK_EQ(write_byte(there, 2 * SIZE - BYTES, 5), 0);
    CHECK_EQ(owner_of(h, "web"), 2);
    check_byte(here, 2 * SIZE - BYTES, 5);
    disk_close(there);
    disk_close(here);
}

/* The owner is silent: nothing happens before the cluster takes it for down; then the
 * lease is taken by force, and what the old owner has not been told it finds out. */
static async void run_forced(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    uint8_t data[BYTES];
    struct op first, read;
    h->parties[1].mood = SILENT;
    fill_with(data, 5);
    op_start(&first, there, DISK_WRITE, 0, 0, BYTES, data);
    op_start(&read, there, DISK_READ, 0, 0, BYTES, NULL);
    task_sleep_ns(9 * NS_PER_S);
    CHECK_EQ(owner_of(h, "web"), 1);
    CHECK_EQ(write_byte(here, BYTES, 2), 0);
    CHECK_EQ(flush(here), 0);
    party_flags(h, 1, NODE_DOWN);
    CHECK_EQ(op_wait(&first, NULL), 0);
    CHECK_EQ(op_wait(&read, NULL), 0);
    CHECK_EQ(owner_of(h, "web"), 2);
    check_byte(there, 0, 5);
    check_byte(there, BYTES, 2);
    task_sleep_ns(NS_PER_MS); /* it knows, though it has done nothing since */
    CHECK_EQ(flush(here), -PLX_EEPOCH);
    CHECK_EQ(read_bytes_at(here, 0, BYTES, data), -PLX_EEPOCH);
    CHECK_EQ(write_byte(here, 0, 66), -PLX_EEPOCH);
    check_byte(there, 0, 5);
    party_flags(h, 1, 0);
    CHECK_EQ(write_byte(here, 0, 66), -PLX_EEPOCH);
    h->parties[1].mood = ANSWERS;
    CHECK_EQ(owner_of(h, "web"), 2);
    disk_close(there);
    struct error err = {0};
    struct disk *again; /* not as long as a client from before is there */
    CHECK_EQ(disk_open(h->parties[1].host, "web", DISK_READ_WRITE, &again, &err),
             -PLX_EEPOCH);
    CHECK(strstr(err.text, "1 client still here from before") != NULL);
    disk_close(here);
}

/* Silent for good, and never taken for down: the change fails in bounded time. */
static async void run_silent(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    struct op *reads = calloc(64, sizeof *reads);
    CHECK(reads != NULL);
    h->parties[1].mood = SILENT;
    uint64_t began_ns = loop_now_ns(h->loop);
    for (uint32_t i = 0; i < 64; i++)
        op_start(&reads[i], there, DISK_READ, 0, 0, BYTES, NULL);
    CHECK(write_byte(there, 0, 5) < 0);
    uint8_t data[BYTES];
    for (uint32_t i = 0; i < 64; i++)
        CHECK_EQ(op_wait(&reads[i], NULL), -EIO);
    free(reads);
    CHECK_EQ(read_bytes_at(there, 0, BYTES, data), -EIO);
    CHECK(loop_now_ns(h->loop) - began_ns < 120 * NS_PER_S);
    CHECK_EQ(owner_of(h, "web"), 1);
    party_release(&h->parties[1], -ECONNRESET);
    h->parties[1].mood = ANSWERS;
    check_byte(there, 0, 1);
    disk_close(there);
    disk_close(here);
}

/* Somebody who comes anew gets it from one who is down, at once, also while a client of
 * before is still there; that one stays without. */
static async void run_new_client_after_down(struct hosts *h)
{
    struct disk *before = make(h);
    uint32_t opened = disk_opened(before);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    CHECK_EQ(write_byte(there, 0, 2), 0);
    h->parties[2].mood = SILENT;
    struct error err = {0};
    struct disk *here;
    CHECK_EQ(disk_open(h->parties[1].host, "web", DISK_READ_WRITE, &here, &err),
             -PLX_EOWNED);
    party_flags(h, 2, NODE_DOWN);
    here = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(owner_of(h, "web"), 1);
    check_byte(here, 0, 2);
    CHECK_EQ(write_byte(here, 0, 3), 0);
    CHECK_EQ(write_byte_as(before, opened, 0, 66), -PLX_EEPOCH);
    check_byte(here, 0, 3);
    party_flags(h, 2, 0);
    party_release(&h->parties[2], -ECONNRESET);
    h->parties[2].mood = ANSWERS;
    disk_close(there);
    disk_close(before);
    disk_close(here);
}

/* Whoever has it now is silent: who gave it away does not take it back, not even when
 * the other is down. */
static async void run_new_side_silent(struct hosts *h)
{
    struct disk *here = make(h);
    uint32_t opened = disk_opened(here);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    CHECK_EQ(write_byte(there, 0, 2), 0);
    h->parties[2].mood = SILENT;
    party_flags(h, 2, NODE_DOWN);
    CHECK_EQ(write_byte_as(here, opened, 0, 66), -PLX_EOWNED);
    CHECK_EQ(owner_of(h, "web"), 2);
    party_release(&h->parties[2], -ECONNRESET);
    disk_close(here);
    task_sleep_ns(20 * NS_PER_S);
    /* Somebody who comes anew does. */
    here = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(owner_of(h, "web"), 1);
    check_byte(here, 0, 2);
    CHECK_EQ(write_byte(here, 0, 3), 0);
    CHECK_EQ(write_byte(there, 0, 66), -PLX_EEPOCH);
    check_byte(here, 0, 3);
    party_flags(h, 2, 0);
    h->parties[2].mood = ANSWERS;
    disk_close(there);
    disk_close(here);
}

/* A client that comes anew takes it, whoever was here before. */
static async void run_new_side_down(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    CHECK_EQ(write_byte(there, 0, 2), 0);
    h->parties[2].mood = SILENT;
    party_flags(h, 2, NODE_DOWN);
    struct disk *again = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(owner_of(h, "web"), 1);
    check_byte(again, 0, 2);
    CHECK_EQ(write_byte(again, 0, 3), 0);
    CHECK_EQ(write_byte(there, 0, 66), -PLX_EEPOCH);
    party_release(&h->parties[2], -ECONNRESET);
    party_flags(h, 2, 0);
    h->parties[2].mood = ANSWERS;
    check_byte(again, 0, 3);
    disk_close(there);
    disk_close(again);
    disk_close(here);
}

struct puller {
    struct task_call call;
    struct hosts *h;
    int code;
    bool is_over;
};

static async void puller_main(struct task_call *call)
{
    struct puller *puller = container_of(call, struct puller, call);
    struct error err = {0};
    puller->code = disk_pull(puller->h->parties[3].host, "web", &err);
    puller->is_over = true;
}

/* A client comes while its host is about to give the disk away to one without. */
static async void run_client_comes(struct hosts *h)
{
    struct disk *here = make(h);
    struct puller puller = {.h = h};
    disk_close(here);
    puller.call = (struct task_call){.main = puller_main, .name = "puller"};
    task_start(h->loop, &puller.call);
    while (!here->is_yielding)
        task_yield();
    CHECK(!here->door_closed);
    CHECK(attach_to(h, 1, "web", DISK_READ_WRITE) == here);
    uint32_t opened = disk_opened(here);
    CHECK_EQ(write_byte_as(here, opened, 0, 2), 0);
    while (!puller.is_over)
        task_sleep_ns(NS_PER_MS);
    CHECK_EQ(puller.code, -PLX_EBUSY);
    CHECK_EQ(owner_of(h, "web"), 1);
    CHECK_EQ(write_byte_as(here, opened, 0, 3), 0);
    disk_close(here);
}

/* A hand-over is refused, and what waited needs a checkpoint before it can go on. */
static async void run_checkpoint_at_the_door(struct hosts *h)
{
    struct disk *here = make(h);
    struct puller puller = {.h = h};
    uint8_t data[BYTES];
    struct op waiting;
    here->users++;
    disk_close(here);
    puller.call = (struct task_call){.main = puller_main, .name = "puller"};
    task_start(h->loop, &puller.call);
    while (!here->door_closed)
        task_yield();
    here->checkpoint_at_bytes -= 64 * MIB; /* as if so much had been written since */
    fill_with(data, 7);
    op_start(&waiting, here, DISK_WRITE, 0, 0, BYTES, data);
    while (!puller.is_over)
        task_sleep_ns(NS_PER_MS);
    CHECK_EQ(puller.code, -PLX_EBUSY);
    CHECK_EQ(op_wait(&waiting, NULL), 0);
    check_byte(here, 0, 7);
    disk_release(here);
}

static uint64_t break_after_ns;

static async void breaker_main(struct task_call *call)
{
    struct writer_of_many *self = container_of(call, struct writer_of_many, call);
    struct rpc *rpc = self->h->parties[2].rpc;
    task_sleep_ns(break_after_ns);
    CHECK_EQ(rpc_set_address(rpc, 1, "node9:9"), 0);
    task_sleep_ns(NS_PER_MS);
    CHECK_EQ(rpc_set_address(rpc, 1, party_address(1)), 0);
    self->is_over = true;
}

/* The connection breaks at any moment of the hand-over: it comes to an end, once. */
static async void run_broken(struct hosts *h)
{
    struct disk *here = make(h);
    for (uint32_t i = 0; i < 30; i++) {
        struct writer_of_many breaker = {.h = h};
        struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
        CHECK_EQ(write_byte(here, BYTES, (uint8_t)i), 0);
        break_after_ns = i * 300 * NS_PER_US;
        breaker.call = (struct task_call){.main = breaker_main, .name = "breaker"};
        task_start(h->loop, &breaker.call);
        CHECK_EQ(write_byte(there, 0, (uint8_t)(100 + i)), 0);
        while (!breaker.is_over)
            task_yield();
        CHECK_EQ(owner_of(h, "web"), 2);
        check_byte(there, BYTES, (uint8_t)i);
        check_byte(here, 0, (uint8_t)(100 + i));
        disk_close(here);
        here = attach_to(h, 1, "web", DISK_INCOMING);
        CHECK_EQ(write_byte(here, 0, 1), 0);
        CHECK_EQ(owner_of(h, "web"), 1);
        disk_close(there);
    }
    disk_close(here);
}

static async void cut_main(struct task_call *call)
{
    struct writer_of_many *self = container_of(call, struct writer_of_many, call);
    struct hosts *h = self->h;
    task_sleep_ns(break_after_ns);
    CHECK_EQ(rpc_set_address(h->parties[2].rpc, 1, "node9:9"), 0);
    CHECK_EQ(rpc_set_address(h->parties[1].rpc, 2, "node9:9"), 0);
    task_sleep_ns(3 * NS_PER_S);
    party_flags(h, 1, NODE_DOWN);
    self->is_over = true;
}

/* The owner is cut off at any moment of the hand-over, for good: the new side has the
 * disk once the old one is taken for down, whatever that went on to do. */
static async void run_cut_off(struct hosts *h)
{
    struct disk *here = make(h);
    for (uint32_t i = 0; i < 10; i++) {
        struct writer_of_many cutter = {.h = h};
        struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
        uint32_t opened = disk_opened(here);
        CHECK_EQ(write_byte(here, BYTES, (uint8_t)(i + 1)), 0);
        break_after_ns = i * 250 * NS_PER_US;
        cutter.call = (struct task_call){.main = cut_main, .name = "cutter"};
        task_start(h->loop, &cutter.call);
        CHECK_EQ(write_byte(there, 0, (uint8_t)(100 + i)), 0);
        while (!cutter.is_over)
            task_sleep_ns(NS_PER_MS);
        CHECK_EQ(owner_of(h, "web"), 2);
        check_byte(there, BYTES, (uint8_t)(i + 1));
        CHECK(write_byte_as(here, opened, 0, 66) < 0);
        check_byte(there, 0, (uint8_t)(100 + i));
        CHECK_EQ(owner_of(h, "web"), 2);
        disk_close(here);
        disk_close(there);
        CHECK_EQ(rpc_set_address(h->parties[2].rpc, 1, party_address(1)), 0);
        CHECK_EQ(rpc_set_address(h->parties[1].rpc, 2, party_address(2)), 0);
        party_flags(h, 1, 0);
        task_sleep_ns(20 * NS_PER_S);
        here = attach_to(h, 1, "web", DISK_READ_WRITE);
        CHECK_EQ(write_byte(here, 0, 1), 0);
    }
    disk_close(here);
}

/* The owner has died: an attach elsewhere waits until it is taken for down. */
static async void run_attach_after_death(struct hosts *h)
{
    struct writer_of_many cutter = {.h = h};
    struct disk *here = make(h);
    CHECK_EQ(write_byte(here, 0, 7), 0);
    uint64_t began_ns = loop_now_ns(h->loop);
    break_after_ns = 0;
    cutter.call = (struct task_call){.main = cut_main, .name = "cutter"};
    task_start(h->loop, &cutter.call);
    task_sleep_ns(10 * NS_PER_MS);
    struct disk *there = attach_to(h, 2, "web", DISK_READ_WRITE);
    check_byte(there, 0, 7);
    CHECK_EQ(write_byte(there, 0, 8), 0);
    uint64_t took_ns = loop_now_ns(h->loop) - began_ns;
    CHECK(took_ns >= 3 * NS_PER_S && took_ns < 5 * NS_PER_S);
    CHECK(cutter.is_over);
    CHECK(write_byte(here, 0, 66) < 0);
    disk_close(there);
    disk_close(here);
}

/* --- the nth input or output fails --- */

static struct {
    int64_t nth;
    bool has_happened;
    uint8_t here, there; /* what the blocks must hold: 0 if that is open */
} failing;

static async void run_failing(struct hosts *h)
{
    struct disk *here = make(h);
    struct disk *there = attach_to(h, 2, "web", DISK_INCOMING);
    struct op ops[3];
    uint8_t data[BYTES];
    CHECK_EQ(write_byte(here, 2 * BYTES, 9), 0);
    sim_fail_nth_io(h->world, failing.nth);
    fill_with(data, 5);
    op_start(&ops[0], there, DISK_WRITE, 0, 0, BYTES, data);
    op_start(&ops[1], here, DISK_FLUSH, 0, 0, 0, NULL);
    task_yield();
    fill_with(data, 6);
    op_start(&ops[2], here, DISK_WRITE, 0, BYTES, BYTES, data);
    failing.there = op_wait(&ops[0], NULL) == 0 ? 5 : 0;
    (void)op_wait(&ops[1], NULL);
    failing.here = op_wait(&ops[2], NULL) == 0 ? 6 : 0;
    failing.has_happened = sim_failure_happened(h->world);
    sim_fail_nth_io(h->world, -1);
    check_one_owner(h, "web");
    disk_close(there);
    disk_close(here);
}

static async void run_after_failing(struct hosts *h)
{
    if (owner_of(h, "web") == 2)
        party_flags(h, 2, NODE_DOWN);
    struct disk *disk = attach_to(h, 1, "web", DISK_READ_WRITE);
    check_byte(disk, 2 * BYTES, 9);
    if (failing.there != 0)
        check_byte(disk, 0, failing.there);
    if (failing.here != 0)
        check_byte(disk, BYTES, failing.here);
    disk_close(disk);
}

static void test_failures(void)
{
    uint32_t done = 0;
    failing.has_happened = true;
    for (failing.nth = 0; failing.has_happened; failing.nth++, done++) {
        struct sim_world *world = sim_world_create(1);
        hosts_run_in(world, run_failing);
        hosts_run_in(world, run_after_failing);
        sim_world_destroy(world);
    }
    CHECK(done > 10);
}

/* --- foreign bytes --- */

static async int ask_raw(struct hosts *h, uint64_t disk, uint64_t epoch, uint8_t kind)
{
    struct disk_rpc_hand_over head = {
        .disk = le64_of(disk), .epoch = le64_of(epoch), .kind = kind};
    return call_raw(h, DISK_RPC_HAND_OVER, &head, sizeof head);
}

static async void run_foreign(struct hosts *h)
{
    struct disk *here = make(h);
    uint64_t id = disk_state(h, "web")->id, epoch = disk_state(h, "web")->epoch;
    uint8_t junk[DISK_RPC_HEAD_MAX + 1] = {0};
    for (uint32_t len = 1; len <= sizeof junk; len++) {
        CHECK(call_raw(h, DISK_RPC_READ, junk, len) < 0);
        CHECK(call_raw(h, DISK_RPC_HAND_OVER, junk, len) < 0);
        rpc_post(h->parties[2].rpc, 1, DISK_RPC_PREPARE, junk, len, NULL, 0);
    }
    CHECK_EQ(read_raw(h, id, 0, 0), -EINVAL);
    CHECK_EQ(read_raw(h, id, 1, BLOCK_SIZE), -EINVAL);
    CHECK_EQ(read_raw(h, id, 0, BLOCK_SIZE + 1), -EINVAL);
    CHECK_EQ(read_raw(h, id, 0, DISK_RPC_READ_BYTES_MAX + BLOCK_SIZE), -EINVAL);
    CHECK_EQ(read_raw(h, id, SIZE, BLOCK_SIZE), -EINVAL);
    CHECK_EQ(read_raw(h, id, UINT64_MAX - BLOCK_SIZE + 1, BLOCK_SIZE), -EINVAL);
    CHECK_EQ(read_raw(h, id + 1, 0, BLOCK_SIZE), -PLX_ENOTHERE);
    CHECK_EQ(read_raw(h, id, SIZE - BLOCK_SIZE, BLOCK_SIZE), 0);
    CHECK_EQ(ask_raw(h, id, epoch, 0), -EINVAL);
    CHECK_EQ(ask_raw(h, id, epoch, 3), -EINVAL);
    CHECK_EQ(ask_raw(h, id, epoch - 1, HAND_OVER_INCOMING), -PLX_EPRECONDITION);
    CHECK_EQ(ask_raw(h, id + 1, epoch, HAND_OVER_INCOMING), -PLX_EMISSING);
    CHECK_EQ(ask_raw(h, id, epoch, HAND_OVER_RETURNING), -PLX_EBUSY);
    CHECK_EQ(owner_of(h, "web"), 1);
    CHECK_EQ(write_byte(here, 0, 2), 0);
    /* One that is repeated does nothing the second time. */
    CHECK_EQ(ask_raw(h, id, epoch, HAND_OVER_INCOMING), 0);
    CHECK_EQ(owner_of(h, "web"), 0);
    CHECK_EQ(read_raw(h, id, 0, BLOCK_SIZE), -EAGAIN);
    CHECK_EQ(ask_raw(h, id, epoch, HAND_OVER_INCOMING), -PLX_EPRECONDITION);
    /* It was never taken: who gave it away has it back, as host 2 has no client. */
    CHECK_EQ(write_byte(here, 0, 3), 0);
    CHECK_EQ(owner_of(h, "web"), 1);
    CHECK_EQ(ask_raw(h, id, epoch, HAND_OVER_INCOMING), -PLX_EPRECONDITION);
    check_byte(here, 0, 3);
    disk_close(here);
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(struct hosts *h);
    } tests[] = {
        {"forwarded", run_forwarded},
        {"prepared", run_prepared},
        {"first change", run_first_change},
        {"unowned", run_unowned},
        {"owner closes", run_owner_closes},
        {"read while it closes", run_read_while_it_closes},
        {"second attach", run_second_attach},
        {"idle elsewhere", run_idle_elsewhere},
        {"in flight", run_in_flight},
        {"read at the end", run_read_at_the_end},
        {"back and forth", run_back_and_forth},
        {"back to former", run_back_to_former},
        {"both write", run_both_write},
        {"refused", run_refused},
        {"busy for a while", run_busy_for_a_while},
        {"down at the door", run_down_at_the_door},
        {"resized", run_resized},
        {"checkpoint at the door", run_checkpoint_at_the_door},
        {"forced", run_forced},
        {"silent", run_silent},
        {"attach after death", run_attach_after_death},
        {"new side silent", run_new_side_silent},
        {"new client after down", run_new_client_after_down},
        {"new side down", run_new_side_down},
        {"client comes", run_client_comes},
        {"broken", run_broken},
        {"cut off", run_cut_off},
        {"foreign", run_foreign},
    };
    for (size_t i = 0; i < ARRAY_LEN(tests); i++) {
        if (argc > 1 && strcmp(argv[1], tests[i].name) != 0)
            continue;
        for (uint64_t seed = 1; seed <= 3; seed++)
            hosts_run(seed, tests[i].run);
    }
    if (argc == 1 || strcmp(argv[1], "failures") == 0)
        test_failures();
    return 0;
}
