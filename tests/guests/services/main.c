/*
 * services: uses xenstore and console without end, while domain 0's services are killed. No answer is lost, none comes
 * twice, a transaction happens whole or not at all, watches stay, and no line of output is lost. Ends when the node
 * data/stop is written.
 *
 * run-by: test_services
 */
#include "guest.h"
#include <xen/io/xs_wire.h>

static volatile struct xenstore_domain_interface *ring;
static u32 last_req_id;
static bool is_stopped;
static char payload[XENSTORE_PAYLOAD_MAX + 1];

static void notify(void)
{
    struct evtchn_send send = {.port = start_info->store_evtchn};
    hypercall_evtchn(EVTCHNOP_send, &send);
}

static void wait(void)
{
    evtchn_port_t port = start_info->store_evtchn;
    struct sched_poll poll = {.nr_ports = 1, .timeout = 0};
    volatile shared_info_t *shared = map_shared_info();
    poll.timeout = pvclock_ns(shared) + 200000000;
    set_xen_guest_handle(poll.ports, &port);
    hypercall_sched(SCHEDOP_poll, &poll);
    __atomic_and_fetch(&shared->evtchn_pending[port / 64], ~(1ul << (port % 64)), __ATOMIC_SEQ_CST);
}

static void put(const void *data, u32 nr_bytes)
{
    const char *bytes = data;
    while (nr_bytes > 0) {
        u32 prod = ring->req_prod;
        if (prod - ring->req_cons == XENSTORE_RING_SIZE) {
            notify();
            wait();
            continue;
        }
        ring->req[MASK_XENSTORE_IDX(prod)] = *bytes++;
        nr_bytes--;
        asm volatile("" ::: "memory");
        ring->req_prod = prod + 1;
    }
}

static void get(void *data, u32 nr_bytes)
{
    char *bytes = data;
    while (nr_bytes > 0) {
        u32 cons = ring->rsp_cons;
        if (cons == ring->rsp_prod) {
            notify();
            wait();
            continue;
        }
        *bytes++ = ring->rsp[MASK_XENSTORE_IDX(cons)];
        nr_bytes--;
        asm volatile("" ::: "memory");
        ring->rsp_cons = cons + 1;
    }
}

/* Sends a request and returns the type of its answer, which is in `payload`. Events that come before are taken. */
static u32 ask(u32 type, u32 tx_id, const char *data, u32 nr_bytes)
{
    struct xsd_sockmsg header = {.type = type, .req_id = ++last_req_id, .tx_id = tx_id, .len = nr_bytes};
    put(&header, sizeof(header));
    put(data, nr_bytes);
    notify();
    for (;;) {
        get(&header, sizeof(header));
        if (header.len > XENSTORE_PAYLOAD_MAX) {
            print("a message of %u bytes\n", header.len);
            finish("FAILURE");
        }
        get(payload, header.len);
        payload[header.len] = 0;
        if (header.type == XS_WATCH_EVENT) {
            if (memcmp(payload, "data/stop", 9) == 0)
                is_stopped = true;
            continue;
        }
        if (header.req_id != last_req_id) {
            print("answer %u to request %u\n", header.req_id, last_req_id);
            finish("FAILURE");
        }
        return header.type;
    }
}

static u32 length(const char *text)
{
    u32 n = 0;
    while (text[n])
        n++;
    return n;
}

static u32 ask_path(u32 type, u32 tx_id, const char *path) { return ask(type, tx_id, path, length(path) + 1); }

static void write_number(u32 tx_id, const char *path, u32 number)
{
    char data[64];
    u32 n = length(path) + 1;
    memcpy(data, path, n);
    for (u32 scale = 1000000000; scale; scale /= 10)
        data[n++] = (char)('0' + number / scale % 10);
    ask(XS_WRITE, tx_id, data, n);
}

static u32 parse(void)
{
    u32 number = 0;
    for (const char *digit = payload; *digit >= '0' && *digit <= '9'; digit++)
        number = number * 10 + (u32)(*digit - '0');
    return number;
}

static u32 read_number(const char *path)
{
    ask_path(XS_READ, 0, path);
    return parse();
}

static u32 nr_retries;

static void both(u32 number)
{
    for (;;) {
        check_equal(ask(XS_TRANSACTION_START, 0, "", 1), XS_TRANSACTION_START, "TRANSACTION_START");
        u32 tx_id = parse();
        write_number(tx_id, "data/a", number);
        write_number(tx_id, "data/b", number);
        if (ask(XS_TRANSACTION_END, tx_id, "T", 2) == XS_TRANSACTION_END)
            return;
        check(memcmp(payload, "EAGAIN", 7) == 0, payload);
        nr_retries++;
    }
}

void test(void)
{
    static const char watch[] = "data/stop\0token";

    ring = va_of_mfn(start_info->store_mfn);
    check_equal(ask(XS_WATCH, 0, watch, sizeof(watch)), XS_WATCH, "WATCH");
    u32 number = 0;
    while (ask_path(XS_READ, 0, "data/stop") == XS_ERROR) {
        number++;
        both(number);
        check_equal(read_number("data/a"), number, "what was committed is there");
        check_equal(read_number("data/b"), number, "all of it");
        print("line %u\n", number);
    }
    for (int i = 0; i < 100 && !is_stopped; i++)
        ask_path(XS_READ, 0, "data/stop");
    check(is_stopped, "the watch is still there");
    print("lines %u retries %u\n", number, nr_retries);
}
