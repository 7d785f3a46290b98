/* The loop: waits for a frame, a dead child, command output, or a deadline. Ends when its stdin ends or when its owner
 * has been silent for the TTL; the kernel then kills everything else in the pid namespace. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static int in_fd, out_fd, wake_pipe[2];
static uint64_t ttl_ms, last_heard;

uint64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* As pid 1 we take the namespace with us; elsewhere (the unisolated backend) our commands have to be killed. */
static void leave(int status) {
    if (getpid() != 1) job_kill_all();
    _exit(status);
}

static void send_all(const char *data, size_t len) {
    while (len) {
        ssize_t n = write(out_fd, data, len);
        if (n > 0) {
            data += n;
            len -= (size_t)n;
        } else if (errno == EAGAIN) {
            struct pollfd p = {out_fd, POLLOUT, 0};
            if (poll(&p, 1, ttl_ms ? (int)ttl_ms : -1) == 0) leave(3); /* the owner reads no more */
        } else if (errno != EINTR) {
            leave(0);
        }
    }
}

void reply(uint32_t id, uint8_t status, const void *a, size_t a_len, const void *b, size_t b_len, const void *c,
           size_t c_len) {
    uint32_t len = (uint32_t)(5 + a_len + b_len + c_len);
    char *frame = malloc(4 + (size_t)len), *at = frame;
    if (!frame) _exit(4);
    memcpy(at, &len, 4), memcpy(at + 4, &id, 4), at[8] = (char)status, at += 9;
    if (a_len) memcpy(at, a, a_len), at += a_len;
    if (b_len) memcpy(at, b, b_len), at += b_len;
    if (c_len) memcpy(at, c, c_len);
    send_all(frame, 4 + (size_t)len);
    free(frame);
}

void reply_errno(uint32_t id, int error, const char *what) {
    char text[512];
    snprintf(text, sizeof text, "%.200s: %s", what, strerror(error));
    reply(id, STATUS_ERROR, &error, 4, text, strlen(text), 0, 0);
}

uint32_t take_u32(struct cursor *c) {
    uint32_t v = 0;
    if (c->bad || c->end - c->at < 4) return c->bad = 1, 0;
    memcpy(&v, c->at, 4), c->at += 4;
    return v;
}

uint64_t take_u64(struct cursor *c) {
    uint64_t low = take_u32(c);
    return low | (uint64_t)take_u32(c) << 32;
}

char *take_string(struct cursor *c) {
    uint32_t len = take_u32(c);
    char *s = c->at;
    if (c->bad || (uint64_t)(c->end - c->at) < (uint64_t)len + 1 || s[len]) return c->bad = 1, "";
    c->at += len + 1;
    return s;
}

static void handle(uint32_t id, int op, char *payload, size_t len) {
    struct cursor c = {payload, payload + len, 0};
    switch (op) {
    case OP_EXEC: job_start(id, &c); break;
    case OP_WRITE: user_files(1); file_write(id, &c); user_files(0); break;
    case OP_READ: user_files(1); file_read(id, &c); user_files(0); break;
    case OP_KILL: job_kill(take_u32(&c)); break; /* no reply: the owner has stopped waiting */
    case OP_KILL_ALL: job_kill_all(); reply(id, STATUS_OK, 0, 0, 0, 0, 0, 0); break;
    case OP_STOP:
        if (jobs_stop()) reply_errno(id, EBUSY, "processes that do not stop");
        else reply(id, STATUS_OK, 0, 0, 0, 0, 0, 0);
        break;
    case OP_CONTINUE: jobs_continue(); reply(id, STATUS_OK, 0, 0, 0, 0, 0, 0); break;
    case OP_LISTEN: tunnel_listen(id); break;
    case OP_TUNNEL: tunnel_frame(&c); break; /* no reply */
    case OP_LIST: tree_list(id, &c); break;
    case OP_FETCH: tree_fetch(id, &c); break;
    case OP_PLACE: tree_place(id, &c); break;
    case OP_HAND_OVER: user_hand_over(id, &c); break;
    case OP_PING: reply(id, STATUS_OK, 0, 0, 0, 0, 0, 0); break;
    default: reply_errno(id, ENOSYS, "unknown op");
    }
}

