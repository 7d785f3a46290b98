/* What the programs that prepare a sandbox on the host's side share (`stage`, `cover`); each defines PROGRAM, its name. */
#ifndef LONGHAUL_HOST_PROGRAM_H
#define LONGHAUL_HOST_PROGRAM_H

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void die(const char *what) {
    fprintf(stderr, PROGRAM ": %s: %s\n", what, strerror(errno));
    exit(120);
}

static char *format(const char *pattern, ...) {
    char *text;
    va_list args;
    va_start(args, pattern);
    if (vasprintf(&text, pattern, args) < 0) exit(121);
    va_end(args);
    return text;
}

#endif
