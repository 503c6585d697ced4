/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses of nodes that are changed by hand. */
#include "tests/unit/check.h"
#include "tools/addresses.h"

#include <stdio.h>

static const struct identity before = {
    .self = {.node = 2},
    .address = "b:1",
    .peer_count = 2,
    .peers = {{1, "a:1"}, {3, "c:1"}},
};

static void test_parse(void)
{
    static const char *const bad[] = {
        "",     "2",      "=a:1",   "0=a:1",   "-1=a:1",      "x=a:1",
        "2=",   "2=a",    "2=:1",   "2=a:0",   "2=a:65536",   "2 =a:1",
        "2:=a", "2=a b:1", "a:1=2", "2=[::]:1", "2=0.0.0.0:1", "18446744073709551617=a:1",
    };
    struct join_peer peer = {.node = 9};
    struct error err = {0};
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        CHECK_EQ(addresses_parse(bad[i], &peer, &err), -EINVAL);
    CHECK_EQ(peer.node, 9);
    CHECK_EQ(addresses_parse("2=10.0.0.1:7000", &peer, &err), 0);
    CHECK_EQ(peer.node, 2);
    CHECK_STR(peer.address, "10.0.0.1:7000");
    CHECK_EQ(addresses_parse("1024=[fd00::1]:7000", &peer, &err), 0);
    CHECK_EQ(peer.node, 1024);
    CHECK_STR(peer.address, "[fd00::1]:7000");
}

static void test_set(void)
{
    static const struct join_peer all[] = {{3, "a:1"}, {2, "c:1"}, {1, "b:1"}};
    struct identity identity = before;
    struct error err = {0};
    /* They change places. */
    CHECK_EQ(addresses_set(&identity, all, 3, &err), 0);
    CHECK_STR(identity.address, "c:1");
    CHECK_EQ(identity.peers[0].node, 1);
    CHECK_STR(identity.peers[0].address, "b:1");
    CHECK_STR(identity.peers[1].address, "a:1");
    CHECK_EQ(addresses_set(&identity, NULL, 0, &err), 0);
    CHECK_STR(identity.address, "c:1");
}

/* Nothing is changed by what is refused. */
static void test_refused(void)
{
    static const struct {
        struct join_peer changes[2];
        int code;
        const char *text;
    } cases[] = {
        {{{1, "d:1"}, {4, "e:1"}},
         -PLX_EMISSING,
         "this is node 2; it knows no node 4, only itself, 1, 3"},
        {{{1, "d:1"}, {1, "e:1"}}, -EINVAL, "node 1 is given twice"},
        {{{1, "d:1"}, {2, "c:1"}},
         -PLX_EEXISTS,
         "nodes 2 and 3 cannot both be at c:1; give all new addresses together"},
        {{{1, "d:1"}, {3, "d:1"}},
         -PLX_EEXISTS,
         "nodes 1 and 3 cannot both be at d:1; give all new addresses together"},
    };
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct identity identity = before;
        struct error err = {0};
        CHECK_EQ(addresses_set(&identity, cases[i].changes, 2, &err), cases[i].code);
        CHECK_STR(err.text, cases[i].text);
        CHECK_STR(identity.address, "b:1");
        CHECK_STR(identity.peers[0].address, "a:1");
        CHECK_STR(identity.peers[1].address, "c:1");
    }
}

int main(void)
{
    test_parse();
    test_set();
    test_refused();
    return 0;
}
