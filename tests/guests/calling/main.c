/*
 * calling: what a hypercall keeps of the registers, how much of its arguments counts, arguments at odd addresses, the old
 * forms of calls, and `op` of a multicall.
 */
#include "guest.h"

#define HIGH 0xdead00000000ul
static PAGE char buffer[PAGE_SIZE];

struct registers { u64 rbx, rbp, r9, r12, r13, r14, r15, rdi, rsi, rdx, r10, r8, flags; };
extern long call_with(u64 op, const struct registers *in, struct registers *out);
asm(".pushsection .text\n"
    "call_with:\n"
    "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n  push %rdx\n"
    "  mov %rdi, %rax\n  mov %rsi, %rcx\n"
    "  mov 0(%rcx), %rbx\n  mov 8(%rcx), %rbp\n  mov 16(%rcx), %r9\n  mov 24(%rcx), %r12\n  mov 32(%rcx), %r13\n"
    "  mov 40(%rcx), %r14\n  mov 48(%rcx), %r15\n  mov 56(%rcx), %rdi\n  mov 64(%rcx), %rsi\n  mov 72(%rcx), %rdx\n"
    "  mov 80(%rcx), %r10\n  mov 88(%rcx), %r8\n  push 96(%rcx)\n  popfq\n"
    "  syscall\n"
    "  mov (%rsp), %rcx\n"
    "  mov %rbx, 0(%rcx)\n  mov %rbp, 8(%rcx)\n  mov %r9, 16(%rcx)\n  mov %r12, 24(%rcx)\n  mov %r13, 32(%rcx)\n"
    "  mov %r14, 40(%rcx)\n  mov %r15, 48(%rcx)\n  mov %rdi, 56(%rcx)\n  mov %rsi, 64(%rcx)\n  mov %rdx, 72(%rcx)\n"
    "  mov %r10, 80(%rcx)\n  mov %r8, 88(%rcx)\n  pushfq\n  pop 96(%rcx)\n  cld\n"
    "  pop %rdx\n  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n  ret\n"
    ".popsection");

static void registers(void)
{
    static struct registers in, out;
    static const struct { u64 op, rdi, rsi; long result; const char *what; } calls[] = {
        {__HYPERVISOR_xen_version, XENVER_pagesize, 0, 4096, "xen_version"},
        {__HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0, "sched_op"},
        {63, 0, 0, -XEN_ENOSYS_, "a number that is not there"},
        {__HYPERVISOR_vcpu_op, VCPUOP_is_up, 0, 1, "vcpu_op"},
    };
    for (unsigned n = 0; n < sizeof(calls) / sizeof(calls[0]); n++) {
        for (unsigned i = 0; i < 12; i++)
            ((u64 *)&in)[i] = 0x1111111111111111ul * (i + 1);
        in.rdi = calls[n].rdi;
        in.rsi = calls[n].rsi;
        in.flags = 0x200 | 0x2 | 0x8d5 | 0x400; /* IF, all of arithmetic, DF */
        check_equal(call_with(calls[n].op, &in, &out), calls[n].result, calls[n].what);
        for (unsigned i = 0; i < 12; i++)
            check_equal(((u64 *)&out)[i], ((u64 *)&in)[i], "a register that a hypercall keeps");
        check_equal(out.flags, in.flags, "flags are kept");
    }
}

static void integers(void)
{
    struct sched_poll poll = {.nr_ports = 129};
    struct mmu_update update = {0};
    u32 done = 5;

    check_equal(hypercall2(__HYPERVISOR_xen_version, HIGH | XENVER_pagesize, 0), 4096, "cmd of xen_version is an int");
    check_equal(hypercall2(__HYPERVISOR_sched_op, HIGH | SCHEDOP_poll, PTR(&poll)), -XEN_EINVAL_, "of sched_op");
    check_equal(hypercall4(__HYPERVISOR_vcpu_op, HIGH | VCPUOP_is_up, HIGH, 0, 0), 1, "of vcpu_op, and its vCPU");
    check_equal(hypercall2(__HYPERVISOR_event_channel_op, HIGH | 15, PTR(buffer)), -XEN_ENOSYS_, "of event_channel_op");
    check_equal(hypercall4(__HYPERVISOR_mmu_update, PTR(&update), HIGH, PTR(&done), HIGH | DOMID_SELF), 0, "a count");
    check_equal(done, 0, "of zero");
    check_equal(hypercall2(__HYPERVISOR_multicall, 0, HIGH), 0, "of multicall");
    check_equal(hypercall2(__HYPERVISOR_set_gdt, 0, HIGH), 0, "of set_gdt");
    check_equal(hypercall2(__HYPERVISOR_get_debugreg, HIGH | 7, 0), 0x400, "the register of get_debugreg");
    check_equal(hypercall2(__HYPERVISOR_vm_assist, HIGH | VMASST_CMD_disable, HIGH | VMASST_TYPE_4gb_segments), 0,
                "both of vm_assist");
    check_equal(hypercall2(__HYPERVISOR_callback_op, HIGH | 2, PTR(buffer)), -XEN_ENOSYS_, "cmd of callback_op");
    check_equal(hypercall2(__HYPERVISOR_physdev_op, HIGH | PHYSDEVOP_set_iopl, PTR(buffer)), 0, "of physdev_op");
    check_equal(hypercall2(__HYPERVISOR_fpu_taskswitch, HIGH, 0), 0, "set of fpu_taskswitch");
    /* That of memory_op is a long one, with an extent to start with. */
    check_equal(hypercall2(__HYPERVISOR_memory_op, HIGH | XENMEM_maximum_ram_page, 0), -XEN_EINVAL_, "no extents");
    check_equal(hypercall2(__HYPERVISOR_memory_op, HIGH | XENMEM_exchange, PTR(buffer)), -XEN_EINVAL_, "none to start with");
    check_equal(hypercall2(__HYPERVISOR_memory_op, HIGH | XENMEM_machphys_mapping, PTR(buffer)), -XEN_ENOSYS_,
                "not of the architecture's");
    check_equal(hypercall4(__HYPERVISOR_grant_table_op, HIGH | 6 /* query_size */, PTR(buffer), HIGH | 1, 0), 0,
                "cmd and count of grant_table_op");
    check_equal(hypercall4(__HYPERVISOR_console_io, HIGH | CONSOLEIO_write, HIGH, 0, 0), 0, "count of console_io");
    check_equal(hypercall2(HIGH | __HYPERVISOR_xen_version, XENVER_pagesize, 0), -XEN_ENOSYS_, "but not the number");
}

