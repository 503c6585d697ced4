/* SPDX-License-Identifier: Apache-2.0 */
/*
 * two_hosts FOLDER NAME SIZE_MIB: two hosts in one process, which talk over TLS and share
 * one store in FOLDER and one cluster state, each with an NBD server on FOLDER/1.sock or
 * FOLDER/2.sock. A disk NAME is made. For tests of what clients see when a disk goes from
 * one host to the other; who has it is said on standard error. Says "ready" when it is,
 * and ends in order on SIGTERM.
 */
#include "nbdserver/nbd.h"
#include "tests/unit/host_machine.h"
#include "tests/unit/net_ends.h"

#define TWO 2U

struct two {
    struct hosts hosts;
    struct task_call call;
    const char *folder, *name;
    uint64_t size_bytes;
    struct event end;
    struct nbd_server *servers[TWO + 1];
};

static void on_signal(void *arg, int signo)
{
    struct two *two = arg;
    (void)signo;
    event_set(&two->end);
}

/* Outside of any task, for the sake of its keys. */
static void talk(struct two *two, struct party *party, const struct test_pki *pki,
                 char *ret_address, size_t cap)
{
    uint16_t port;
    party->pool = buffer_pool_create(64 * MIB);
    struct rpc_options options = {.loop = two->hosts.loop,
                                  .self = {.cluster = pki->cluster, .node = party->node},
                                  .credentials = test_credentials(pki, party->node),
                                  .buffers = party->pool,
                                  .ops = disk_ops,
                                  .arg = party};
    DO(rpc_create(&options, &party->rpc, &err));
    DO(rpc_listen(party->rpc, "127.0.0.1:0", &port, &err));
    snprintf(ret_address, cap, "127.0.0.1:%u", port);
}

static async void serve(struct two *two)
{
    char path[512];
    for (uint64_t node = 1; node <= TWO; node++) {
        struct party *party = &two->hosts.parties[node];
        two->servers[node] = nbd_server_create(two->hosts.loop, party->host, NULL);
        CHECK(two->servers[node] != NULL);
        snprintf(path, sizeof path, "%s/%u.sock", two->folder, (unsigned)node);
        DO(nbd_server_listen_unix(two->servers[node], path, &err));
    }
    printf("ready\n");
    fflush(stdout);
    event_wait(&two->end);
    for (uint64_t node = 1; node <= TWO; node++)
        nbd_server_destroy(two->servers[node]);
}

static async void two_main(struct task_call *call)
{
    struct two *two = container_of(call, struct two, call);
    struct hosts *h = &two->hosts;
    hosts_open_parts(h);
    for (uint64_t node = 1; node <= TWO; node++)
        party_open_host(h, node);
    DO(disk_create(h->parties[1].host, two->name, two->size_bytes, &err));
    serve(two);
    for (uint64_t node = 1; node <= TWO; node++)
        host_close(h->parties[node].host);
    hosts_close_parts(h);
    loop_stop(h->loop);
}

static void end_talk(struct two *two)
{
    for (uint64_t node = 1; node <= TWO; node++) {
        rpc_destroy(two->hosts.parties[node].rpc);
        buffer_pool_destroy(two->hosts.parties[node].pool);
    }
}

int main(int argc, char **argv)
{
    struct two *two = calloc(1, sizeof *two);
    struct test_pki pki;
    char addresses[TWO + 1][32];
    CHECK(argc == 4 && two != NULL);
    two->folder = argv[1];
    two->name = argv[2];
    two->size_bytes = strtoull(argv[3], NULL, 10) * MIB;
    event_init(&two->end);
    struct hosts *h = &two->hosts;
    h->loop = loop_create();
    CHECK(h->loop != NULL);
    log_set_fd(loop_log(h->loop), 2);
    snprintf(h->store_path, sizeof h->store_path, "%s/store", two->folder);
    snprintf(h->kv_path, sizeof h->kv_path, "%s/kv", two->folder);
    test_pki_create(&pki, CLUSTER_UID);
    for (uint64_t node = 1; node <= TWO; node++) {
        party_init(h, node);
        talk(two, &h->parties[node], &pki, addresses[node], sizeof addresses[node]);
    }
    CHECK_EQ(rpc_set_address(h->parties[1].rpc, 2, addresses[2]), 0);
    CHECK_EQ(rpc_set_address(h->parties[2].rpc, 1, addresses[1]), 0);
    CHECK_EQ(loop_on_signal(h->loop, on_signal, two), 0);
    two->call = (struct task_call){.main = two_main, .name = "two", .system = true};
    task_start(h->loop, &two->call);
    loop_run(h->loop);
    end_talk(two);
    loop_destroy(h->loop);
    test_pki_free(&pki);
    free(two);
    return 0;
}
