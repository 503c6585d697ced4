/* SPDX-License-Identifier: Apache-2.0 */
/* Tokens, nodes that join by one, and the authority. */
#include "tests/unit/cluster_machine.h"

#define HOUR (3600 * NS_PER_S)

static int add_token(struct machine *m, uint8_t which, uint64_t now_ns, uint64_t until_ns)
{
    return RUN(m, .op = CLUSTER_TOKEN_ADD, .digest = {which, 9}, .wall_ns = now_ns,
               .until_wall_ns = until_ns);
}

static int join(struct machine *m, uint8_t which, uint8_t store, uint64_t now_ns)
{
    return RUN(m, .op = CLUSTER_NODE_JOIN, .digest = {which, 9}, .store = {{0xcd, store}},
               .name = "b:1", .new_name = "rack2", .size_bytes = GIB, .wall_ns = now_ns);
}

static uint32_t token_count(const struct machine *m)
{
    uint32_t count = 0;
    const struct cluster_token *token = NULL;
    while ((token = cluster_token_next(m->state, token)) != NULL)
        count++;
    return count;
}

static void test_join(void)
{
    struct machine m = machine_create();
    CHECK_EQ(join(&m, 1, 1, HOUR), -PLX_EDENIED);
    CHECK_EQ(add_token(&m, 1, HOUR, 2 * HOUR), 0);
    CHECK_EQ(add_token(&m, 1, HOUR, 2 * HOUR), 0); /* a repeated command */
    CHECK_EQ(token_count(&m), 1);
    CHECK_EQ(join(&m, 2, 1, HOUR), -PLX_EDENIED);
    CHECK_EQ(join(&m, 1, 1, 2 * HOUR), -PLX_EDENIED); /* too late */
    CHECK_EQ(join(&m, 1, 1, 2 * HOUR - 1), 0);
    CHECK_EQ(m.result.id, 2);
    const struct cluster_node *node = cluster_node_by_id(m.state, 2);
    CHECK_STR(node->address, "b:1");
    CHECK_STR(node->domain, "rack2");
    CHECK_EQ(node->capacity_bytes, GIB);
    CHECK_EQ(node->joined_wall_ns, 2 * HOUR - 1);
    CHECK_EQ(node->flags, 0);
    /* The answer was lost; another host with the same token. */
    CHECK_EQ(join(&m, 1, 1, 2 * HOUR + 1), 0);
    CHECK_EQ(m.result.id, 2);
    machine_done(&m);
}

static void test_used_once(void)
{
    struct machine m = machine_create();
    CHECK_EQ(add_token(&m, 1, HOUR, 3 * HOUR), 0);
    CHECK_EQ(add_token(&m, 1, HOUR, 4 * HOUR), -PLX_EEXISTS);
    CHECK_EQ(join(&m, 1, 1, HOUR), 0);
    CHECK_EQ(join(&m, 1, 2, HOUR), -PLX_EDENIED);
    CHECK_STR(m.result.text, "the token was used before");
    CHECK_EQ(join(&m, 1, 1, HOUR), 0);
    /* A store that is in already may use another one up. */
    CHECK_EQ(add_token(&m, 2, HOUR, 3 * HOUR), 0);
    CHECK_EQ(join(&m, 2, 1, HOUR), 0);
    CHECK_EQ(m.result.id, 2);
    CHECK_EQ(join(&m, 2, 2, HOUR), -PLX_EDENIED);
    /* One that is gone does not come back. */
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 2), 0);
    CHECK_EQ(join(&m, 2, 1, HOUR), -PLX_EDENIED);
    machine_done(&m);
}

static void test_token_limits(void)
{
    struct machine m = machine_create();
    CHECK_EQ(add_token(&m, 1, HOUR, HOUR), -EINVAL);
    CHECK_EQ(add_token(&m, 1, 2 * HOUR, HOUR), -EINVAL);
    CHECK_EQ(add_token(&m, 1, 0, TOKEN_LIFE_MAX_S * NS_PER_S + 1), -PLX_ELIMIT);
    CHECK_EQ(add_token(&m, 1, 0, TOKEN_LIFE_MAX_S * NS_PER_S), 0);
    for (uint8_t i = 2; i <= TOKENS_MAX; i++)
        CHECK_EQ(add_token(&m, i, HOUR, 2 * HOUR), 0);
    CHECK_EQ(add_token(&m, 100, HOUR, 2 * HOUR), -PLX_ELIMIT);
    CHECK_EQ(token_count(&m), TOKENS_MAX);
    /* Those that are over make room. */
    CHECK_EQ(add_token(&m, 100, 2 * HOUR, 3 * HOUR), 0);
    CHECK_EQ(token_count(&m), 2);
    CHECK_EQ(add_token(&m, 100, 3 * HOUR, 4 * HOUR), 0); /* the same digest, anew */
    CHECK_EQ(token_count(&m), 2);
    CHECK_EQ(join(&m, 1, 1, 5 * HOUR), 0);
    CHECK_EQ(token_count(&m), 1);
    machine_done(&m);
}

