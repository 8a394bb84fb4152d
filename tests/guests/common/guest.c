/* Console, verdicts and traps of the small PV guests. */
#include "guest.h"

start_info_t *start_info;
struct caught caught;
static struct xencons_interface *console_ring;
static unsigned nr_failures;
static void (*handlers[NR_TRAPS])(struct frame *frame);

void *memset(void *to, int byte, size_t nr_bytes)
{
    void *start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(nr_bytes) : "a"(byte) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, size_t nr_bytes)
{
    void *start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(nr_bytes) : : "memory");
    return start;
}

int memcmp(const void *a, const void *b, size_t nr_bytes)
{
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < nr_bytes; i++)
        if (x[i] != y[i])
            return x[i] - y[i];
    return 0;
}

void write_console(const char *text, size_t nr_bytes)
{
    struct evtchn_send send = {.port = start_info->console.domU.evtchn};

    if (console_ring == NULL) { /* as domain 0: the hypervisor's own console */
        hypercall4(__HYPERVISOR_console_io, CONSOLEIO_write, nr_bytes, PTR(text), 0);
        return;
    }
    u32 prod = console_ring->out_prod;

    while (nr_bytes > 0) {
        u32 used = prod - *(volatile XENCONS_RING_IDX *)&console_ring->out_cons;
        if (used >= sizeof(console_ring->out)) {
            hypercall_evtchn(EVTCHNOP_send, &send);
            hypercall_sched(SCHEDOP_yield, NULL);
            continue;
        }
        console_ring->out[prod++ & (sizeof(console_ring->out) - 1)] = *text++;
        nr_bytes--;
        asm volatile("" ::: "memory"); /* x86 keeps the order of stores */
        *(volatile XENCONS_RING_IDX *)&console_ring->out_prod = prod;
    }
    hypercall_evtchn(EVTCHNOP_send, &send);
}

void use_hypervisor_console(void)
{
    console_ring = NULL;
}

/* %s %d %u %x %lx %ld %lu %c, no widths. */
void print(const char *format, ...)
{
    static char line[512];
    size_t used = 0;
    va_list args;

    va_start(args, format);
    for (; *format && used < sizeof(line) - 24; format++) {
        if (*format != '%') {
            if (*format == '\n')
                line[used++] = '\r';
            line[used++] = *format;
            continue;
        }
        bool is_long = *++format == 'l';
        if (is_long)
            format++;
        if (*format == 's') {
            const char *text = va_arg(args, const char *);
            while (*text && used < sizeof(line) - 24)
                line[used++] = *text++;
        } else if (*format == 'c') {
            line[used++] = (char)va_arg(args, int);
        } else {
            u64 value = is_long ? va_arg(args, u64) : va_arg(args, u32);
            u64 base = *format == 'x' ? 16 : 10;
            char digits[24];
            int n = 0;
            if (*format == 'd' && (is_long ? (long)value < 0 : (int)value < 0)) {
                line[used++] = '-';
                value = is_long ? -value : (u32)-(u32)value;
            }
            do
                digits[n++] = "0123456789abcdef"[value % base];
            while (value /= base);
            while (n)
                line[used++] = digits[--n];
        }
    }
    va_end(args);
    write_console(line, used);
}

void check_at(bool ok, const char *what, int line)
{
    if (!ok) {
        nr_failures++;
        print("FAILED line %d: %s\n", line, what);
    }
}

void check_equal_at(u64 got, u64 expected, const char *what, int line)
{
    if (got != expected) {
        nr_failures++;
        print("FAILED line %d: %s: got 0x%lx (%ld), expected 0x%lx\n", line, what, got, got, expected);
    }
}

void shut_down(unsigned reason)
{
    struct sched_shutdown shutdown = {.reason = reason};
    for (;;)
        hypercall_sched(SCHEDOP_shutdown, &shutdown);
}

void finish(const char *verdict)
{
    print("VERDICT: %s\n", verdict);
    shut_down(SHUTDOWN_poweroff);
}

void set_handler(unsigned vector, void (*handler)(struct frame *frame))
{
    handlers[vector] = handler;
}

void handle_trap(struct frame *frame)
{
    if (frame->vector < NR_TRAPS && handlers[frame->vector]) {
        handlers[frame->vector](frame);
        return;
    }
    print("unexpected trap %lu error 0x%lx rip 0x%lx rsp 0x%lx\n", frame->vector, frame->error_code, frame->rip,
          frame->rsp);
    finish("FAILURE");
}

