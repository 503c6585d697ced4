/* SPDX-License-Identifier: Apache-2.0 */
/* A wrong address finds nobody: whoever answers there has to show the certificate of the
 * node that is looked for. So all that is checked is what can only be a mistake. */
#include "tools/addresses.h"

#include <stdio.h>

int addresses_parse(const char *text, struct join_peer *ret, struct error *err)
{
    const char *at = text;
    uint64_t node = 0;
    for (; *at >= '0' && *at <= '9' && node < UINT64_MAX / 10 - 9; at++)
        node = node * 10 + (uint64_t)(*at - '0');
    if (*at != '=' || node == 0)
        return err_set(err, -EINVAL,
                       "%.80s: give NODE=HOST:PORT, the number of a node and where it is",
                       text);
    int r = join_address_check(at + 1, err);
    if (r < 0)
        return r;
    ret->node = node;
    snprintf(ret->address, sizeof ret->address, "%s", at + 1);
    return 0;
}

/* NULL: it is not known. */
static char *place_of(struct identity *identity, uint64_t node)
{
    if (node == identity->self.node)
        return identity->address;
    for (uint32_t i = 0; i < identity->peer_count; i++) {
        if (identity->peers[i].node == node)
            return identity->peers[i].address;
    }
    return NULL;
}

static int no_such_node(const struct identity *identity, uint64_t node, struct error *err)
{
    char known[200] = "";
    for (uint32_t i = 0, len = 0; i < identity->peer_count && len < sizeof known; i++)
        len += (uint32_t)snprintf(known + len, sizeof known - len, ", %llu",
                                  (unsigned long long)identity->peers[i].node);
    return err_set(err, -PLX_EMISSING,
                   "this is node %llu; it knows no node %llu, only itself%s",
                   (unsigned long long)identity->self.node, (unsigned long long)node,
                   known);
}

static int clash(uint64_t one, uint64_t other, const char *address, struct error *err)
{
    return err_set(err, -PLX_EEXISTS,
                   "nodes %llu and %llu cannot both be at %s; give all new addresses "
                   "together",
                   (unsigned long long)one, (unsigned long long)other, address);
}

static int check_apart(const struct identity *identity, struct error *err)
{
    for (uint32_t i = 0; i < identity->peer_count; i++) {
        const struct join_peer *peer = &identity->peers[i];
        if (strcmp(peer->address, identity->address) == 0)
            return clash(identity->self.node, peer->node, peer->address, err);
        for (uint32_t k = 0; k < i; k++) {
            if (strcmp(peer->address, identity->peers[k].address) == 0)
                return clash(identity->peers[k].node, peer->node, peer->address, err);
        }
    }
    return 0;
}

int addresses_set(struct identity *identity, const struct join_peer *changes,
                  uint32_t count, struct error *err)
{
    struct identity changed = *identity;
    for (uint32_t i = 0; i < count; i++) {
        char *address = place_of(&changed, changes[i].node);
        if (address == NULL)
            return no_such_node(identity, changes[i].node, err);
        for (uint32_t k = 0; k < i; k++) {
            if (changes[k].node == changes[i].node)
                return err_set(err, -EINVAL, "node %llu is given twice",
                               (unsigned long long)changes[i].node);
        }
        snprintf(address, DISK_NAME_MAX + 1, "%s", changes[i].address);
    }
    int r = check_apart(&changed, err);
    if (r == 0)
        *identity = changed;
    return r;
}
