/* SPDX-License-Identifier: Apache-2.0 */
/* serve_memory SOCKET [MIB]: the NBD server on a disk in memory named `memory`, until
 * SIGTERM. Measures what the server itself costs. */
#include <stdio.h>

#include "nbdserver/nbd.h"
#include "tests/unit/check.h"
#include "tests/unit/nbdserver/fake_disk.h"

struct program {
    struct task_call call;
    struct loop *loop;
    struct nbd_server *server;
};

static void stop_main(struct task_call *call)
{
    struct program *program = container_of(call, struct program, call);
    nbd_server_destroy(program->server);
    loop_stop(program->loop);
}

static void on_signal(void *arg, int signo)
{
    struct program *program = arg;
    (void)signo;
    program->call = (struct task_call){.main = stop_main, .name = "stop"};
    task_start(program->loop, &program->call);
}

int main(int argc, char **argv)
{
    struct error err;
    if (argc < 2) {
        fprintf(stderr, "usage: serve_memory SOCKET [MIB]\n");
        return 2;
    }
    struct program program = {.loop = loop_create()};
    struct host *host = fake_host_create(program.loop, NBD_BUFFER_BYTES);
    uint64_t mib = argc > 2 ? strtoull(argv[2], NULL, 10) : 1024;
    fake_disk_add(host, "memory", mib * MIB);
    program.server = nbd_server_create(program.loop, host, NULL);
    CHECK(program.server != NULL);
    if (nbd_server_listen_unix(program.server, argv[1], &err) < 0) {
        fprintf(stderr, "serve_memory: %s\n", err.text);
        return 1;
    }
    loop_on_signal(program.loop, on_signal, &program);
    loop_run(program.loop);
    fake_host_destroy(host);
    loop_destroy(program.loop);
    return 0;
}
