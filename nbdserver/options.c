/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What each option does; those of metadata contexts are in contexts.c. LIST and INFO are
 * answered from the host's list of disks; only EXPORT_NAME and GO open one.
 *
 * Every length inside an option's data is checked against the data there is; what does
 * not add up is NBD_REP_ERR_INVALID. An export nobody knows is NBD_REP_ERR_UNKNOWN, an
 * option nobody knows NBD_REP_ERR_UNSUP, and the client may go on.
 *
 * ABORT is acknowledged and drains the session.
 */
#include <stdio.h>

#include "nbdserver/nbd_internal.h"

static void invalid(struct session *s, uint32_t option, const char *why)
{
    option_error(s, option, NBD_REP_ERR_INVALID, "%s", why);
}

/* --- exports --- */

struct export
{
    uint64_t size_bytes;
    bool read_only;
};

static int find_snapshot(struct host *host, const char *disk, const char *name,
                         struct export *ret, struct error *err)
{
    cleanup(free_ptr) struct snapshot_info *infos = NULL;
    size_t count;
    int rc = snapshot_list(host, disk, &infos, &count, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < count; i++) {
        if (strcmp(infos[i].name, name) == 0) {
            *ret = (struct export){infos[i].size_bytes, .read_only = true};
            return 0;
        }
    }
    return err_set(err, -PLX_EMISSING, "no snapshot %s of disk %s", name, disk);
}

bool export_split(const char *name, char *ret_disk)
{
    size_t len = strlen(name), suffix_len = strlen(NBD_INCOMING);
    bool is_incoming =
        len >= suffix_len && strcmp(name + len - suffix_len, NBD_INCOMING) == 0;
    if (is_incoming)
        len -= suffix_len;
    memcpy(ret_disk, name, len);
    ret_disk[len] = '\0';
    return is_incoming;
}

static int find_export(struct host *host, const char *name, struct export *ret,
                       struct error *err)
{
    char disk[NBD_EXPORT_NAME_MAX + 1];
    struct disk_info info;
    if (!name[0])
        return err_set(err, -PLX_EMISSING, "there is no default export; name a disk");
    bool is_incoming = export_split(name, disk);
    char *at = strchr(disk, '@');
    if (at && is_incoming)
        return err_set(err, -PLX_EMISSING, "%s: snapshots do not come in", name);
    if (at) {
        *at = '\0';
        return find_snapshot(host, disk, at + 1, ret, err);
    }
    int rc = disk_show(host, disk, &info, err);
    if (rc == 0)
        *ret = (struct export){info.size_bytes, .read_only = false};
    return rc;
}

bool option_read_name(struct reader *r, uint32_t len, char *ret)
{
    const uint8_t *bytes = read_bytes(r, len);
    if (!bytes || len > NBD_EXPORT_NAME_MAX || memchr(bytes, '\0', len))
        return false;
    memcpy(ret, bytes, len);
    ret[len] = '\0';
    return true;
}

static void unknown_export(struct session *s, uint32_t option, const struct error *err)
{
    option_error(s, option, NBD_REP_ERR_UNKNOWN, "%s",
                 err->code ? err->text : "no such export");
}

/* --- EXPORT_NAME, ABORT, LIST --- */

static void run_export_name(struct session *s, uint32_t option, const uint8_t *data,
                            uint32_t len)
{
    struct reader r = reader_of(data, len);
    char name[NBD_EXPORT_NAME_MAX + 1];
    if (option_read_name(&r, len, name))
        open_start(s, option, name, 0);
    else
        session_break(s, "not a name of an export");
}

static void run_abort(struct session *s, uint32_t option, const uint8_t *data,
                      uint32_t len)
{
    (void)data, (void)len;
    option_reply(s, option, NBD_REP_ACK, NULL, 0);
    session_drain(s);
}

static void list_one(struct session *s, const char *name)
{
    uint8_t bytes[sizeof(be32) + NBD_EXPORT_NAME_MAX];
    uint32_t len = (uint32_t)strlen(name);
    assert(len <= NBD_EXPORT_NAME_MAX);
    be32 name_len = be32_of(len);
    memcpy(bytes, &name_len, sizeof name_len);
    memcpy(bytes + sizeof name_len, name, len);
    option_reply(s, NBD_OPT_LIST, NBD_REP_SERVER, bytes, sizeof name_len + len);
}

/* Returns how many of max it left. */
static uint32_t list_snapshots(struct session *s, const char *disk, uint32_t max)
{
    cleanup(free_ptr) struct snapshot_info *infos = NULL;
    size_t count = 0;
    if (snapshot_list(s->shared->host, disk, &infos, &count, NULL) < 0)
        return max;
    for (size_t i = 0; i < count && max > 0; i++, max--) {
        char name[NBD_EXPORT_NAME_MAX + 1];
        snprintf(name, sizeof name, "%s@%s", disk, infos[i].name);
        list_one(s, name);
    }
    return max;
}

bool option_list_begin(struct session *s, uint32_t option)
{
    if (s->shared->lists >= NBD_LISTS_AT_ONCE) {
        option_error(s, option, NBD_REP_ERR_POLICY, "others are being told; try again");
        return false;
    }
    assert(!s->listing);
    s->listing = true;
    s->shared->lists++;
    return true;
}