/* Read what came and handle the whole frames in it. The buffer shrinks again after a large frame. */
static void read_frames(void) {
    static char *buffer;
    static size_t used, size;
    if (size - used < 1 << 16) {
        size = size ? size * 2 : 1 << 17;
        if (size > 2 * (size_t)MAX_FRAME || !(buffer = realloc(buffer, size))) _exit(5);
    }
    ssize_t n = read(in_fd, buffer + used, size - used);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (n <= 0) leave(0);
    used += (size_t)n, last_heard = now_ms();
    size_t at = 0;
    while (used - at >= 9) {
        uint32_t len, id;
        memcpy(&len, buffer + at, 4), memcpy(&id, buffer + at + 4, 4);
        if (len < 5 || len > MAX_FRAME) leave(6); /* not our owner's words */
        if (used - at - 4 < len) break;
        handle(id, (unsigned char)buffer[at + 8], buffer + at + 9, len - 5);
        at += 4 + (size_t)len;
        last_heard = now_ms(); /* however long that took, its owner was not silent meanwhile */
    }
    memmove(buffer, buffer + at, used - at), used -= at;
    if (!used && size > 1 << 20) free(buffer), buffer = 0, size = 0;
}

static void on_child(int signal) {
    (void)signal;
    int saved = errno;
    if (write(wake_pipe[1], "c", 1) < 0) errno = saved; /* a full pipe wakes just as well */
    errno = saved;
}

static void set_up(uint64_t max_processes) {
    in_fd = fcntl(0, F_DUPFD_CLOEXEC, 10), out_fd = fcntl(1, F_DUPFD_CLOEXEC, 10);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (in_fd < 0 || out_fd < 0 || null < 0 || pipe2(wake_pipe, O_CLOEXEC | O_NONBLOCK)) _exit(7);
    dup2(null, 0), dup2(null, 1), dup2(null, 2);
    prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* commands of the same uid may not look into these pipes, nor trace */
    struct rlimit none = {0, 0}, files = {4096, 4096}, processes = {max_processes, max_processes};
    setrlimit(RLIMIT_CORE, &none);
    setrlimit(RLIMIT_NOFILE, &files);
    if (max_processes) setrlimit(RLIMIT_NPROC, &processes);
    struct sigaction action = {.sa_handler = on_child, .sa_flags = SA_RESTART | SA_NOCLDSTOP};
    sigaction(SIGCHLD, &action, 0);
    signal(SIGPIPE, SIG_IGN);
    umask(022);
}

/* argv: TTL in seconds (0: none), most processes (0: limited elsewhere), MiB above which all commands are killed (0:
 * limited elsewhere; only as pid 1, for anywhere else the whole host would be measured), work directory to make, and any
 * word where `fallocate` is refused. */
int main(int argc, char **argv) {
    uint64_t arg[3] = {0, 0, 0};
    for (int i = 1; i < argc && i <= 3; i++) arg[i - 1] = strtoull(argv[i], 0, 10);
    ttl_ms = arg[0] * 1000;
    uint64_t max_memory = arg[2] << 20;
    if (max_memory && getpid() != 1) return dprintf(2, "a memory limit needs a pid namespace of its own\n"), 10;
    if (argc > 4) make_dirs(argv[4]);
    if (install_filter(argc > 5)) return 8;
    set_up(arg[1]);
    last_heard = now_ms();
    uint32_t hello[2] = {PROTOCOL_VERSION, (uint32_t)getpid()};
    reply(0, STATUS_OK, hello, sizeof hello, 0, 0, 0, 0);
    for (;;) {
        struct pollfd fds[2 + MAX_JOBS + MAX_DRAINS + MAX_LINKS + 1] = {{in_fd, POLLIN, 0}, {wake_pipe[0], POLLIN, 0}};
        int num_jobs = jobs_poll(fds + 2), num_links = tunnel_poll(fds + 2 + num_jobs);
        uint64_t now = now_ms(), wake = ttl_ms ? last_heard + ttl_ms : now + 3600000;
        if (jobs_deadline() < wake) wake = jobs_deadline();
        if (max_memory && jobs_running() && now + 100 < wake) wake = now + 100;
        if (poll(fds, (nfds_t)(2 + num_jobs + num_links), wake > now ? (int)(wake - now) : 0) < 0 && errno != EINTR) _exit(9);
        char drop[64];
        while (read(wake_pipe[0], drop, sizeof drop) > 0) {}
        jobs_feed(fds + 2, num_jobs);
        tunnel_feed(fds + 2 + num_jobs, num_links);
        if (fds[0].revents) read_frames();
        jobs_reap();
        now = now_ms();
        jobs_expire(now);
        if (max_memory && memory_in_use() > max_memory) job_kill_all();
        if (ttl_ms && now > last_heard + ttl_ms) leave(3);
    }
}
