/* Requests at a constant rate, whatever the answers do.
 *
 *     steady PORT RATE CONNECTIONS SECONDS STATUS < request
 *
 * Request i is due at start + i / RATE. It is sent on a connection that waits for nothing, or as soon as there is one,
 * and its delay counts from when it was due: a server that stalls meets all requests that would have come meanwhile,
 * where a client that waits for its answers would not have sent them ("coordinated omission"). Written to stdout: for
 * each request two 64-bit integers, when it was due (ns, CLOCK_MONOTONIC) and its delay in ns, or -1 where the answer
 * had another status than STATUS or none came. SECONDS of 0: until SIGTERM. Near a due time it waits without sleeping:
 * give it a core. Answers have a Content-Length or no body.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MOST_CONNECTIONS = 1024, HEAD_BYTES = 16384, AWAKE_NS = 50000, LATE_NS = 10000000000 };

typedef struct {
    int fd;
    int64_t due_ns;                     /* of the request that it has not answered yet; 0: it waits for one */
    size_t length;                      /* of what has been read of the head */
    long body;                          /* bytes of the body that are still to come; -1: the head is not complete */
    int closes, failed;
    char head[HEAD_BYTES + 1];
} connection;

static connection all[MOST_CONNECTIONS], *waiting[MOST_CONNECTIONS];    /* `waiting` is a ring: they take turns */
static int connections, free_first, free_count, poller, wanted_status, port;
static char request[1 << 20];
static size_t request_bytes;
static volatile sig_atomic_t stopped;
static int64_t *seen;
static size_t seen_count, seen_room;

static void stop(int signal) { (void)signal, stopped = 1; }

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void note(int64_t due_ns, int64_t delay_ns)
{
    if (seen_count + 2 > seen_room) {
        seen_room = seen_room ? 2 * seen_room : 1 << 16;
        seen = realloc(seen, seen_room * sizeof *seen);
        if (!seen)
            fail("memory");
    }
    seen[seen_count++] = due_ns;
    seen[seen_count++] = delay_ns;
}

static void open_connection(connection *c)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&to, sizeof to) < 0)
        fail("connect");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &event) < 0)
        fail("epoll");
}

static void put_back(connection *c)
{
    c->due_ns = 0;
    waiting[(free_first + free_count++) % connections] = c;
}

static void ask(int64_t due_ns)
{
    connection *c = waiting[free_first];
    free_first = (free_first + 1) % connections, free_count--;
    c->due_ns = due_ns, c->length = 0, c->body = -1, c->closes = c->failed = 0;
    if (send(c->fd, request, request_bytes, MSG_NOSIGNAL) != (ssize_t)request_bytes)
        c->failed = 1;                  /* the end of the connection will be read */
}

static void answered(connection *c)
{
    if (c->due_ns)
        note(c->due_ns, c->failed ? -1 : now_ns() - c->due_ns);
    if (c->closes) {
        close(c->fd);
        open_connection(c);
    }
    if (c->due_ns)
        put_back(c);
}

/* A complete head says how much follows it. Bytes of the body that came with it are counted off. */
static void read_head(connection *c)
{
    c->head[c->length] = 0;
    char *end = strstr(c->head, "\r\n\r\n"), *field;
    if (!end) {
        if (c->length == HEAD_BYTES)
            c->failed = c->closes = 1, c->body = 0;
        return;
    }
    size_t rest = c->length - (size_t)(end + 4 - c->head);
    end[2] = 0;
    field = strcasestr(c->head, "\r\nContent-Length:");
    c->body = (field ? atol(field + 17) : 0) - (long)rest;
    c->closes = strcasestr(c->head, "\r\nConnection: close") != NULL;
    c->failed |= c->length < 12 || atoi(c->head + 9) != wanted_status;
}

static void receive(connection *c)
{
    char body[65536];
    ssize_t got = c->body < 0 ? recv(c->fd, c->head + c->length, HEAD_BYTES - c->length, MSG_DONTWAIT)
                              : recv(c->fd, body, sizeof body, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0)
        c->failed = c->closes = 1, c->body = 0;
    else if (c->body < 0)
        c->length += (size_t)got, read_head(c);
    else
        c->body -= got;
    if (c->body == 0)
        answered(c);
}

/* Until something can be read, or the next request is nearly due. */
static void wait_until(int64_t due_ns)
{
    struct epoll_event ready[64];
    int64_t left_ns = due_ns - now_ns() - AWAKE_NS;
    if (left_ns > 0) {
        struct pollfd any = {.fd = poller, .events = POLLIN};
        struct timespec left = {.tv_sec = left_ns / 1000000000, .tv_nsec = left_ns % 1000000000};
        ppoll(&any, 1, &left, NULL);
    }
    int count = epoll_wait(poller, ready, 64, 0);
    for (int i = 0; i < count; i++)
        receive(ready[i].data.ptr);
}

int main(int count, char **given)
{
    if (count != 6)
        return fputs("steady PORT RATE CONNECTIONS SECONDS STATUS < request\n", stderr), 2;
    double every_ns = 1e9 / atof(given[2]);
    int64_t length_ns = (int64_t)(atof(given[4]) * 1e9);
    port = atoi(given[1]), connections = atoi(given[3]), wanted_status = atoi(given[5]);
    if (connections < 1 || connections > MOST_CONNECTIONS)
        return fputs("1 to 1024 connections\n", stderr), 2;
    request_bytes = fread(request, 1, sizeof request, stdin);
    poller = epoll_create1(0);
    signal(SIGTERM, stop);
    for (int i = 0; i < connections; i++)
        open_connection(&all[i]), put_back(&all[i]);

    int64_t start_ns = now_ns(), next_ns = start_ns, end_ns = length_ns ? start_ns + length_ns : INT64_MAX;
    for (uint64_t sent = 0; next_ns < end_ns && !stopped;) {
        while (free_count && next_ns <= now_ns() && next_ns < end_ns) {
            ask(next_ns);
            next_ns = start_ns + (int64_t)((double)++sent * every_ns);
        }
        wait_until(free_count ? next_ns : now_ns() + 1000000);
    }
    for (int64_t late_ns = now_ns() + LATE_NS; free_count < connections && now_ns() < late_ns;)
        wait_until(now_ns() + 1000000);
    for (int i = 0; i < connections; i++)
        if (all[i].due_ns)              /* no answer came */
            note(all[i].due_ns, -1);
    fwrite(seen, sizeof *seen, seen_count, stdout);
    return 0;
}
