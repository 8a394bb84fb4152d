/* Reads a node of xenstore by the kernel's device for so many seconds, one read after another, and says how often. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* Source: xen/include/public/io/xs_wire.h. */
enum { XS_READ = 2 };
struct xsd_sockmsg {
    uint32_t type, req_id, tx_id, len;
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static int read_all(int fd, char *data, size_t size)
{
    while (size) {
        ssize_t done = read(fd, data, size);
        if (done <= 0)
            return -1;
        data += done;
        size -= (size_t)done;
    }
    return 0;
}

int main(int argc, char **argv)
{
    static const char path[] = "name";
    double seconds = argc > 1 ? atof(argv[1]) : 1.0, start;
    struct xsd_sockmsg head = {XS_READ, 1, 0, sizeof path};
    char request[sizeof head + sizeof path], value[4096];
    unsigned long count = 0;
    int fd = open("/dev/xen/xenbus", O_RDWR);

    if (fd < 0) {
        perror("failed /dev/xen/xenbus");
        return 1;
    }
    memcpy(request, &head, sizeof head);
    memcpy(request + sizeof head, path, sizeof path);
    start = now();
    while (now() - start < seconds) {
        if (write(fd, request, sizeof request) != (ssize_t)sizeof request || read_all(fd, (char *)&head, sizeof head) ||
            head.type != XS_READ || head.len > sizeof value || read_all(fd, value, head.len)) {
            puts("failed: no answer");
            return 1;
        }
        count++;
    }
    printf("row xenstore-read %lu %.6f\n", count, now() - start);
    return 0;
}
