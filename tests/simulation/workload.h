/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the guests and the administrator of a run do: operations begun at random times by
 * a timer of the process, in parallel up to a depth. Reads and writes are in
 * workload_io.c, administration is in workload_admin.c; each tells the model what it was
 * told.
 */
#ifndef PARALLAX_TESTS_SIMULATION_WORKLOAD_H
#define PARALLAX_TESTS_SIMULATION_WORKLOAD_H

#include "tests/simulation/run.h"

#define CLIENTS_MAX  10U
#define SNAPS_MAX    40U
#define BLOCKS_WHOLE (64 * MIB / BLOCK_SIZE) /* larger disks are written in spots */

/* One opening of a disk or snapshot. */
struct client {
    struct disk *disk;
    struct model_disk *md;
    struct model_snap *snap; /* NULL: the head */
    uint32_t inflight;
    bool is_closing;
    TAILQ_ENTRY(client) link;
};

struct op {
    const char *name;
    struct run *run;
    struct client *client;
    struct model_disk *md;
    struct model_snap *snap;
    struct disk_io io;
    struct change change;
    bool is_change, may_be_refused;
    struct line *line;
    uint64_t lo; /* the line stands at this batch at least */
    uint64_t started_ns;
    struct task_call task;
    void (*run_op)(struct op *op);
    char names[2][MODEL_NAME_MAX];
    uint32_t count;
    uint64_t size_bytes;
    TAILQ_ENTRY(op) link;
};

struct op *op_begin(struct run *run, const char *name);
void op_end(struct op *op, int result);
/* Runs fn on a task of its own. */
void op_start_task(struct op *op, void (*fn)(struct op *op));
/* Ends the run unless the result is 0 or explained. */
void op_check_result(struct op *op, int result, const char *text);

void client_enter(struct run *run, struct disk *disk, struct model_disk *md,
                  struct model_snap *snap);
void client_leave(struct run *run, struct client *client);

/* Each begins one operation, or none if it finds nothing to do. */
void io_read_begin(struct run *run);
void io_write_begin(struct run *run);
void io_zero_begin(struct run *run);
void io_trim_begin(struct run *run);
void io_flush_begin(struct run *run);
void io_bad_begin(struct run *run);
void io_status_begin(struct run *run);

void admin_open_begin(struct run *run);
void admin_close_begin(struct run *run);
void admin_create_begin(struct run *run);
void admin_snapshot_begin(struct run *run);
void admin_clone_begin(struct run *run);
void admin_rename_begin(struct run *run);
void admin_resize_begin(struct run *run);
void admin_rollback_begin(struct run *run);
void admin_check_begin(struct run *run);
void admin_import_begin(struct run *run);
void admin_import_end(struct run *run, struct model_disk *disk);

#endif