static void test_witness(void)
{
    struct machine m = machine_create();
    CHECK_EQ(add_token(&m, 1, HOUR, 2 * HOUR), 0);
    struct cluster_command command = {.op = CLUSTER_NODE_JOIN,
                                      .digest = {1, 9},
                                      .store = {{1}},
                                      .flags = NODE_DOWN,
                                      .wall_ns = HOUR};
    CHECK_EQ(machine_run(&m, &command), -EINVAL);
    command.flags = NODE_WITNESS;
    command.name = "a b";
    CHECK_EQ(machine_run(&m, &command), -PLX_ENAME);
    command.name = "a:1";
    CHECK_EQ(machine_run(&m, &command), 0);
    CHECK_EQ(cluster_node_by_id(m.state, 2)->flags, NODE_WITNESS);
    CHECK(!cluster_node_is_usable(cluster_node_by_id(m.state, 2)));
    CHECK_EQ(RUN(&m, .op = CLUSTER_GROUP_SET, .group = 1, .number = 1, .member_count = 2,
                 .members = {1, 2}),
             -PLX_EPRECONDITION);
    CHECK_STR(m.result.text, "group: node 2 has no store");
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_STATE, .node = 2, .flags = NODE_DOWN), 0);
    CHECK_EQ(cluster_node_by_id(m.state, 2)->flags, NODE_WITNESS | NODE_DOWN);
    CHECK_EQ(RUN(&m, .op = CLUSTER_NODE_GONE, .node = 2, .force = true), 0);
    CHECK_EQ(cluster_node_by_id(m.state, 2)->flags, NODE_WITNESS | NODE_GONE);
    machine_done(&m);
}

static int set_authority(struct machine *m, const char *certificate, const char *key)
{
    return RUN(m, .op = CLUSTER_AUTHORITY, .certificate = certificate,
               .certificate_len = (uint32_t)strlen(certificate), .key = key,
               .key_len = (uint32_t)strlen(key));
}

static void test_authority(void)
{
    struct machine m = machine_create();
    CHECK(cluster_authority(m.state) == NULL);
    CHECK_EQ(set_authority(&m, "", "k"), -EINVAL);
    CHECK_EQ(set_authority(&m, "c", ""), -EINVAL);
    CHECK_EQ(set_authority(&m, "c\r", "k"), -EINVAL);
    CHECK_EQ(set_authority(&m, "cert\n", "key\n"), 0);
    CHECK_EQ(set_authority(&m, "cert\n", "key\n"), 0);
    CHECK_EQ(set_authority(&m, "cert\n", "key"), -PLX_EEXISTS);
    CHECK_EQ(set_authority(&m, "cert", "key\n"), -PLX_EEXISTS);
    CHECK_STR(cluster_authority(m.state)->certificate, "cert\n");
    CHECK_STR(cluster_authority(m.state)->key, "key\n");
    machine_done(&m);
}

/* Longer than a command may have: nothing of it is looked at. */
static void test_large_authority(void)
{
    struct machine m = machine_create();
    static char large[AUTHORITY_BYTES_MAX];
    struct writer w = {0};
    memset(large, 'x', sizeof large);
    CHECK_EQ(RUN(&m, .op = CLUSTER_AUTHORITY, .certificate = large,
                 .certificate_len = sizeof large - 1, .key = "k", .key_len = 1),
             0);
    CHECK_EQ(strlen(cluster_authority(m.state)->certificate), sizeof large - 1);
    cluster_command_encode(&(struct cluster_command){.op = CLUSTER_AUTHORITY,
                                                     .certificate = large,
                                                     .certificate_len = sizeof large,
                                                     .key = large},
                           &w);
    CHECK_EQ(machine_bytes(&m, w.bytes, w.len), -EINVAL); /* no key */
    w.len -= 2;
    write_u16(&w, 1);
    write_u8(&w, 'k');
    CHECK_EQ(machine_bytes(&m, w.bytes, w.len), -PLX_EFORMAT);
    writer_done(&w);
    machine_done(&m);
}

int main(void)
{
    test_join();
    test_used_once();
    test_token_limits();
    test_witness();
    test_authority();
    test_large_authority();
    return 0;
}
