/* SPDX-License-Identifier: Apache-2.0 */
/* Each file is written beside its place, synced, and renamed, so that there is always a
 * whole one. */
#include "tools/identity.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#define FOLDER   "node"
#define FILE_MAX (64 * KIB)
#define VERSION  1

static int err_errno(struct error *err, const char *path, const char *what)
{
    int code = errno;
    return err_set(err, -code, "%s: cannot %s: %s", path, what, strerror(code));
}

static int path_of(const struct directory *dir, const char *name, char ret[PATH_MAX],
                   struct error *err)
{
    char relative[64];
    snprintf(relative, sizeof relative, FOLDER "/%s", name);
    return directory_path(dir, relative, ret, err);
}

static int sync_folder(const char *path, struct error *err)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return err_errno(err, path, "open");
    int r = fsync(fd) < 0 ? err_errno(err, path, "sync") : 0;
    close(fd);
    return r;
}

static int make_folder(const struct directory *dir, struct error *err)
{
    char path[PATH_MAX];
    int r = directory_path(dir, FOLDER, path, err);
    if (r < 0)
        return r;
    if (mkdir(path, 0700) == 0)
        return sync_folder(dir->path, err);
    return errno == EEXIST ? 0 : err_errno(err, path, "make this folder");
}

/* --- files --- */

static int write_text(int fd, const char *path, const char *text, struct error *err)
{
    size_t len = strlen(text);
    while (len > 0) {
        ssize_t n = write(fd, text, len);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, path, "write");
        text += n;
        len -= (size_t)n;
    }
    return fsync(fd) < 0 ? err_errno(err, path, "sync") : 0;
}

static int write_file(const struct directory *dir, const char *name, const char *text,
                      struct error *err)
{
    char path[PATH_MAX], temp[PATH_MAX], folder[PATH_MAX], temp_name[32];
    snprintf(temp_name, sizeof temp_name, "%s.new", name);
    int r = path_of(dir, name, path, err);
    if (r == 0)
        r = path_of(dir, temp_name, temp, err);
    if (r == 0)
        r = directory_path(dir, FOLDER, folder, err);
    if (r < 0)
        return r;
    int fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0)
        return err_errno(err, temp, "make");
    r = write_text(fd, temp, text, err);
    close(fd);
    if (r == 0 && rename(temp, path) < 0)
        r = err_errno(err, path, "replace");
    return r < 0 ? r : sync_folder(folder, err);
}

/* malloc'd, with a NUL. -ENOENT without a text: there is none. */
static int read_file(const struct directory *dir, const char *name, char **ret,
                     struct error *err)
{
    char path[PATH_MAX];
    int r = path_of(dir, name, path, err);
    if (r < 0)
        return r;
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return errno == ENOENT ? -ENOENT : err_errno(err, path, "open");
    char *text = malloc(FILE_MAX + 1);
    size_t len = text != NULL ? fread(text, 1, FILE_MAX + 1, file) : 0;
    bool is_bad = ferror(file) != 0;
    fclose(file);
    if (text == NULL)
        return err_set(err, -ENOMEM, "%s: %s", path, err_text(-ENOMEM));
    if (is_bad || len > FILE_MAX || memchr(text, '\0', len) != NULL) {
        free(text);
        return err_set(err, -PLX_EFORMAT, "%s: cannot be read, or is no text", path);
    }
    text[len] = '\0';
    *ret = text;
    return 0;
}

static void remove_file(const struct directory *dir, const char *name)
{
    char path[PATH_MAX];
    if (path_of(dir, name, path, NULL) == 0)
        unlink(path);
}

/* --- the identity --- */

static char *identity_print(const struct identity *identity)
{
    char cluster[UID_TEXT_LEN + 1], store[UID_TEXT_LEN + 1];
    json_t *peers = json_array();
    uid_print(identity->self.cluster, cluster);
    uid_print(identity->store, store);
    for (uint32_t i = 0; i < identity->peer_count; i++)
        json_array_append_new(peers, json_pack("{s:I, s:s}", "node",
                                               (json_int_t)identity->peers[i].node,
                                               "address", identity->peers[i].address));
    json_t *all = json_pack("{s:i, s:s, s:I, s:s, s:s, s:o}", "version", VERSION,
                            "cluster", cluster, "node", (json_int_t)identity->self.node,
                            "store", store, "address", identity->address, "peers", peers);
    char *text = json_dumps(all, JSON_INDENT(2));
    json_decref(all);
    return text;
}

static bool read_address(const char *text, char ret[DISK_NAME_MAX + 1])
{
    if (join_address_check(text, NULL) != 0)
        return false;
    snprintf(ret, DISK_NAME_MAX + 1, "%s", text);
    return true;
}

static bool read_peers(json_t *peers, struct identity *ret)
{
    size_t i;
    json_t *peer;
    ret->peer_count = 0;
    json_array_foreach(peers, i, peer)
    {
        json_int_t node = 0;
        const char *address;
        struct join_peer *to = &ret->peers[ret->peer_count];
        if (i >= JOIN_PEERS_MAX ||
            json_unpack(peer, "{s:I, s:s}", "node", &node, "address", &address) != 0 ||
            node <= 0 || !read_address(address, to->address))
            return false;
        to->node = (uint64_t)node;
        ret->peer_count++;
    }
    return true;
}

