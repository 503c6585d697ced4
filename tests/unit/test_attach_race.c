/* SPDX-License-Identifier: Apache-2.0 */
/* Hosts that want the same disk at the same moment. */
#include "tests/unit/host_machine.h"

#define SIZE  (2 * MIB)
#define BYTES 4096U

struct opener {
    struct task_call call;
    struct hosts *h;
    uint64_t node;
    int code;
    struct error err;
    bool is_over;
};

static async void opener_main(struct task_call *call)
{
    struct opener *opener = container_of(call, struct opener, call);
    uint8_t data[BYTES] = {(uint8_t)opener->node};
    struct disk *disk;
    task_sleep_ns(sim_world_random(opener->h->world, 300 * NS_PER_US));
    opener->code = disk_open(opener->h->parties[opener->node].host, "web",
                             DISK_READ_WRITE, &disk, &opener->err);
    if (opener->code == 0) {
        CHECK_EQ(write_bytes_at(disk, 0, BYTES, data, 0), 0);
        task_sleep_ns(sim_world_random(opener->h->world, 3 * NS_PER_MS));
        disk_close(disk);
    }
    opener->is_over = true;
}

/* All want a disk that nobody has, at once: one gets it, and the others too, or are told
 * that it is in use. That somebody was faster is no answer. */
static async void run_opened_together(struct hosts *h)
{
    DO(disk_create(h->parties[1].host, "web", SIZE, &err));
    for (uint32_t round = 0; round < 30; round++) {
        struct opener openers[HOSTS_MAX];
        uint32_t opened = 0;
        task_sleep_ns(20 * NS_PER_S);
        CHECK_EQ(owner_of(h, "web"), 0);
        for (uint64_t i = 0; i < HOSTS_MAX; i++) {
            openers[i] = (struct opener){.h = h, .node = i + 1};
            openers[i].call = (struct task_call){.main = opener_main, .name = "opener"};
            task_start(h->loop, &openers[i].call);
        }
        for (uint64_t i = 0; i < HOSTS_MAX; i++) {
            while (!openers[i].is_over)
                task_sleep_ns(NS_PER_MS);
            if (openers[i].code != 0 && openers[i].code != -PLX_EBUSY)
                fprintf(stderr, "%s\n", openers[i].err.text);
            CHECK(openers[i].code == 0 || openers[i].code == -PLX_EBUSY);
            opened += openers[i].code == 0;
        }
        CHECK(opened > 0);
    }
}

int main(void)
{
    for (uint64_t seed = 1; seed <= 5; seed++)
        hosts_run(seed, run_opened_together);
    return 0;
}
