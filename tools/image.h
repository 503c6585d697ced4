/* SPDX-License-Identifier: Apache-2.0 */
/* Image formats other than raw: qemu-img looks at them and makes them, qemu-nbd serves
 * them. */
#ifndef PARALLAX_TOOLS_IMAGE_H
#define PARALLAX_TOOLS_IMAGE_H

#include <libnbd.h>

#include "runtime/base.h"
#include "runtime/error.h"

#define IMAGE_FORMAT_MAX 32

/* The format of a file, "raw" if it is none that qemu knows. */
int image_detect(const char *path, char ret_format[IMAGE_FORMAT_MAX], struct error *err);
/* Refuses an image that is damaged, or, unless `backing`, one that says that part of its
 * content is in another file: an image from a stranger could name any file of ours. */
int image_check(const char *path, const char *format, bool backing, struct error *err);
/* Makes an empty image in an existing file. */
int image_create(const char *path, const char *format, uint64_t size_bytes,
                 struct error *err);

enum image_access { IMAGE_READ, IMAGE_WRITE };
/* Starts a qemu-nbd on it, which ends when the handle is closed. `name` is for messages,
 * `nbd` a fresh handle. */
int image_serve(struct nbd_handle *nbd, const char *path, const char *format,
                enum image_access access, const char *name, struct error *err);

#endif