/* Whatever else is in it. 0: it says nothing of it. */
static int version_of(const char *text)
{
    json_error_t jerr;
    int version = 0;
    json_t *all = json_loads(text, JSON_REJECT_DUPLICATES, &jerr);
    if (json_unpack(all, "{s:i}", "version", &version) != 0)
        version = 0;
    json_decref(all);
    return version;
}

static bool identity_parse(const char *text, struct identity *ret)
{
    json_error_t jerr;
    int version = 0;
    json_int_t node = 0;
    const char *cluster, *store, *address;
    json_t *peers, *all = json_loads(text, JSON_REJECT_DUPLICATES, &jerr);
    bool is_good = json_unpack(all, "{s:i, s:s, s:I, s:s, s:s, s:o}", "version", &version,
                               "cluster", &cluster, "node", &node, "store", &store,
                               "address", &address, "peers", &peers) == 0 &&
                   version == VERSION && node > 0 &&
                   uid_parse(cluster, strlen(cluster), &ret->self.cluster) &&
                   uid_parse(store, strlen(store), &ret->store) &&
                   read_address(address, ret->address) && json_is_array(peers) &&
                   read_peers(peers, ret);
    ret->self.node = (uint64_t)node;
    json_decref(all);
    return is_good;
}

/* A file that must be there, since the identity is. */
static int need_file(const struct directory *dir, const char *name, char **ret,
                     struct error *err)
{
    int r = read_file(dir, name, ret, err);
    if (r == -ENOENT && (err == NULL || err->code == 0))
        return err_set(err, r, "%s/" FOLDER "/%s is missing", dir->path, name);
    return r;
}

int identity_load(const struct directory *dir, struct identity *ret, bool *ret_found,
                  struct error *err)
{
    cleanup(free_ptr) char *text = NULL;
    *ret = (struct identity){0};
    int r = read_file(dir, "identity", &text, err);
    *ret_found = r == 0;
    if (r == -ENOENT)
        return 0;
    if (r == 0 && version_of(text) > VERSION)
        r = err_set(err, -PLX_ENEWER,
                    "%s/" FOLDER "/identity: version %d: a newer program wrote it; this "
                    "one knows %d",
                    dir->path, version_of(text), VERSION);
    if (r == 0 && !identity_parse(text, ret))
        r = err_set(err, -PLX_EFORMAT, "%s/" FOLDER "/identity is damaged", dir->path);
    if (r == 0)
        r = need_file(dir, "ca.pem", &ret->authority, err);
    if (r == 0)
        r = need_file(dir, "cert.pem", &ret->certificate, err);
    if (r == 0 && (ret->key = strdup(ret->certificate)) == NULL)
        r = err_set(err, -ENOMEM, "%s", err_text(-ENOMEM));
    if (r < 0)
        identity_done(ret);
    return r;
}

int identity_save_peers(const struct directory *dir, const struct identity *identity,
                        struct error *err)
{
    cleanup(free_ptr) char *text = identity_print(identity);
    if (text == NULL)
        return err_set(err, -ENOMEM, "%s", err_text(-ENOMEM));
    return write_file(dir, "identity", text, err);
}

int identity_save_certificate(const struct directory *dir,
                              const struct identity *identity, struct error *err)
{
    /* In one file: one never comes without the other. */
    char *both = NULL;
    if (asprintf(&both, "%s%s", identity->certificate, identity->key) < 0)
        return err_set(err, -ENOMEM, "%s", err_text(-ENOMEM));
    int r = write_file(dir, "cert.pem", both, err);
    net_pki_free_key(both);
    return r;
}

int identity_save(const struct directory *dir, const struct identity *identity,
                  struct error *err)
{
    int r = make_folder(dir, err);
    if (r == 0)
        r = write_file(dir, "ca.pem", identity->authority, err);
    if (r == 0)
        r = identity_save_certificate(dir, identity, err);
    if (r == 0)
        r = identity_save_peers(dir, identity, err);
    if (r == 0)
        remove_file(dir, "joining");
    return r;
}

void identity_done(struct identity *identity)
{
    free(take(identity->authority));
    net_pki_free_key(take(identity->certificate)); /* of a file that has both */
    net_pki_free_key(take(identity->key));
}

void identity_forget_joining(const struct directory *dir)
{
    char path[PATH_MAX];
    remove_file(dir, "joining");
    if (directory_path(dir, FOLDER, path, NULL) == 0)
        rmdir(path);
}

int identity_begin_joining(const struct directory *dir, struct uid *ret_store,
                           bool *ret_is_new, struct error *err)
{
    cleanup(free_ptr) char *text = NULL;
    char hex[UID_TEXT_LEN + 1];
    int r = read_file(dir, "joining", &text, err);
    *ret_is_new = r == -ENOENT;
    if (r == 0 && !uid_parse(text, strlen(text), ret_store))
        r = err_set(err, -PLX_EFORMAT, "%s/" FOLDER "/joining is damaged: remove it",
                    dir->path);
    if (!*ret_is_new)
        return r;
    if (getrandom(ret_store, sizeof *ret_store, 0) != (ssize_t)sizeof *ret_store)
        return err_errno(err, "random bytes", "get");
    uid_print(*ret_store, hex);
    r = make_folder(dir, err);
    return r < 0 ? r : write_file(dir, "joining", hex, err);
}
