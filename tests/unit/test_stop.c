/* SPDX-License-Identifier: Apache-2.0 */
/* A host that is to stop while its writes wait for members that do not come: it ends, and
 * what was acknowledged is found by the next one. */
#include "tests/unit/host_machine.h"

#define SIZE  (2 * MIB)
#define BYTES 4096U
#define SEEDS 8U

static async int write_byte(struct disk *disk, uint8_t with)
{
    uint8_t data[BYTES];
    memset(data, with, sizeof data);
    return write_bytes_at(disk, 0, BYTES, data, 0);
}

static async void check_byte(struct hosts *h, uint8_t expected)
{
    uint8_t data[BYTES];
    struct disk *disk = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(read_bytes_at(disk, 0, BYTES, data), 0);
    for (uint32_t i = 0; i < BYTES; i++)
        CHECK_EQ(data[i], expected);
    CHECK_EQ(write_byte(disk, 9), 0);
    disk_close(disk);
}

/* What stands open can be written to no more. */
static async void stop_extents(struct hosts *h)
{
    const struct cluster_disk *disk = disk_state(h, "web");
    for (uint32_t i = 0; i < disk->extent_count; i++) {
        uint32_t length;
        bool is_scanned;
        CHECK_EQ(h->member->ops->stop(h->member, disk->extents[i].extent, &length,
                                      &is_scanned),
                 0);
    }
}

static async void reopen(struct hosts *h)
{
    struct party *party = &h->parties[1];
    uint64_t begun_ns = loop_now_ns(h->loop);
    host_close(party->host);
    CHECK(loop_now_ns(h->loop) - begun_ns < 3 * HOST_STOP_WAIT_MS * NS_PER_MS);
    party->lacks_members = false;
    party_open_host(h, 1);
}

/* A front end goes when its write is answered. */
static async void run_write_waits(struct hosts *h)
{
    struct party *party = &h->parties[1];
    DO(disk_create(party->host, "web", SIZE, &err));
    struct disk *disk = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(write_byte(disk, 1), 0);
    stop_extents(h);
    party->lacks_members = true;
    host_stop_soon(party->host);
    uint64_t begun_ns = loop_now_ns(h->loop);
    CHECK_EQ(write_byte(disk, 2), -ESHUTDOWN);
    uint64_t took_ns = loop_now_ns(h->loop) - begun_ns;
    CHECK(took_ns >= (HOST_STOP_WAIT_MS - 2000) * NS_PER_MS);
    CHECK(took_ns < 2 * HOST_STOP_WAIT_MS * NS_PER_MS);
    disk_close(disk);
    reopen(h);
    check_byte(h, 1);
}

/* Nobody waits but the last checkpoint. */
static async void run_checkpoint_waits(struct hosts *h)
{
    struct party *party = &h->parties[1];
    DO(disk_create(party->host, "web", SIZE, &err));
    struct disk *disk = attach_to(h, 1, "web", DISK_READ_WRITE);
    CHECK_EQ(write_byte(disk, 1), 0);
    if (sim_world_random(h->world, 2) == 0)
        CHECK_EQ(flush(disk), 0);
    stop_extents(h);
    party->lacks_members = true;
    disk_close(disk);
    reopen(h);
    check_byte(h, 1);
}

int main(int argc, char **argv)
{
    static void (*const STORIES[])(struct hosts *h) = {
        run_write_waits, run_checkpoint_waits};
    for (size_t i = 0; i < ARRAY_LEN(STORIES); i++) {
        uint64_t first = 1, last = seeds_of(SEEDS);
        if (argc > 1) /* one seed, all stories */
            first = last = strtoull(argv[1], NULL, 10);
        for (uint64_t seed = first; seed <= last; seed++)
            hosts_run(seed, STORIES[i]);
    }
    return 0;
}