static void old_forms(void)
{
    struct { u32 cmd; union { struct evtchn_bind_ipi ipi; struct evtchn_status status; struct evtchn_close close;
                              struct evtchn_bind_vcpu vcpu; u32 words[7]; } u; } op = {.cmd = EVTCHNOP_bind_ipi};
    struct { u32 cmd, pad, irq, flags; u64 more[4]; } query = {.cmd = PHYSDEVOP_irq_status_query, .irq = 3};

    check_equal(hypercall2(__HYPERVISOR_event_channel_op_compat, PTR(&op), 0), 0, "bind_ipi in the old form");
    evtchn_port_t port = op.u.ipi.port;
    op.cmd = EVTCHNOP_status;
    op.u.status = (struct evtchn_status){.dom = DOMID_SELF, .port = port};
    check_equal(hypercall2(__HYPERVISOR_event_channel_op_compat, PTR(&op), 0), 0, "status");
    check_equal(op.u.status.status, EVTCHNSTAT_ipi, "of an IPI");
    op.cmd = EVTCHNOP_bind_vcpu;
    op.u.vcpu = (struct evtchn_bind_vcpu){.port = port, .vcpu = 0};
    check_equal(hypercall2(__HYPERVISOR_event_channel_op_compat, PTR(&op), 0), -XEN_EINVAL_, "which stays on its vCPU");
    op.cmd = EVTCHNOP_close;
    op.u.close.port = port;
    check_equal(hypercall2(__HYPERVISOR_event_channel_op_compat, PTR(&op), 0), 0, "close");
    check_equal(hypercall2(__HYPERVISOR_event_channel_op_compat, PTR(&op), 0), -XEN_EINVAL_, "it is closed");
    check_equal(hypercall2(__HYPERVISOR_physdev_op_compat, PTR(&query), 0), 0, "physdev_op in the old form");
    check_equal(query.flags & XENIRQSTAT_needs_eoi, XENIRQSTAT_needs_eoi, "has its results behind the command");
    query.cmd = 99;
    check_equal(hypercall2(__HYPERVISOR_physdev_op_compat, PTR(&query), 0), -XEN_ENOSYS_, "an unknown command");
    check_equal(hypercall2(__HYPERVISOR_sched_op_compat, 4, 0), -XEN_ENOSYS_, "no new commands in the old form");
}

static void odd_places(void)
{
    struct xen_feature_info *info = (void *)(buffer + 3);
    multicall_entry_t *list = (void *)(buffer + 101);
    struct vcpu_runstate_info *runstate = (void *)(buffer + 301);

    info->submap_idx = 0;
    check_equal(hypercall2(__HYPERVISOR_xen_version, XENVER_get_features, PTR(info)), 0, "a structure at an odd address");
    check(info->submap, "has its result");
    check_equal(hypercall_vcpu_op(VCPUOP_get_runstate_info, 0, runstate), 0, "runstate at an odd address");
    check_equal(runstate->state, RUNSTATE_running, "has its result");
    list[0] = (multicall_entry_t){.op = __HYPERVISOR_xen_version, .args = {XENVER_pagesize}};
    list[1] = (multicall_entry_t){.op = HIGH | __HYPERVISOR_xen_version, .args = {XENVER_pagesize}};
    list[2] = (multicall_entry_t){.op = __HYPERVISOR_xen_version, .args = {HIGH | XENVER_pagesize}};
    check_equal(hypercall2(__HYPERVISOR_multicall, PTR(list), 3), 0, "a multicall at an odd address");
    check_equal(list[0].result, 4096, "its first call");
    check_equal(list[1].result, -XEN_ENOSYS_, "a wild number");
    check_equal(list[2].result, 4096, "a wild command is cut");
}

void test(void)
{
    load_traps();
    registers();
    integers();
    old_forms();
    odd_places();
}
