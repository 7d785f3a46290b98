/* The loop: waits for a frame, a dead child, command output, or a deadline. Ends when its stdin ends or when its owner
 * has been silent for the TTL; the kernel then kills everything else in the pid namespace.
 *
 * Whoever holds stdin may hand the conversation to another process (OP_OWNER): requests then come over the connection
 * that came along, and are answered there, until it ends or another takes its place. The sandbox outlives it. */
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { DOOR_WAIT_MS = 60000 };

struct end {
    int in, out, broken;
    char *buffer; /* what came and is not yet a whole frame */
    size_t used, size;
};

static struct end ends[2] = {{.in = -1, .out = -1}, {.in = -1, .out = -1}}; /* stdin and stdout; who was handed it */
static struct end *asker; /* whose request is at work; 0: none, and what is ready goes to the owner */
static int handed_over, passed = -1 /* came with the bytes read last */, wake_pipe[2];
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

/* Nobody reads there any more. */
static void give_up(struct end *e, int status) {
    if (e == &ends[0]) leave(status);
    e->broken = 1;
}

static void send_all(struct end *e, const char *data, size_t len) {
    while (len && e->out >= 0 && !e->broken) {
        ssize_t n = write(e->out, data, len);
        if (n > 0) {
            data += n;
            len -= (size_t)n;
        } else if (errno == EAGAIN) {
            struct pollfd p = {e->out, POLLOUT, 0};
            if (poll(&p, 1, ttl_ms ? (int)ttl_ms : -1) == 0) give_up(e, 3);
        } else if (errno != EINTR) {
            give_up(e, 0);
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
    send_all(asker ? asker : &ends[handed_over], frame, 4 + (size_t)len);
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

static void say_hello(void) {
    uint32_t hello[2] = {PROTOCOL_VERSION, (uint32_t)getpid()};
    reply(0, STATUS_OK, hello, sizeof hello, 0, 0, 0, 0);
}

/* An owner is gone: nobody will hear what its commands did, so they do no more; but the one that lasts and its
 * connections wait for whoever comes next. */
static void end_conversation(void) {
    struct end *e = &ends[1];
    if (e->in < 0) return;
    close(e->in), free(e->buffer);
    *e = (struct end){.in = -1, .out = -1};
    jobs_forget();
    tunnel_wait();
}

static void change_owner(uint32_t id) {
    if (asker != &ends[0] || passed < 0) return reply_errno(id, EBADF, "a new owner");
    end_conversation();
    ends[1].in = ends[1].out = passed, passed = -1, handed_over = 1;
    reply(id, STATUS_OK, 0, 0, 0, 0, 0, 0);
    asker = 0;
    say_hello();
}

static void handle(uint32_t id, int op, char *payload, size_t len) {
    struct cursor c = {payload, payload + len, 0};
    switch (op) {
    case OP_OWNER: change_owner(id); break;
    case OP_EXEC: job_start(id, &c, 0); break;
    case OP_LASTING: job_start(id, &c, 1); break;
    case OP_REJOIN: job_rejoin(id); break;
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

static ssize_t receive(struct end *e, char *at, size_t room) {
    static int is_pipe;
    if (e != &ends[0] || is_pipe) return read(e->in, at, room);
    union {
        char space[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control;
    struct iovec piece = {at, room};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t n = recvmsg(e->in, &message, MSG_CMSG_CLOEXEC);
    if (n < 0 && errno == ENOTSOCK) return is_pipe = 1, read(e->in, at, room);
    struct cmsghdr *head = n > 0 ? CMSG_FIRSTHDR(&message) : 0;
    if (head && head->cmsg_level == SOL_SOCKET && head->cmsg_type == SCM_RIGHTS) {
        if (passed >= 0) close(passed);
        memcpy(&passed, CMSG_DATA(head), sizeof passed);
    }
    return n;
}

/* Read what came and handle the whole frames in it. The buffer shrinks again after a large frame. */
static void read_frames(struct end *e) {
    if (e->size - e->used < 1 << 16) {
        e->size = e->size ? e->size * 2 : 1 << 17;
        if (e->size > 2 * (size_t)MAX_FRAME || !(e->buffer = realloc(e->buffer, e->size))) _exit(5);
    }
    ssize_t n = receive(e, e->buffer + e->used, e->size - e->used);
    if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
    if (n <= 0) return give_up(e, 0);
    e->used += (size_t)n, last_heard = now_ms();
    size_t at = 0;
    while (e->used - at >= 9 && !e->broken) {
        uint32_t len, id;
        memcpy(&len, e->buffer + at, 4), memcpy(&id, e->buffer + at + 4, 4);
        if (len < 5 || len > MAX_FRAME) return give_up(e, 6); /* not our owner's words */
        if (e->used - at - 4 < len) break;
        asker = e;
        handle(id, (unsigned char)e->buffer[at + 8], e->buffer + at + 9, len - 5);
        asker = 0;
        at += 4 + (size_t)len;
        last_heard = now_ms(); /* however long that took, its owner was not silent meanwhile */
    }
    memmove(e->buffer, e->buffer + at, e->used - at), e->used -= at;
    if (!e->used && e->size > 1 << 20) free(e->buffer), e->buffer = 0, e->size = 0;
}

static void on_child(int signal) {
    (void)signal;
    int saved = errno;
    if (write(wake_pipe[1], "c", 1) < 0) errno = saved; /* a full pipe wakes just as well */
    errno = saved;
}

static void set_up(uint64_t max_processes) {
    ends[0].in = fcntl(0, F_DUPFD_CLOEXEC, 10), ends[0].out = fcntl(1, F_DUPFD_CLOEXEC, 10);
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (ends[0].in < 0 || ends[0].out < 0 || null < 0 || pipe2(wake_pipe, O_CLOEXEC | O_NONBLOCK)) _exit(7);
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

/* `enter`: carry the words of an owner (door.c). `reach`: see reach.c. `wait`: for such an owner, and then as below.
 * argv: TTL in seconds (0: none), most processes (0: limited elsewhere), MiB above which all commands are killed (0:
 * limited elsewhere; only as pid 1, for anywhere else the whole host would be measured), work directory to make, and any
 * word where `fallocate` is refused. */
int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "enter")) return door_enter();
    if (argc == 4 && !strcmp(argv[1], "reach")) return reach(argv[2], argv[3]);
    if (argc > 1 && !strcmp(argv[1], "wait")) {
        if (door_wait(DOOR_WAIT_MS)) return 14;
        argc--, argv++;
    }
    uint64_t arg[3] = {0, 0, 0};
    for (int i = 1; i < argc && i <= 3; i++) arg[i - 1] = strtoull(argv[i], 0, 10);
    ttl_ms = arg[0] * 1000;
    uint64_t max_memory = arg[2] << 20;
    if (max_memory && getpid() != 1) return dprintf(2, "a memory limit needs a pid namespace of its own\n"), 10;
    if (argc > 4) make_dirs(argv[4]);
    if (install_filter(argc > 5)) return 8;
    set_up(arg[1]);
    last_heard = now_ms();
    say_hello();
    for (;;) {
        struct pollfd fds[3 + MAX_JOBS + MAX_DRAINS + MAX_LINKS + 1] = {
            {ends[0].in, POLLIN, 0}, {ends[1].in, POLLIN, 0}, {wake_pipe[0], POLLIN, 0}};
        int num_jobs = jobs_poll(fds + 3), num_links = tunnel_poll(fds + 3 + num_jobs);
        uint64_t now = now_ms(), wake = ttl_ms ? last_heard + ttl_ms : now + 3600000;
        if (jobs_deadline() < wake) wake = jobs_deadline();
        if (max_memory && jobs_running() && now + 100 < wake) wake = now + 100;
        if (poll(fds, (nfds_t)(3 + num_jobs + num_links), wake > now ? (int)(wake - now) : 0) < 0 && errno != EINTR) _exit(9);
        char drop[64];
        while (read(wake_pipe[0], drop, sizeof drop) > 0) {}
        jobs_feed(fds + 3, num_jobs);
        tunnel_feed(fds + 3 + num_jobs, num_links);
        if (fds[1].revents && !ends[1].broken) read_frames(&ends[1]);
        if (ends[1].broken) end_conversation();
        if (fds[0].revents) read_frames(&ends[0]);
        jobs_reap();
        now = now_ms();
        jobs_expire(now);
        if (max_memory && memory_in_use() > max_memory) job_kill_all();
        if (ttl_ms && now > last_heard + ttl_ms) leave(3);
    }
}
