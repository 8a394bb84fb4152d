/* More vCPUs than one. */
#include "guest.h"

enum { MAX_VCPUS = 32, STACK_BYTES = 16384 };
static PAGE char stacks[MAX_VCPUS][STACK_BYTES];
static void (*entries[MAX_VCPUS])(unsigned id);
static struct vcpu_guest_context contexts[MAX_VCPUS];

static void first_code(unsigned id)
{
    entries[id](id);
    for (;;)
        hypercall_vcpu_op(VCPUOP_down, id, NULL);
}

unsigned nr_vcpus(void)
{
    unsigned nr = 0;

    while (nr < MAX_VCPUS && hypercall_vcpu_op(VCPUOP_is_up, nr, NULL) >= 0)
        nr++;
    return nr;
}

void initial_context(unsigned id, struct vcpu_guest_context *context)
{
    context->flags = VGCF_in_kernel;
    context->user_regs.rip = PTR(first_code);
    context->user_regs.rdi = id;
    context->user_regs.rsp = PTR(stacks[id] + STACK_BYTES - 8);
    context->user_regs.cs = FLAT_KERNEL_CS;
    context->user_regs.ss = FLAT_KERNEL_SS;
    context->user_regs.rflags = 0x200;
    context->kernel_ss = FLAT_KERNEL_SS;
    context->kernel_sp = context->user_regs.rsp;
    context->event_callback_eip = trap_entries[TRAP_EVENT];
    context->failsafe_callback_eip = trap_entries[TRAP_EVENT];
    context->ctrlreg[3] = xen_pfn_to_cr3(mfn_of((void *)start_info->pt_base));
}

void start_vcpu(unsigned id, void (*entry)(unsigned id))
{
    entries[id] = entry;
    initial_context(id, &contexts[id]);
    check_equal(hypercall_vcpu_op(VCPUOP_initialise, id, &contexts[id]), 0, "VCPUOP_initialise");
    check_equal(hypercall_vcpu_op(VCPUOP_up, id, NULL), 0, "VCPUOP_up");
}

unsigned vcpu_of_stack(u64 rsp)
{
    u64 offset = rsp - PTR(stacks);

    return offset < sizeof(stacks) ? offset / STACK_BYTES : 0;
}

evtchn_port_t bind_ipi(unsigned id)
{
    struct evtchn_bind_ipi ipi = {.vcpu = id};

    check_equal(hypercall_evtchn(EVTCHNOP_bind_ipi, &ipi), 0, "bind_ipi");
    return ipi.port;
}

void send_event(evtchn_port_t port)
{
    struct evtchn_send send = {.port = port};

    hypercall_evtchn(EVTCHNOP_send, &send);
}

bool wait_until(const volatile u64 *value, u64 at_least)
{
    for (u64 i = 0; i < 20000000; i++) {
        if (*value >= at_least)
            return true;
        hypercall_sched(SCHEDOP_yield, NULL);
    }
    return false;
}
