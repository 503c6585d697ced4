/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Disks in memory behind the faces of cow/disk.h and cow/host.h, for tests of front ends.
 * They complete through the loop, fail where they are told to, and hold operations back
 * until they are let go.
 */
#ifndef PARALLAX_TESTS_UNIT_NBDSERVER_FAKE_DISK_H
#define PARALLAX_TESTS_UNIT_NBDSERVER_FAKE_DISK_H

#include "cow/disk.h"
#include "cow/host.h"

#define FAKE_DISKS_MAX 8U

TAILQ_HEAD(fake_io_list, disk_io);

struct disk {
    struct host *host;
    const char *name;
    uint64_t size_bytes;
    bool read_only;
    uint8_t *bytes;
    uint8_t *is_data; /* one for each block */
    uint32_t openings, inflight;
};

#define FAKE_OPENED 7U /* disk_opened */

struct host {
    struct loop *loop;
    struct buffer_pool *buffers;
    struct disk disks[FAKE_DISKS_MAX];
    uint32_t disk_count;
    struct fake_io_list done, held;
    struct work work;

    /* knobs */
    bool hold;           /* operations wait for fake_release */
    bool reorder;        /* the last one is done first */
    int open_error;      /* of disk_open */
    uint64_t open_ns;    /* how long it takes */
    bool bases_gone;     /* what changes are asked since has been removed */
    uint64_t bad_offset; /* this byte cannot be read or written: EIO; UINT64_MAX: none */

    /* what was seen */
    uint64_t reads, writes, flushes, trims, zeroes, fua, no_hole;
    uint64_t incoming; /* openings */
};

struct host *fake_host_create(struct loop *loop, uint64_t buffer_bytes);
/* Every disk must be closed again. */
void fake_host_destroy(struct host *host);
/* A name with '@' is a snapshot; of the disk made before it. name: static. */
struct disk *fake_disk_add(struct host *host, const char *name, uint64_t size_bytes);
void fake_release(struct host *host);
uint32_t fake_openings(const struct host *host);

#endif
