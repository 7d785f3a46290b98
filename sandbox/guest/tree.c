/* A tree as it is: listed and hashed, read, and changed, without following a link or running anything.
 *
 * Whoever worked in the tree may have left anything in it, and may own every program of the place. So nothing of it is
 * trusted: names are opened one below the other, whatever is not a regular file, a link or a directory is passed over,
 * depth, size, number and time are bounded.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_DEPTH 200  /* of directories; each level holds a descriptor while it is walked */
#define MAX_SKIPPED 64 /* names that a walk passes over */
#define EDGE 65536     /* of a file too big to be hashed whole, what is hashed at either end */
#define DIRECTORY (O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

enum { DELETE = 0, PLACE_FILE = 1, PLACE_LINK = 2 };

struct walk {
    char *out, path[PATH_MAX];
    size_t used, size, most_bytes;
    uint32_t entries, most_entries, cut, num_skipped;
    uint64_t deadline, biggest;
    dev_t device;
    const char *skipped[MAX_SKIPPED];
};

/* A directory whose owner took away his own right to read it, or to reach what is in it, gets it back. */
static int open_directory(int at, const char *name, int flags) {
    struct stat s;
    int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | flags);
    if (fd < 0 && errno == EACCES && !fstatat(at, name, &s, flags & O_NOFOLLOW ? AT_SYMLINK_NOFOLLOW : 0) &&
        S_ISDIR(s.st_mode) && !fchmodat(at, name, (s.st_mode & 07777) | 0700, 0))
        fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | flags);
    if (fd >= 0 && !fstat(fd, &s) && (s.st_mode & 0700) != 0700) (void)!fchmod(fd, (s.st_mode & 07777) | 0700);
    return fd;
}

/* The file system of a tree is one: what is mounted in it is no part of it. */
static int enter(int at, const char *name, dev_t device) {
    struct stat s;
    int fd = open_directory(at, name, O_NOFOLLOW);
    if (fd >= 0 && device && (fstat(fd, &s) || s.st_dev != device)) close(fd), fd = -1, errno = EXDEV;
    return fd;
}

static int open_file(int at, const char *name, struct stat *s) {
    int flags = O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, fd = openat(at, name, flags);
    if (fd < 0 && errno == EACCES && !fstatat(at, name, s, AT_SYMLINK_NOFOLLOW) && S_ISREG(s->st_mode) &&
        !fchmodat(at, name, (s->st_mode & 07777) | 0400, 0))
        fd = openat(at, name, flags);
    if (fd >= 0 && (fstat(fd, s) || !S_ISREG(s->st_mode))) close(fd), fd = -1, errno = ENODEV;
    return fd;
}

static int hash_part(struct sha256 *h, int fd, off_t from, uint64_t len, uint64_t deadline) {
    static char data[1 << 16];
    while (len) {
        ssize_t n = pread(fd, data, len < sizeof data ? len : sizeof data, from);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return -1;
        if (!n) return 0;
        sha256_add(h, data, (size_t)n), from += n, len -= (uint64_t)n;
        if (now_ms() > deadline) return errno = ETIMEDOUT, -1;
    }
    return 0;
}

/* What a file holds; of one that is too big to be taken, its size and both ends. */
static int hash_file(struct walk *w, int at, const char *name, char *kind, char hex[65]) {
    struct stat s;
    struct sha256 h;
    int fd = open_file(at, name, &s);
    if (fd < 0) return -1;
    uint64_t size = (uint64_t)s.st_size;
    int big = size > w->biggest, failed;
    *kind = (s.st_mode & 0100) ? (big ? 'X' : 'x') : (big ? 'F' : 'f');
    sha256_begin(&h);
    if (big) {
        sha256_add(&h, &size, sizeof size);
        failed = hash_part(&h, fd, 0, EDGE, w->deadline) || hash_part(&h, fd, (off_t)size - EDGE, EDGE, w->deadline);
    } else {
        failed = hash_part(&h, fd, 0, size, w->deadline);
    }
    close(fd);
    sha256_end(&h, hex);
    return failed ? -1 : 0;
}

static int hash_link(int at, const char *name, char hex[65]) {
    char target[PATH_MAX];
    struct sha256 h;
    ssize_t n = readlinkat(at, name, target, sizeof target);
    if (n < 0) return -1;
    sha256_begin(&h), sha256_add(&h, target, (size_t)n), sha256_end(&h, hex);
    return 0;
}

/* `kind` `hash` ` ` `path` NUL; u: what cannot be read, d: a directory that is not looked into. */
static void record(struct walk *w, char kind, const char *hex) {
    size_t len = strlen(w->path), need = 66 + len + 1;
    if (w->entries >= w->most_entries || w->used + need > w->most_bytes) {
        w->cut = E2BIG;
        return;
    }
    if (w->size - w->used < need) {
        w->size = w->size ? w->size * 2 + need : 1 << 16;
        if (!(w->out = realloc(w->out, w->size))) _exit(4);
    }
    w->used += (size_t)sprintf(w->out + w->used, "%c%s ", kind, hex);
    memcpy(w->out + w->used, w->path, len + 1), w->used += len + 1, w->entries++;
}

