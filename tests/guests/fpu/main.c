/*
 * fpu: vector registers and control words survive exceptions, hypercalls and timer upcalls.
 */
#include "guest.h"

static volatile shared_info_t *shared;
static volatile unsigned nr_upcalls;

static void on_upcall(struct frame *frame)
{
    (void)frame;
    nr_upcalls++;
    shared->vcpu_info[0].evtchn_upcall_pending = 0;
    shared->vcpu_info[0].evtchn_pending_sel = 0;
    shared->evtchn_pending[0] = 0;
}

static void skip_ud2(struct frame *frame)
{
    frame->rip += 2;
}

void test(void)
{
    static u64 in[8] __attribute__((aligned(64))) = {1, 2, 3, 0x4444444444444444, 5, 6, 7, 8};
    static u64 out[8] __attribute__((aligned(64)));
    u32 mxcsr = 0x1fa0, mxcsr_after = 0;
    uint16_t control = 0x0f7f, control_after = 0;

    load_traps();
    shared = map_shared_info();
    set_handler(TRAP_EVENT, on_upcall);
    set_handler(6, skip_ud2);

    enable_avx();

    asm volatile("vmovdqa (%[in]), %%ymm3\n\t vmovdqa 32(%[in]), %%ymm15\n\t ldmxcsr %[mx]\n\t fldcw %[cw]\n\t fldpi\n\t"
                 "ud2\n\t"
                 "mov $17, %%eax\n\t xor %%edi, %%edi\n\t xor %%esi, %%esi\n\t syscall\n\t"
                 "vmovdqa %%ymm3, (%[out])\n\t vmovdqa %%ymm15, 32(%[out])\n\t stmxcsr %[mx_after]\n\t fnstcw %[cw_after]\n\t"
                 "fstp %%st(0)\n\t vzeroupper\n\t fninit"
                 : [mx_after] "=m"(mxcsr_after), [cw_after] "=m"(control_after)
                 : [in] "r"(in), [out] "r"(out), [mx] "m"(mxcsr), [cw] "m"(control)
                 : "rax", "rcx", "rdi", "rsi", "r11", "memory");
    check(memcmp(in, out, sizeof(in)) == 0, "ymm registers survive an exception and a hypercall");
    check_equal(mxcsr_after & 0xffc0, mxcsr & 0xffc0, "mxcsr survives");
    check_equal(control_after, control, "the x87 control word survives");

    struct evtchn_bind_virq virq = {.virq = VIRQ_TIMER, .vcpu = 0};
    check_equal(hypercall_evtchn(EVTCHNOP_bind_virq, &virq), 0, "bind VIRQ_TIMER");
    for (int i = 0; i < 64; i++)
        shared->evtchn_mask[i] = ~(1ul << virq.port);
    shared->vcpu_info[0].evtchn_upcall_mask = 0;
    struct vcpu_set_singleshot_timer timer = {.timeout_abs_ns = 0};
    for (int round = 0; round < 20; round++) {
        timer.timeout_abs_ns = shared->vcpu_info[0].time.system_time + 1000000;
        memset(out, 0, sizeof(out));
        asm volatile("vmovdqa (%[in]), %%ymm0\n\t vmovdqa 32(%[in]), %%ymm9\n\t"
                     "mov $24, %%eax\n\t mov $8, %%edi\n\t xor %%esi, %%esi\n\t mov %[timer], %%rdx\n\t syscall\n\t"
                     "mov $3000000, %%ecx\n1: dec %%ecx\n\t jnz 1b\n\t"
                     "vmovdqa %%ymm0, (%[out])\n\t vmovdqa %%ymm9, 32(%[out])\n\t vzeroupper"
                     : : [in] "r"(in), [out] "r"(out), [timer] "r"(&timer)
                     : "rax", "rcx", "rdx", "rdi", "rsi", "r11", "memory", "cc");
        check(memcmp(in, out, sizeof(in)) == 0, "ymm registers survive an upcall");
    }
    check(nr_upcalls > 0, "there were upcalls");
}
