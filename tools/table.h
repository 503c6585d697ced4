/* SPDX-License-Identifier: Apache-2.0 */
/* A table for people: columns as wide as their widest cell. */
#ifndef PARALLAX_TOOLS_TABLE_H
#define PARALLAX_TOOLS_TABLE_H

#include "runtime/base.h"

struct table;

/* One letter a column in `aligns`: 'l' left, 'r' right. NULL when memory is out. */
struct table *table_create(const char *aligns);
void table_destroy(struct table *table);
/* The next cell, copied. Failures show in table_print. */
void table_add(struct table *table, const char *text);
/* To standard output; rows must be whole. False when memory was out. */
bool table_print(const struct table *table);

#endif