static int is_skipped(const struct walk *w, const char *name) {
    for (uint32_t i = 0; i < w->num_skipped; i++)
        if (!strcmp(name, w->skipped[i])) return 1;
    return 0;
}

static const char nothing[] = "0000000000000000000000000000000000000000000000000000000000000000";

static void walk_into(struct walk *w, int fd, size_t len, int depth) {
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return record(w, 'd', nothing);
    }
    for (struct dirent *e; !w->cut && (e = readdir(dir));) {
        char hex[65], kind = 'l';
        struct stat s;
        size_t name_len = strlen(e->d_name);
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || is_skipped(w, e->d_name)) continue;
        if (now_ms() > w->deadline) w->cut = ETIMEDOUT;
        if (len + name_len + 2 > sizeof w->path) {
            record(w, 'd', nothing);
            continue;
        }
        memcpy(w->path + len, e->d_name, name_len + 1);
        if (fstatat(dirfd(dir), e->d_name, &s, AT_SYMLINK_NOFOLLOW)) {
            record(w, 'u', nothing);
        } else if (S_ISDIR(s.st_mode)) {
            int child = depth < MAX_DEPTH ? enter(dirfd(dir), e->d_name, w->device) : -1;
            if (child < 0) {
                record(w, 'd', nothing);
            } else {
                w->path[len + name_len] = '/', w->path[len + name_len + 1] = 0;
                walk_into(w, child, len + name_len + 1, depth + 1);
            }
        } else if (S_ISREG(s.st_mode) || S_ISLNK(s.st_mode)) {
            int failed = S_ISLNK(s.st_mode) ? hash_link(dirfd(dir), e->d_name, hex)
                                            : hash_file(w, dirfd(dir), e->d_name, &kind, hex);
            if (failed && errno == ETIMEDOUT) w->cut = ETIMEDOUT;
            record(w, failed ? 'u' : kind, failed ? nothing : hex);
        }
        w->path[len] = 0;
    }
    closedir(dir);
}

void tree_list(uint32_t id, struct cursor *c) {
    struct stat s;
    struct walk w = {.deadline = now_ms() + take_u32(c)};
    w.most_entries = take_u32(c), w.most_bytes = take_u32(c), w.biggest = take_u64(c);
    char *root = take_string(c);
    w.num_skipped = take_u32(c);
    if (w.num_skipped > MAX_SKIPPED || w.most_bytes > MAX_FRAME / 2) c->bad = 1;
    for (uint32_t i = 0; !c->bad && i < w.num_skipped; i++) w.skipped[i] = take_string(c);
    if (c->bad || *root != '/') return reply_errno(id, EBADMSG, "list");
    int fd = open_directory(AT_FDCWD, root, 0);
    if (fd < 0 || fstat(fd, &s)) {
        int error = errno;
        if (fd >= 0) close(fd);
        return reply_errno(id, error, root);
    }
    w.device = s.st_dev;
    walk_into(&w, fd, 0, 0);
    reply(id, STATUS_OK, &w.cut, sizeof w.cut, w.out, w.used, 0, 0);
    free(w.out);
}

/* Whether a path names something below its root, and nothing else. */
static int is_inside(const char *path) {
    if (!*path || strlen(path) >= PATH_MAX) return 0;
    for (const char *at = path; at; at = *at ? at + 1 : 0) {
        size_t n = strcspn(at, "/");
        if (!n || (n == 1 && *at == '.') || (n == 2 && !strncmp(at, "..", 2))) return 0;
        at += n;
        if (!*at) return 1;
    }
    return 0;
}

/* One step, through no link. */
static int step(int at, const char *name, int make) {
    int fd = openat(at, name, O_PATH | DIRECTORY);
    if (fd < 0 && errno == ENOENT && make && (!mkdirat(at, name, 0755) || errno == EEXIST))
        fd = openat(at, name, O_PATH | DIRECTORY);
    return fd;
}

/* The directory that holds the last name of a path: by openat2, which refuses links and ways out as a whole; where that
 * is not to be had (an older kernel or filter) or a directory is missing, step by step, which is as strict. */
static int open_parent(int root, char *path, int make, char **name) {
    *name = strrchr(path, '/');
    if (!*name) {
        *name = path;
        return fcntl(root, F_DUPFD_CLOEXEC, 0);
    }
    *(*name)++ = 0;
    struct open_how how = {.flags = O_PATH | DIRECTORY,
                           .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS};
    int fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
    if (fd >= 0 || errno == ELOOP || errno == ENOTDIR || (errno == ENOENT && !make)) return fd;
    fd = fcntl(root, F_DUPFD_CLOEXEC, 0);
    for (char *at = path; fd >= 0 && at;) {
        char *end = strchr(at, '/');
        if (end) *end = 0;
        int next = step(fd, at, make), error = errno;
        close(fd), fd = next, errno = error;
        at = end ? end + 1 : 0;
    }
    return fd;
}

