/* How an owner gets to a guest whose stdin nobody can hold: in a pod, where what the first process says is logged, and a
 * second process can be started from outside at any time.
 *
 *     owner  <- stdin, stdout of `guest enter` ->  a socket  <-  the guest, pid 1, begun as `guest wait ...`
 *
 * The guest takes one conversation, before any command runs, and never another: nobody inside can be its owner. The
 * process that carries it is of a user of its own, and what runs inside cannot signal it (CAP_KILL is the guest's alone),
 * nor trace it; its end is the guest's. */
#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { CARRIER = 65533, CONNECT_MS = 30000, PIECE = 1 << 16 };

static pid_t carrier; /* 0: the owner holds stdin itself */

pid_t door_carrier(void) { return carrier; }

static socklen_t door_name(struct sockaddr_un *address) {
    static const char name[] = "\0longhaul-guest"; /* abstract: no file that could be moved */
    *address = (struct sockaddr_un){.sun_family = AF_UNIX};
    memcpy(address->sun_path, name, sizeof name - 1);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + sizeof name - 1);
}

/* Wait for the owner; its conversation becomes stdin and stdout. 0, or not: nobody came. */
int door_wait(int wait_ms) {
    struct sockaddr_un address;
    socklen_t length = door_name(&address);
    int door = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (door < 0 || bind(door, (struct sockaddr *)&address, length) || listen(door, 1)) return -1;
    struct pollfd p = {door, POLLIN, 0};
    if (poll(&p, 1, wait_ms) != 1) return -1;
    int fd = accept4(door, 0, 0, SOCK_CLOEXEC);
    struct ucred peer;
    socklen_t size = sizeof peer;
    if (fd < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) || peer.uid != CARRIER) return -1;
    carrier = peer.pid;
    close(door);
    return dup2(fd, 0) < 0 || dup2(fd, 1) < 0 || close(fd);
}

/* Without CAP_KILL, and with the ids of all whose processes run here, so that -1 is everybody but the carrier: whatever
 * forks meanwhile is hit as well, as no list of processes would. */
void door_signal_all(int signal, uid_t user) {
    syscall(SYS_setresuid, -1, user ? user : 1, -1);
    kill(-1, signal);
    syscall(SYS_setresuid, -1, 0, -1);
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0); /* a change of ids may have changed that */
}

struct flow { /* one direction */
    int from, to, ended;
    char data[PIECE];
    size_t at, end;
};

/* Move what can be moved. 0 while there may be more. */
static int pump(struct flow *f) {
    if (f->at == f->end && !f->ended) {
        ssize_t n = read(f->from, f->data, sizeof f->data);
        if (n > 0) f->at = 0, f->end = (size_t)n;
        else if (n == 0 || (errno != EAGAIN && errno != EINTR)) f->ended = 1;
    }
    if (f->at < f->end) {
        ssize_t n = write(f->to, f->data + f->at, f->end - f->at);
        if (n > 0) f->at += (size_t)n;
        else if (n < 0 && errno != EAGAIN && errno != EINTR) return 1;
    }
    return f->ended && f->at == f->end;
}

static int knock(void) {
    struct sockaddr_un address;
    socklen_t length = door_name(&address);
    for (int waited = 0; waited < CONNECT_MS; waited += 10) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0) return -1;
        if (!connect(fd, (struct sockaddr *)&address, length)) return fd;
        close(fd);
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, 0);
    }
    return -1;
}

/* Carry a conversation until one of its ends is gone. */
int door_enter(void) {
    static struct flow in, out;
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    signal(SIGPIPE, SIG_IGN);
    if (syscall(SYS_setresgid, CARRIER, CARRIER, CARRIER) || syscall(SYS_setresuid, CARRIER, CARRIER, CARRIER)) return 11;
    prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
    int fd = knock();
    if (fd < 0) return dprintf(2, "no command server answers inside\n"), 12;
    in = (struct flow){.from = 0, .to = fd}, out = (struct flow){.from = fd, .to = 1};
    for (int i = 0; i < 2; i++) fcntl(i, F_SETFL, O_NONBLOCK);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    for (;;) {
        if (pump(&in) || pump(&out)) return 0;
        struct pollfd p[4] = {
            {in.at == in.end ? in.from : -1, POLLIN, 0},
            {in.at < in.end ? in.to : -1, POLLOUT, 0},
            {out.at == out.end ? out.from : -1, POLLIN, 0},
            {out.at < out.end ? out.to : -1, POLLOUT, 0},
        };
        if (poll(p, 4, -1) < 0 && errno != EINTR) return 13;
    }
}
