/* A port on the sandbox's own loopback whose connections are carried over the owner's channel.
 *
 * OP_LISTEN is answered with the port (u32); every frame about a connection carries that request's id, both ways:
 * u32 link | u8 kind | data. A side sends at most WINDOW bytes that the other has not yet granted again with LINK_MORE
 * (u32), so neither a flood nor an answer that is never read costs more than that; what breaks the rule ends the link.
 */
#define _GNU_SOURCE
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LINK_OPEN = 1, LINK_DATA = 2, LINK_END = 3, LINK_GONE = 4, LINK_MORE = 5 };

#define WINDOW (1u << 18)
#define PIECE (1u << 16)
#define BACKLOG 16

struct link {
    int fd; /* -1: a free slot */
    uint32_t id, may_send, held, at, written;
    char *out;             /* a ring of WINDOW bytes on their way into the sandbox: `held` of them from `at` */
    int read_all, end_out; /* the sandbox's side has ended; end ours once `held` is written */
};

static struct link links[MAX_LINKS];
static int listener = -1;
static uint32_t channel, next_link = 1;

static void tell(const struct link *l, uint8_t kind, const void *data, size_t len) {
    char head[5];
    memcpy(head, &l->id, 4), head[4] = (char)kind;
    reply(channel, STATUS_OK, head, sizeof head, data, len, 0, 0);
}

static void drop(struct link *l) {
    close(l->fd), free(l->out);
    memset(l, 0, sizeof *l), l->fd = -1;
}

static struct link *link_of(uint32_t id) {
    for (int i = 0; i < MAX_LINKS; i++)
        if (links[i].fd >= 0 && links[i].id == id) return &links[i];
    return 0;
}

void tunnel_listen(uint32_t id) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    if (listener >= 0) return reply_errno(id, EBUSY, "there is a tunnel already");
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, len) || listen(fd, BACKLOG) ||
        getsockname(fd, (struct sockaddr *)&a, &len)) {
        reply_errno(id, errno, "listen");
        if (fd >= 0) close(fd);
        return;
    }
    for (int i = 0; i < MAX_LINKS; i++) links[i].fd = -1;
    uint32_t port = ntohs(a.sin_port);
    listener = fd, channel = id;
    reply(id, STATUS_OK, &port, sizeof port, 0, 0, 0, 0);
}

void tunnel_close(void) {
    if (listener < 0) return;
    for (int i = 0; i < MAX_LINKS; i++)
        if (links[i].fd >= 0) drop(&links[i]);
    close(listener), listener = -1;
}

static void take_connection(void) {
    struct link *l = 0;
    for (int i = 0; i < MAX_LINKS && !l; i++)
        if (links[i].fd < 0) l = &links[i];
    int fd = l ? accept4(listener, 0, 0, SOCK_CLOEXEC | SOCK_NONBLOCK) : -1;
    if (fd < 0) return;
    *l = (struct link){.fd = fd, .id = next_link++, .may_send = WINDOW, .out = malloc(WINDOW)};
    if (!l->out) drop(l);
    else tell(l, LINK_OPEN, 0, 0);
}

/* From the sandbox to the owner. */
static void read_link(struct link *l) {
    char data[PIECE];
    ssize_t n = read(l->fd, data, l->may_send < PIECE ? l->may_send : PIECE);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n > 0) {
        l->may_send -= (uint32_t)n;
        tell(l, LINK_DATA, data, (size_t)n);
    } else if (n == 0) {
        l->read_all = 1;
        tell(l, LINK_END, 0, 0);
        if (l->end_out && !l->held) drop(l);
    } else {
        tell(l, LINK_GONE, 0, 0);
        drop(l);
    }
}

/* From the owner into the sandbox: what is held. */
static void write_link(struct link *l) {
    uint32_t first = WINDOW - l->at < l->held ? WINDOW - l->at : l->held;
    ssize_t n = first ? send(l->fd, l->out + l->at, first, MSG_NOSIGNAL) : 0;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n < 0) {
        tell(l, LINK_GONE, 0, 0);
        return drop(l);
    }
    l->at = (l->at + (uint32_t)n) % WINDOW, l->held -= (uint32_t)n, l->written += (uint32_t)n;
    if (l->written >= WINDOW / 4 || (l->written && !l->held)) {
        tell(l, LINK_MORE, &l->written, 4);
        l->written = 0;
    }
    if (l->held || !l->end_out) return;
    shutdown(l->fd, SHUT_WR);
    if (l->read_all) drop(l);
}

void tunnel_frame(struct cursor *c) {
    uint32_t id = take_u32(c);
    if (c->bad || c->at == c->end) return;
    int kind = (unsigned char)*c->at++;
    size_t len = (size_t)(c->end - c->at);
    struct link *l = link_of(id);
    if (!l) return; /* it ended while this was on its way */
    if (kind == LINK_DATA && len <= WINDOW - l->held && !l->end_out) {
        uint32_t end = (l->at + l->held) % WINDOW, first = WINDOW - end < len ? WINDOW - end : (uint32_t)len;
        memcpy(l->out + end, c->at, first), memcpy(l->out, c->at + first, len - first);
        l->held += (uint32_t)len;
        write_link(l);
    } else if (kind == LINK_MORE && len == 4) {
        uint32_t more = take_u32(c);
        if (more <= WINDOW - l->may_send) l->may_send += more;
    } else if (kind == LINK_END) {
        l->end_out = 1;
        write_link(l);
    } else {
        drop(l);
    }
}

int tunnel_poll(struct pollfd *fds) {
    int n = 0, room = 0;
    if (listener < 0) return 0;
    for (int i = 0; i < MAX_LINKS; i++) {
        struct link *l = &links[i];
        if (l->fd < 0) {
            room = 1;
            continue;
        }
        short events = (short)((!l->read_all && l->may_send ? POLLIN : 0) | (l->held ? POLLOUT : 0));
        if (events) fds[n++] = (struct pollfd){l->fd, events, 0};
    }
    if (room) fds[n++] = (struct pollfd){listener, POLLIN, 0};
    return n;
}

void tunnel_feed(const struct pollfd *fds, int num_fds) {
    for (int k = 0; k < num_fds; k++) {
        if (!fds[k].revents) continue;
        if (fds[k].fd == listener) {
            take_connection();
            continue;
        }
        struct link *l = 0;
        for (int i = 0; i < MAX_LINKS && !l; i++)
            if (links[i].fd == fds[k].fd) l = &links[i];
        if (l && fds[k].revents & POLLOUT) write_link(l);
        if (l && l->fd == fds[k].fd && !l->read_all && l->may_send && fds[k].revents & (POLLIN | POLLHUP | POLLERR))
            read_link(l);
    }
}