void tree_fetch(uint32_t id, struct cursor *c) {
    uint64_t most = take_u64(c);
    char *root = take_string(c), *path = take_string(c), *name;
    if (c->bad || *root != '/' || !is_inside(path)) return reply_errno(id, EBADMSG, "fetch");
    int top = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC), parent = top < 0 ? -1 : open_parent(top, path, 0, &name);
    struct stat s;
    char kind = 'l', *data = 0;
    ssize_t used = -1;
    int fd = -1;
    if (parent >= 0 && !fstatat(parent, name, &s, AT_SYMLINK_NOFOLLOW)) {
        if (S_ISLNK(s.st_mode)) {
            if ((data = malloc(PATH_MAX))) used = readlinkat(parent, name, data, PATH_MAX);
        } else if ((fd = open_file(parent, name, &s)) >= 0) {
            kind = (s.st_mode & 0100) ? 'x' : 'f';
            size_t size = (size_t)s.st_size;
            if ((uint64_t)s.st_size > most || size > MAX_FRAME - 64) errno = EFBIG;
            else if ((data = malloc(size + 1))) {
                used = 0;
                for (ssize_t n; (size_t)used < size && (n = read(fd, data + used, size - (size_t)used)) != 0;) {
                    if (n < 0 && errno == EINTR) continue;
                    if (n < 0) {
                        used = -1;
                        break;
                    }
                    used += n;
                }
            }
        }
    }
    if (used < 0) reply_errno(id, errno, path);
    else reply(id, STATUS_OK, &kind, 1, data, (size_t)used, 0, 0);
    free(data);
    if (fd >= 0) close(fd);
    if (parent >= 0) close(parent);
    if (top >= 0) close(top);
}

static int remove_whatever(int at, const char *name, int depth) {
    if (!unlinkat(at, name, 0) || errno == ENOENT) return 0;
    if (errno != EISDIR && errno != EPERM) return -1;
    int fd = depth < MAX_DEPTH ? openat(at, name, O_RDONLY | DIRECTORY) : (errno = ENAMETOOLONG, -1);
    DIR *dir = fd < 0 ? 0 : fdopendir(fd);
    int failed = !dir;
    for (struct dirent *e; !failed && (e = readdir(dir));)
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) failed = remove_whatever(dirfd(dir), e->d_name, depth + 1);
    if (dir) closedir(dir);
    else if (fd >= 0) close(fd);
    return failed ? -1 : unlinkat(at, name, AT_REMOVEDIR);
}

/* As git does: a directory that held the last file of its own goes with it. */
static void remove_empty_parents(int root, char *path) {
    for (char *end; (end = strrchr(path, '/'));) {
        *end = 0;
        char *way = strdup(path), *name;
        int parent = way ? open_parent(root, way, 0, &name) : -1;
        int kept = parent < 0 || unlinkat(parent, name, AT_REMOVEDIR);
        if (parent >= 0) close(parent);
        free(way);
        if (kept) return;
    }
}

static int place_file(int parent, const char *name, mode_t mode, const char *data, size_t len) {
    if (remove_whatever(parent, name, 0)) return -1;
    int fd = openat(parent, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) return -1;
    int failed = 0, error = 0;
    while (len && !failed) {
        ssize_t n = write(fd, data, len);
        if (n > 0) data += n, len -= (size_t)n;
        else if (n == 0 || errno != EINTR) failed = 1, error = errno;
    }
    if (!failed && fchmod(fd, mode & 0777)) failed = 1, error = errno;
    if (close(fd) && !failed) failed = 1, error = errno;
    errno = error;
    return failed ? -1 : 0;
}

void tree_place(uint32_t id, struct cursor *c) {
    uint32_t kind = take_u32(c), mode = take_u32(c);
    char *root = take_string(c), *path = take_string(c), *name, *target = kind == PLACE_LINK ? take_string(c) : 0;
    if (c->bad || *root != '/' || !is_inside(path)) return reply_errno(id, EBADMSG, "place");
    char *whole = strdup(path);
    int top = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
    int parent = top < 0 || !whole ? -1 : open_parent(top, path, kind != DELETE, &name), failed = parent < 0;
    if (!failed && kind == PLACE_FILE) failed = place_file(parent, name, mode, c->at, (size_t)(c->end - c->at));
    else if (!failed) failed = remove_whatever(parent, name, 0);
    if (!failed && kind == PLACE_LINK) failed = symlinkat(target, parent, name);
    if (!failed && kind == DELETE) remove_empty_parents(top, whole);
    if (failed && kind == DELETE && errno == ENOENT) failed = 0;
    if (failed) reply_errno(id, errno, whole ? whole : "place");
    else reply(id, STATUS_OK, 0, 0, 0, 0, 0, 0);
    free(whole);
    if (parent >= 0) close(parent);
    if (top >= 0) close(top);
}