/* Disks first, so that a disk with very many snapshots hides no other. */
static void run_list(struct session *s, uint32_t option, const uint8_t *data,
                     uint32_t len)
{
    cleanup(free_ptr) struct disk_info *infos = NULL;
    size_t count = 0;
    (void)data;
    if (len != 0) {
        invalid(s, option, "LIST has no data");
        return;
    }
    if (++s->list_count > NBD_LISTS_MAX) {
        option_error(s, option, NBD_REP_ERR_POLICY, "listed often enough");
        return;
    }
    if (!option_list_begin(s, option))
        return;
    if (disk_list(s->shared->host, &infos, &count) < 0) {
        option_error(s, option, NBD_REP_ERR_POLICY, "the list is not to be had");
        return;
    }
    uint32_t left = NBD_LIST_MAX;
    for (size_t i = 0; i < count && left > 0; i++, left--)
        list_one(s, infos[i].name);
    for (size_t i = 0; i < count && left > 0; i++) {
        if (infos[i].snapshot_count > 0)
            left = list_snapshots(s, infos[i].name, left);
    }
    option_reply(s, option, NBD_REP_ACK, NULL, 0);
}

/* --- INFO and GO --- */

static void info_text(struct session *s, uint32_t option, uint16_t type, const char *text)
{
    uint8_t bytes[sizeof(be16) + 512];
    be16 info = be16_of(type);
    size_t len = strlen(text);
    assert(len <= 512);
    memcpy(bytes, &info, sizeof info);
    memcpy(bytes + sizeof info, text, len);
    option_reply(s, option, NBD_REP_INFO, bytes, sizeof info + len);
}

/* The block sizes are told to everybody: they forbid nothing. */
void option_infos(struct session *s, uint32_t option, const char *name,
                  uint64_t size_bytes, bool read_only, uint32_t infos)
{
    struct nbd_info_export export = {
        .type = be16_of(NBD_INFO_EXPORT),
        .size_bytes = be64_of(size_bytes),
        .flags = be16_of(export_flags(s, read_only)),
    };
    struct nbd_info_block_size sizes = {
        .type = be16_of(NBD_INFO_BLOCK_SIZE),
        .minimum = be32_of(1),
        .preferred = be32_of(BLOCK_SIZE),
        .maximum = be32_of((uint32_t)NBD_REQUEST_BYTES_MAX),
    };
    option_reply(s, option, NBD_REP_INFO, &export, sizeof export);
    option_reply(s, option, NBD_REP_INFO, &sizes, sizeof sizes);
    if (infos & 1U << NBD_INFO_NAME)
        info_text(s, option, NBD_INFO_NAME, name);
    if (infos & 1U << NBD_INFO_DESCRIPTION)
        info_text(s, option, NBD_INFO_DESCRIPTION,
                  read_only ? "Parallax snapshot" : "Parallax disk");
    option_reply(s, option, NBD_REP_ACK, NULL, 0);
}

static void run_info_or_go(struct session *s, uint32_t option, const uint8_t *data,
                           uint32_t len)
{
    struct reader r = reader_of(data, len);
    char name[NBD_EXPORT_NAME_MAX + 1];
    struct error err = {0};
    struct export export = {0};
    bool has_name = option_read_name(&r, read_be32(&r), name);
    uint32_t count = read_be16(&r), infos = 0;
    for (uint32_t i = 0; i < count && !r.bad; i++) {
        uint16_t info = read_be16(&r);
        infos |= info <= NBD_INFO_BLOCK_SIZE ? 1U << info : 0;
    }
    if (r.bad || r.left > 0)
        invalid(s, option, "the lengths do not add up");
    else if (!has_name)
        unknown_export(s, option, &err);
    else if (option == NBD_OPT_GO)
        open_start(s, option, name, infos);
    else if (find_export(s->shared->host, name, &export, &err) < 0)
        unknown_export(s, option, &err);
    else
        option_infos(s, option, name, export.size_bytes, export.read_only, infos);
}

/* --- structured replies, TLS --- */

static void run_structured(struct session *s, uint32_t option, const uint8_t *data,
                           uint32_t len)
{
    (void)data;
    if (len != 0) {
        invalid(s, option, "STRUCTURED_REPLY has no data");
        return;
    }
    s->structured = true;
    option_reply(s, option, NBD_REP_ACK, NULL, 0);
}

static void run_starttls(struct session *s, uint32_t option, const uint8_t *data,
                         uint32_t len)
{
    (void)data, (void)len;
    option_error(s, option, NBD_REP_ERR_UNSUP, "TLS is not supported yet");
}

/* --- the table --- */

static const struct {
    uint32_t option;
    void (*run)(struct session *s, uint32_t option, const uint8_t *data, uint32_t len);
} options[] = {
    {NBD_OPT_EXPORT_NAME, run_export_name},
    {NBD_OPT_ABORT, run_abort},
    {NBD_OPT_LIST, run_list},
    {NBD_OPT_STARTTLS, run_starttls},
    {NBD_OPT_INFO, run_info_or_go},
    {NBD_OPT_GO, run_info_or_go},
    {NBD_OPT_STRUCTURED_REPLY, run_structured},
    {NBD_OPT_LIST_META_CONTEXT, contexts_run_option},
    {NBD_OPT_SET_META_CONTEXT, contexts_run_option},
};

void option_run(struct session *s, uint32_t option, const uint8_t *data, uint32_t len)
{
    for (size_t i = 0; i < ARRAY_LEN(options); i++) {
        if (options[i].option == option) {
            options[i].run(s, option, data, len);
            return;
        }
    }
    option_error(s, option, NBD_REP_ERR_UNSUP, "option %u is not supported", option);
}
