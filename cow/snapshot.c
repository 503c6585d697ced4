/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A snapshot is one point between two batches: a marker in the log. When the marker
 * commits, the top layer is frozen; when everything up to it is flushed, one cluster
 * command makes the version. Its map follows with the next checkpoint; until then the
 * version is pending and what it needs lies in the log.
 *
 * If the command is refused (the name was taken meanwhile), the layer stays frozen and
 * is merged like any other, and generations simply skip one. If its outcome is not
 * known, the log is down, no later checkpoint of this epoch passes, and the next
 * take-over sees in the cluster state which it was.
 *
 * A closing disk waits for a snapshot in progress: it is one of its users.
 */
#include "cow/disk_internal.h"

struct marker {
    struct log_record record; /* first: found from it */
    struct event finished;
    int result;
    uint64_t number;
    uint32_t generation;
    struct layer *frozen;
};

void marker_committed(struct disk *disk, struct log_record *record,
                      const struct log_piece *piece)
{
    struct marker *marker = container_of(record, struct marker, record);
    struct layer *top = layer_top(disk);

    marker->number = piece->number;
    marker->generation = piece->generation;
    if (layer_push(disk, piece->generation + 1, piece->number)) {
        top->settled = false;
        top->marker = piece->number;
        marker->frozen = top;
    } else {
        marker->result = -ENOMEM;
    }
    event_set(&marker->finished);
}

void marker_failed(struct log_record *record, int code)
{
    struct marker *marker = container_of(record, struct marker, record);

    marker->result = code;
    event_set(&marker->finished);
}

static async int commit_version(struct disk *disk, const struct marker *marker,
                                const char *name, uint64_t *ret_version,
                                struct error *err)
{
    struct cluster_result result;
    int rc;

    mutex_lock(&disk->command_lock);
    struct cluster_command command = {
        .op = CLUSTER_SNAPSHOT,
        .name = name,
        .marker = marker->number,
        .generation = marker->generation,
        .wall_ns = loop_wall_ns(disk->loop),
    };
    log_finals_prepare(disk->log, 0, &command);
    /* If nobody knew whether there is a version, no checkpoint could go on from it. */
    rc = cluster_submit_known(disk->host->cluster, &command, &disk->host->is_stopping,
                              &result);
    log_finals_committed(disk->log, rc == 0);
    mutex_unlock(&disk->command_lock);
    if (rc < 0)
        return err_set(err, rc, "%s", result.text[0] ? result.text : err_text(rc));
    *ret_version = result.id;
    return 0;
}

static async int put_marker(struct disk *disk, struct marker *marker)
{
    event_init(&marker->finished);
    marker->record = (struct log_record){
        .kind = ENTRY_MARKER,
        .count = 1,
        .generation = disk->append_generation,
        .use_reserve = true,
        .callbacks = &disk->callbacks,
    };
    disk->append_generation++; /* all that is queued behind it belongs to the head */
    log_append(disk->log, &marker->record);
    event_wait(&marker->finished);
    return marker->result;
}

static async int snapshot_locked(struct disk *disk, const char *name,
                                 uint64_t *ret_version, struct error *err)
{
    struct marker marker = {0};
    int rc;

    while (disk->frozen_count >= FROZEN_LAYERS_MAX) {
        rc = disk_checkpoint(disk, err);
        if (rc < 0)
            return rc;
    }
    /* A version whose map cannot be written holds up the disk's, and cannot be read. */
    if (disk->unreadable.code != 0) {
        rc = disk_checkpoint(disk, err);
        if (rc < 0)
            return rc;
    }
    if (disk->down)
        return err_set(err, disk->down, "%s", err_text(disk->down));
    rc = put_marker(disk, &marker);
    if (rc == 0)
        rc = disk_flush_wait(disk);
    if (rc < 0)
        err_set(err, rc, "%s", err_text(rc));
    else
        rc = commit_version(disk, &marker, name, ret_version, err);
    if (marker.frozen) {
        marker.frozen->settled = true;
        if (rc == 0)
            marker.frozen->version = *ret_version;
        waitlist_wake_all(&disk->settled);
    }
    return rc;
}

async int disk_snapshot(struct disk *disk, const char *name, uint64_t *ret_version,
                        struct error *err)
{
    int rc;

    mutex_lock(&disk->snapshot_lock); /* D5 */
    rc = snapshot_locked(disk, name, ret_version, err);
    mutex_unlock(&disk->snapshot_lock);
    if (rc == 0)
        metric_add(disk->host->snapshots, 1);
    checkpoint_consider(disk);
    return rc;
}