void catch_trap(struct frame *frame)
{
    u64 cr2;

    asm volatile("mov %%cr2, %0" : "=r"(cr2));
    caught.vector = frame->vector;
    caught.error_code = frame->error_code;
    caught.rip = frame->rip;
    caught.cr2 = cr2;
    if (++caught.count > 3)
        finish("FAILURE");
    frame->rip = caught.resume;
}

void catch_traps(void)
{
    for (unsigned vector = 0; vector < 32; vector++)
        set_handler(vector, catch_trap);
}

domid_t own_domid(void)
{
    /* A port of ours that waits for ourselves tells. */
    struct evtchn_alloc_unbound alloc = {.dom = DOMID_SELF, .remote_dom = DOMID_SELF};
    check_equal(hypercall_evtchn(EVTCHNOP_alloc_unbound, &alloc), 0, "alloc_unbound");
    struct evtchn_status status = {.dom = DOMID_SELF, .port = alloc.port};
    check_equal(hypercall_evtchn(EVTCHNOP_status, &status), 0, "status");
    return status.u.unbound.dom;
}

void forget_events(volatile shared_info_t *shared, unsigned vcpu)
{
    volatile vcpu_info_t *info = &shared->vcpu_info[vcpu];

    info->evtchn_upcall_pending = 0;
    u64 words = __atomic_exchange_n((u64 *)&info->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    for (int word = 0; word < 64; word++)
        if (words >> word & 1)
            __atomic_exchange_n((u64 *)&shared->evtchn_pending[word], 0, __ATOMIC_SEQ_CST);
}

void enable_avx(void)
{
    u64 cr4;

    asm volatile("mov %%cr4, %0" : "=r"(cr4));
    asm volatile("mov %0, %%cr4" : : "r"(cr4 | 1ul << 18)); /* OSXSAVE */
    asm volatile("xsetbv" : : "c"(0), "a"(7), "d"(0));
}

static void register_callback(unsigned type, u64 address)
{
    struct callback_register callback = {.type = type, .flags = CALLBACKF_mask_events, .address = address};
    check_equal(hypercall2(__HYPERVISOR_callback_op, CALLBACKOP_register, PTR(&callback)), 0, "callback_op register");
}

void load_traps(void)
{
    static struct trap_info table[34];
    int n = 0;

    for (unsigned vector = 0; vector < 32; vector++) {
        bool is_for_all = vector == 3 || vector == 4;
        table[n++] = (struct trap_info){.vector = vector, .flags = is_for_all ? 3 : 0, .cs = FLAT_KERNEL_CS,
                                        .address = trap_entries[vector]};
    }
    table[n++] = (struct trap_info){.vector = 0x80, .flags = 3, .cs = FLAT_KERNEL_CS,
                                    .address = trap_entries[TRAP_INT80]};
    check_equal(hypercall2(__HYPERVISOR_set_trap_table, PTR(table), 0), 0, "set_trap_table");
    register_callback(CALLBACKTYPE_event, trap_entries[TRAP_EVENT]);
    register_callback(CALLBACKTYPE_failsafe, trap_entries[TRAP_EVENT]);
    register_callback(CALLBACKTYPE_syscall, trap_entries[TRAP_SYSCALL]);
}

void guest_start(start_info_t *info)
{
    start_info = info;
    if (!(info->flags & SIF_INITDOMAIN)) {
        console_ring = va_of_mfn(info->console.domU.mfn);
        if (console_ring == NULL)
            shut_down(SHUTDOWN_crash);
    }
    test();
    finish(nr_failures ? "FAILURE" : "SUCCESS");
}

u64 pvclock_ns(volatile shared_info_t *shared)
{
    volatile struct vcpu_time_info *time = &shared->vcpu_info[0].time;
    u32 version, low, high;
    u64 ns;
    do {
        version = time->version;
        asm volatile("lfence\n\t rdtsc" : "=a"(low), "=d"(high) : : "memory");
        u64 delta = (((u64)high << 32) | low) - time->tsc_timestamp;
        delta = time->tsc_shift >= 0 ? delta << time->tsc_shift : delta >> -time->tsc_shift;
        ns = time->system_time + (u64)(((unsigned __int128)delta * time->tsc_to_system_mul) >> 32);
    } while ((version & 1) || version != time->version);
    return ns;
}
