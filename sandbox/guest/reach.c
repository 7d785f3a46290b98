/* Whether a new sandbox reaches an address that its network must keep from it (`guest reach ADDRESS PORT`). */
#define _GNU_SOURCE
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECT_MS = 1000, TRIES = 5, PAUSE_MS = 1000 };

static int connects(const char *ip, const char *port) {
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = v4.sin_port};
    int is_v4 = inet_pton(AF_INET, ip, &v4.sin_addr) == 1;
    if (!v4.sin_port || (!is_v4 && inet_pton(AF_INET6, ip, &v6.sin6_addr) != 1)) return -1;
    int fd = socket(is_v4 ? AF_INET : AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), error = 0;
    if (fd < 0) return -1;
    socklen_t length = is_v4 ? sizeof v4 : sizeof v6, size = sizeof error;
    if (connect(fd, is_v4 ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6, length)) error = errno;
    if (error == EINPROGRESS) {
        struct pollfd p = {fd, POLLOUT, 0};
        error = ETIMEDOUT;
        if (poll(&p, 1, CONNECT_MS) == 1) getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    }
    close(fd);
    return !error;
}

/* 0: not reached; 1: reached still after a moment (some networks hold their rules a little late); 2: no address. */
int reach(const char *ip, const char *port) {
    for (int i = 0; i < TRIES; i++) {
        int reached = connects(ip, port);
        if (reached <= 0) return reached ? 2 : 0;
        nanosleep(&(struct timespec){.tv_sec = PAUSE_MS / 1000, .tv_nsec = PAUSE_MS % 1000 * 1000000}, 0);
    }
    return 1;
}
