/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Consensus decides on the order of commands, the cluster state says what they do; this
 * is what lies between them.
 *
 *      waiting for a number -> on its way (once or more often) -> applied here
 *                                                |
 *                                                +-> unknown, after CLUSTER_SUBMIT_MS
 *
 * Happy path: a command takes a client's number and that client's next sequence number,
 * and is given to consensus, which applies it on this node, in the one order there is.
 * The apply finds by client and sequence who waits, and leaves the result there.
 *
 * What can fail: a leader goes, a message is lost, and nobody can say whether the command
 * is in the log. It is given to consensus again. However many copies get into the log,
 * the first one counts: the state answers the others from memory. For that each client
 * has one command on its way at a time (the state remembers a client's last), and there
 * are few clients (it remembers the last of CLUSTER_CLIENTS_MAX). A copy that comes after
 * the client has gone on is refused by the state.
 *
 * When consensus has failed no command is taken any more, and the outcome of those on
 * their way is not known. The process should end, and start again from what is stored.
 *
 * On close commands are no longer repeated; what is on its way is waited for.
 */
#include <stdio.h>

#include "replication/cluster.h"
#include "replication/cluster_internal.h"

#define PAUSE_NS (50 * NS_PER_MS) /* before what was refused at once is tried again */

/* A client, as the state knows it. */
struct client {
    uint64_t id, sequence;
    SLIST_ENTRY(client) link;
};

/* A command on its way; on the stack of the task that submitted it. */
struct submission {
    uint64_t client, sequence;
    bool is_known, may_exist;
    struct cluster_result result;
    TAILQ_ENTRY(submission) link;
};

/* Who waits for an index; on the stack of its task. */
struct index_wait {
    uint64_t index;
    int code;
    struct timer timer;
    struct cluster *cluster;
    struct event over;
    TAILQ_ENTRY(index_wait) link;
};

struct cluster {
    struct cluster_options options;
    struct loop *loop;
    struct cluster_state *state;
    struct consensus *consensus; /* NULL while it is being opened */
    TAILQ_HEAD(, submission) submissions;
    SLIST_HEAD(, client) clients; /* that are free */
    uint32_t client_count; /* that are not free */
    struct waitlist client_free;
    TAILQ_HEAD(, index_wait) index_waits;
    TAILQ_HEAD(, cluster_watcher) watchers;
    struct work notify;
    bool closing;
    uint32_t users; /* tasks inside */
    struct waitlist idle;
    struct metric *commands, *repeats;
};

/* --- the machine --- */

static void index_wait_end(struct index_wait *wait, int code)
{
    struct cluster *cluster = wait->cluster;
    TAILQ_REMOVE(&cluster->index_waits, wait, link);
    timer_stop(cluster->loop, &wait->timer);
    wait->code = code;
    event_set(&wait->over);
}

static void index_waits_end_all(struct cluster *cluster, int code)
{
    struct index_wait *wait;
    while ((wait = TAILQ_FIRST(&cluster->index_waits)) != NULL)
        index_wait_end(wait, code);
}

/* The state has changed. */
static void moved(struct cluster *cluster)
{
    struct index_wait *wait, *next;
    TAILQ_FOREACH_SAFE (wait, &cluster->index_waits, link, next)
        if (cluster_state_applied(cluster->state) >= wait->index)
            index_wait_end(wait, 0);
    if (!TAILQ_EMPTY(&cluster->watchers))
        loop_post(cluster->loop, &cluster->notify);
}

static void notify_run(struct work *work)
{
    struct cluster *cluster = container_of(work, struct cluster, notify);
    struct cluster_watcher *watcher, *next;
    TAILQ_FOREACH_SAFE (watcher, &cluster->watchers, link, next) {
        task_no_suspend_begin();
        watcher->applied(watcher);
        task_no_suspend_end();
    }
}

static struct submission *submission_find(struct cluster *cluster, uint64_t client,
                                          uint64_t sequence)
{
    struct submission *submission;
    TAILQ_FOREACH (submission, &cluster->submissions, link)
        if (submission->client == client && submission->sequence == sequence)
            return submission;
    return NULL;
}

/* The first copy of a command says what has become of it. */
static void settle(struct submission *submission, const struct cluster_result *result)
{
    if (submission->is_known)
        return;
    submission->result = *result;
    submission->is_known = true;
}

static int machine_apply(void *arg, uint64_t index, const void *bytes, size_t len,
                         struct writer *answer)
{
    struct cluster *cluster = arg;
    struct cluster_result result;
    uint64_t client = 0, sequence = 0;
    (void)answer; /* it is found in `submissions` */
    cluster_state_apply(cluster->state, index, bytes, len, &result);
    /* Nobody else may take it for nothing: a later version knows it, or it is damage. */
    if (result.code == -PLX_EFORMAT || result.code == -PLX_ENEWER)
        return result.code;
    result.index = index;
    bool has_origin = cluster_command_origin(bytes, len, &client, &sequence);
    assert(has_origin); /* it has been decoded */
    struct submission *submission = submission_find(cluster, client, sequence);
    if (submission != NULL)
        settle(submission, &result);
    metric_add(cluster->commands, 1);
    trace(cluster->loop, "cluster_apply", index, ((const uint8_t *)bytes)[1],
          (uint64_t)-result.code);
    moved(cluster);
    return 0;
}

static int machine_check(void *arg, const void *bytes, size_t len)
{
    struct decoded_command decoded;
    (void)arg;
    return cluster_command_decode(bytes, len, &decoded);
}

static void machine_encode(void *arg, struct writer *ret)
{
    struct cluster *cluster = arg;
    cluster_state_encode(cluster->state, ret);
}

/* A snapshot passes over commands; the state in it remembers what they were answered. */
static int machine_decode(void *arg, const void *bytes, size_t len, struct error *err)
{
    struct cluster *cluster = arg;
    struct cluster_state *state;
    struct submission *submission;
    struct cluster_result result;
    int rc = cluster_state_decode(bytes, len, &state, err);
    if (rc != 0)
        return rc;
    cluster_state_replace(cluster->state, state);
    TAILQ_FOREACH (submission, &cluster->submissions, link)
        if (cluster_state_answer(cluster->state, submission->client,
                                 submission->sequence, &result))
            settle(submission, &result);
    moved(cluster);
    return 0;
}

/* --- commands --- */

static const char *why_failed(const struct cluster *cluster)
{
    return cluster_failure(cluster) == -ENOSPC
               ? "no room in the file system for metadata: make some, and start again"
               : "the command log failed";
}

int cluster_failure(const struct cluster *cluster)
{
    return consensus_failure(cluster->consensus);
}

bool cluster_outcome_is_unknown(int code)
{
    return code == -PLX_EUNKNOWN || code == -PLX_EFAILED;
}

static bool name_fits(const char *name)
{
    return name == NULL || strnlen(name, DISK_NAME_MAX + 1) <= DISK_NAME_MAX;
}

/* What can be refused before it is sent. What does not decode must not get into the log:
 * nobody could go on behind it. */
static int encode(const struct cluster_command *command, const struct client *client,
                  struct writer *ret)
{
    if (!name_fits(command->name) || !name_fits(command->new_name))
        return -PLX_ENAME;
    struct cluster_command numbered = *command;
    numbered.client = client->id;
    numbered.sequence = client->sequence;
    cluster_command_encode(&numbered, ret);
    return ret->bad ? -ENOMEM : 0;
}

/* Why nothing more is sent; 0: it is. */
static int refusal(const struct cluster *cluster)
{
    if (consensus_failure(cluster->consensus) != 0)
        return -PLX_EFAILED;
    return cluster->closing ? -PLX_ECANCELLED : 0;
}

/* How many clients this node may be at once. Alone there are no copies, and as many
 * commands may go in one write as there are. With others half of those that the state
 * remembers are enough for all nodes; the other half is for processes that have ended. */
static uint32_t clients_max(const struct cluster *cluster)
{
    uint32_t nodes = 0;
    if (cluster->options.link.send == NULL)
        return CONSENSUS_WAITING_MAX;
    for (const struct cluster_node *node = NULL;
         (node = cluster_node_next(cluster->state, node)) != NULL;)
        nodes += (node->flags & NODE_GONE) == 0;
    uint64_t share = CLUSTER_CLIENTS_MAX / 2 / (nodes == 0 ? 1 : nodes);
    return share == 0 ? 1 : (uint32_t)min_u64(share, CLUSTER_SUBMITS_MAX);
}

/* Who waits for a client. */
struct client_wait {
    struct timer timer;
    struct cluster *cluster;
};

static void client_wait_fire(struct timer *timer)
{
    struct client_wait *wait = container_of(timer, struct client_wait, timer);
    waitlist_wake_all(&wait->cluster->client_free);
}

/* Those who have the clients may have them for as long as there is no leader. */
static async int wait_for_client(struct cluster *cluster, uint64_t deadline_ns)
{
    struct client_wait wait = {.timer.fire = client_wait_fire, .cluster = cluster};
    uint64_t now_ns = loop_now_ns(cluster->loop);
    int rc = 0;
    timer_start(cluster->loop, &wait.timer,
                deadline_ns > now_ns ? deadline_ns - now_ns : 0);
    while (rc == 0 && cluster->client_count >= clients_max(cluster)) {
        waitlist_wait(&cluster->client_free);
        rc = refusal(cluster);
        if (rc == 0 && loop_now_ns(cluster->loop) >= deadline_ns)
            rc = -PLX_ELIMIT;
    }
    timer_stop(cluster->loop, &wait.timer);
    if (rc != 0)
        waitlist_wake_one(&cluster->client_free); /* it may have been this one's turn */
    return rc;
}

/* One that has no command on its way. */
static async int client_get(struct cluster *cluster, uint64_t deadline_ns,
                            struct client **ret_client)
{
    int rc = 0;
    if (cluster->client_count >= clients_max(cluster))
        rc = wait_for_client(cluster, deadline_ns);
    if (rc != 0)
        return rc;
    struct client *client = SLIST_FIRST(&cluster->clients);
    if (client != NULL) {
        SLIST_REMOVE_HEAD(&cluster->clients, link);
    } else {
        client = calloc(1, sizeof *client);
        if (client == NULL)
            return -ENOMEM;
        client->id = loop_random_u64(cluster->loop) | 1; /* 0 keeps no answer */
    }
    cluster->client_count++;
    client->sequence++;
    *ret_client = client;
    return 0;
}

static void client_put(struct cluster *cluster, struct client *client)
{
    SLIST_INSERT_HEAD(&cluster->clients, client, link);
    cluster->client_count--;
    waitlist_wake_one(&cluster->client_free);
}

/* How long a command is repeated. */
struct patience {
    uint64_t deadline_ns;
    const bool *gives_up; /* NULL: the deadline holds also for what may exist */
};

static bool is_at_end(const struct cluster *cluster, const struct submission *submission,
                      const struct patience *patience)
{
    if (refusal(cluster) != 0)
        return true;
    if (patience->gives_up != NULL && submission->may_exist)
        return *patience->gives_up;
    return loop_now_ns(cluster->loop) >= patience->deadline_ns;
}

static async int carry_out(struct cluster *cluster, struct submission *submission,
                           const struct writer *bytes, const struct patience *patience)
{
    for (;;) {
        struct writer answer = {0};
        int rc = consensus_submit(cluster->consensus, bytes->bytes, bytes->len, &answer);
        writer_done(&answer);
        if (submission->is_known)
            return submission->result.code;
        assert(rc != 0); /* else it was applied here */
        bool is_final = rc == -EMSGSIZE || (rc == -ENOMEM && !submission->may_exist);
        if (rc == -PLX_EFAILED || is_final)
            return rc;
        submission->may_exist |= rc == -PLX_EUNKNOWN || rc == -PLX_ECANCELLED;
        if (submission->may_exist && planted(PLANT_UNKNOWN_REFUSED))
            return -PLX_ENOLEADER;
        if (is_at_end(cluster, submission, patience))
            return submission->may_exist ? -PLX_EUNKNOWN : rc;
        metric_add(cluster->repeats, 1);
        if (rc != -PLX_EUNKNOWN && rc != -PLX_ENOLEADER)
            task_sleep_ns(PAUSE_NS);
    }
}

static async int submit(struct cluster *cluster, const struct cluster_command *command,
                        const struct patience *patience, struct submission *submission)
{
    struct writer bytes = {0};
    struct client *client;
    int rc = refusal(cluster);
    if (rc == 0)
        rc = client_get(cluster, patience->deadline_ns, &client);
    if (rc != 0)
        return rc;
    rc = encode(command, client, &bytes);
    if (rc == 0) {
        submission->client = client->id;
        submission->sequence = client->sequence;
        TAILQ_INSERT_TAIL(&cluster->submissions, submission, link);
        rc = carry_out(cluster, submission, &bytes, patience);
        TAILQ_REMOVE(&cluster->submissions, submission, link);
    }
    writer_done(&bytes);
    client_put(cluster, client);
    return rc;
}

static void enter(struct cluster *cluster)
{
    cluster->users++;
}

static void leave(struct cluster *cluster)
{
    if (--cluster->users == 0)
        waitlist_wake_all(&cluster->idle);
}

async int cluster_submit(struct cluster *cluster, const struct cluster_command *command,
                         struct cluster_result *ret_result)
{
    return cluster_submit_known(cluster, command, NULL, ret_result);
}

async int cluster_submit_known(struct cluster *cluster,
                               const struct cluster_command *command,
                               const bool *gives_up, struct cluster_result *ret_result)
{
    struct submission submission = {.is_known = false};
    struct patience patience = {
        .deadline_ns = loop_now_ns(cluster->loop) + CLUSTER_SUBMIT_MS * NS_PER_MS,
        .gives_up = gives_up};
    enter(cluster);
    int rc = submit(cluster, command, &patience, &submission);
    if (!submission.is_known) {
        submission.result = (struct cluster_result){.code = rc};
        snprintf(submission.result.text, sizeof submission.result.text, "cluster: %s",
                 rc == -PLX_EFAILED ? why_failed(cluster) : err_text(rc));
    }
    leave(cluster);
    *ret_result = submission.result;
    return ret_result->code;
}

/* --- waiting and watching --- */

async int cluster_barrier(struct cluster *cluster)
{
    enter(cluster);
    int rc = refusal(cluster);
    if (rc == 0)
        rc = consensus_barrier(cluster->consensus);
    leave(cluster);
    return rc;
}

static void index_wait_fire(struct timer *timer)
{
    index_wait_end(container_of(timer, struct index_wait, timer), -ETIMEDOUT);
}

async int cluster_wait_applied(struct cluster *cluster, uint64_t index,
                               uint64_t timeout_ns)
{
    if (cluster_state_applied(cluster->state) >= index)
        return 0;
    int rc = refusal(cluster);
    if (rc != 0)
        return rc;
    struct index_wait wait = {
        .index = index, .cluster = cluster, .timer.fire = index_wait_fire};
    enter(cluster);
    event_init(&wait.over);
    TAILQ_INSERT_TAIL(&cluster->index_waits, &wait, link);
    timer_start(cluster->loop, &wait.timer, timeout_ns);
    event_wait(&wait.over);
    leave(cluster);
    return wait.code;
}

void cluster_on_apply(struct cluster *cluster, struct cluster_watcher *watcher)
{
    TAILQ_INSERT_TAIL(&cluster->watchers, watcher, link);
}

void cluster_off_apply(struct cluster *cluster, struct cluster_watcher *watcher)
{
    TAILQ_REMOVE(&cluster->watchers, watcher, link);
}

/* --- opening and closing --- */

static void nobody_send(void *arg, uint64_t node, const void *bytes, size_t len)
{
    (void)arg, (void)node, (void)bytes, (void)len;
}

static void consensus_failed(void *arg, const char *why)
{
    struct cluster *cluster = arg;
    index_waits_end_all(cluster, -PLX_EFAILED);
    waitlist_wake_all(&cluster->client_free);
    if (cluster->options.failed != NULL)
        cluster->options.failed(cluster->options.arg, why);
}

static struct cluster *cluster_create(const struct cluster_options *options)
{
    struct loop *loop = options->loop;
    struct cluster *cluster = calloc(1, sizeof *cluster);
    if (cluster == NULL)
        return NULL;
    cluster->options = *options;
    cluster->loop = loop;
    cluster->state = cluster_state_create();
    cluster->notify.run = notify_run;
    TAILQ_INIT(&cluster->submissions);
    SLIST_INIT(&cluster->clients);
    TAILQ_INIT(&cluster->index_waits);
    TAILQ_INIT(&cluster->watchers);
    waitlist_init(&cluster->client_free);
    waitlist_init(&cluster->idle);
    cluster->commands = metric_counter(loop, "parallax_cluster_commands_total",
                                       "Commands applied to the cluster state");
    cluster->repeats = metric_counter(loop, "parallax_cluster_repeats_total",
                                      "Commands sent again, their outcome unknown");
    return cluster;
}

static void cluster_free(struct cluster *cluster)
{
    struct client *client;
    while ((client = SLIST_FIRST(&cluster->clients)) != NULL) {
        SLIST_REMOVE_HEAD(&cluster->clients, link);
        free(client);
    }
    loop_post_cancel(cluster->loop, &cluster->notify);
    cluster_state_destroy(cluster->state);
    free(cluster);
}

async int cluster_bootstrap(struct kv *kv, uint64_t node, struct error *err)
{
    struct kv_batch also;
    kv_batch_init(&also);
    cluster_old_log_bar(&also);
    return consensus_bootstrap(kv, node, &also, err);
}

async int cluster_open(const struct cluster_options *options,
                       struct cluster **ret_cluster, struct error *err)
{
    int rc = cluster_old_log_convert(options->loop, options->kv, options->node, err);
    if (rc != 0)
        return rc;
    struct cluster *cluster = cluster_create(options);
    if (cluster == NULL)
        return err_set(err, -ENOMEM, "cluster: %s", err_text(-ENOMEM));
    struct consensus_options consensus_options = {
        .loop = options->loop,
        .kv = options->kv,
        .node = options->node,
        .machine = {cluster, machine_apply, machine_encode, machine_decode,
                    machine_check},
        .link = options->link,
        .tuning = options->tuning,
        .failed = consensus_failed,
        .arg = cluster,
    };
    if (options->link.send == NULL)
        consensus_options.link.send = nobody_send;
    rc = consensus_open(&consensus_options, &cluster->consensus, err);
    if (rc != 0) {
        cluster_free(cluster);
        return rc;
    }
    *ret_cluster = cluster;
    return 0;
}

async void cluster_close(struct cluster *cluster)
{
    if (cluster == NULL)
        return;
    cluster->closing = true;
    index_waits_end_all(cluster, -PLX_ECANCELLED);
    waitlist_wake_all(&cluster->client_free);
    while (cluster->users != 0)
        waitlist_wait(&cluster->idle);
    consensus_close(cluster->consensus);
    assert(TAILQ_EMPTY(&cluster->submissions) && TAILQ_EMPTY(&cluster->watchers));
    cluster_free(cluster);
}

const struct cluster_state *cluster_state(const struct cluster *cluster)
{
    return cluster->state;
}

struct consensus *cluster_consensus(const struct cluster *cluster)
{
    return cluster->consensus;
}
