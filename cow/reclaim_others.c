/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is being read on other hosts stays, too. Before a version is taken apart, or a
 * disk dropped, every host is asked whether anybody there reads it. A host answers when
 * it has applied the command that took the name away: after that nobody can come to it
 * any more, so its no holds.
 *
 * What can fail: a host does not answer, and is not taken for down either. It may be
 * reading; reclaim of this one waits. One that is down reads nothing that counts: its
 * readers get errors, never wrong bytes.
 *
 * On close what others ask is waited for.
 */
#include "cow/disk_remote.h"
#include "cow/reclaim.h"

#define ANSWER_NS  (5 * NS_PER_S)
#define APPLIED_NS (4 * NS_PER_S)

/* --- asking --- */

/* The next host after this one that may read; 0: there is none. */
static uint64_t next_host(const struct host *host, uint64_t after)
{
    const struct cluster_node *node = NULL;

    while ((node = cluster_node_next(cluster_state(host->cluster), node)))
        if (node->id > after && node->id != host->node && !cluster_node_is_down(node))
            return node->id;
    return 0;
}

static async int ask(struct host *host, uint64_t node, uint64_t disk, uint64_t version)
{
    struct disk_rpc_held head = {
        .index = le64_of(cluster_state_applied(cluster_state(host->cluster))),
        .disk = le64_of(disk),
        .version = le64_of(version),
    };
    struct rpc_call call = {
        .node = node,
        .op = DISK_RPC_HELD,
        .head = &head,
        .head_len = sizeof head,
        .timeout_ns = ANSWER_NS,
    };

    return rpc_wait(host->rpc, &call, NULL, NULL);
}

async int reclaim_ask_others(struct host *host, uint64_t disk, uint64_t version,
                             struct error *err)
{
    uint64_t node = 0;

    if (copies_are_alone(host->copies) || !host->rpc)
        return 0;
    while ((node = next_host(host, node))) {
        int rc = ask(host, node, disk, version);
        if (rc == -PLX_EBUSY)
            return err_set(err, -EAGAIN, "it is being read on node %llu",
                           (unsigned long long)node);
        if (rc < 0)
            return err_set(err, -EAGAIN, "node %llu does not say whether it is being "
                           "read there: %s", (unsigned long long)node, err_text(rc));
    }
    return 0;
}

/* --- answering --- */

struct held_job {
    struct task_call task;
    struct host *host;
    struct rpc_request *request;
    uint64_t index, disk, version;
};

static void held_main(struct task_call *call)
{
    struct held_job *job = container_of(call, struct held_job, task);
    struct host *host = job->host;
    int rc = cluster_wait_applied(host->cluster, job->index, APPLIED_NS);

    if (rc == 0 && (job->version ? reclaim_version_is_held(host, job->version)
                                 : reclaim_disk_is_held(host, job->disk)))
        rc = -PLX_EBUSY;
    rpc_answer(job->request, rc, NULL, 0, NULL, 0);
    host->many.asked--;
    waitlist_wake_all(&host->many.over);
    free(job);
}

void disk_serve_held(struct host *host, struct rpc_request *request)
{
    struct disk_rpc_held head;
    struct held_job *job = NULL;

    if (request->head_len == sizeof head && !host->many.is_stopping &&
        host->many.asked < HELDS_MAX)
        job = calloc(1, sizeof *job);
    if (!job) {
        rpc_answer(request, request->head_len == sizeof head ? -PLX_ELIMIT : -EINVAL,
                   NULL, 0, NULL, 0);
        return;
    }
    memcpy(&head, request->head, sizeof head);
    *job = (struct held_job){
        .task = {.main = held_main, .name = "held", .system = true},
        .host = host,
        .request = request,
        .index = le64_get(head.index),
        .disk = le64_get(head.disk),
        .version = le64_get(head.version),
    };
    host->many.asked++;
    task_start(host->loop, &job->task);
}
