/*
 * ports: who may reach I/O ports (IOPL in both its forms, the I/O bitmap), and what answers there: the timer's channel
 * 2, latches without hardware behind them, and nothing.
 */
#include "guest.h"

static u64 bitmap[4];
static bool is_dom0;

static u32 in8(u16 port)
{
    u32 value = 0;
    asm volatile("inb %w1, %b0" : "+a"(value) : "d"(port));
    return value;
}

static u32 in16(u16 port)
{
    u32 value = 0;
    asm volatile("inw %w1, %w0" : "+a"(value) : "d"(port));
    return value;
}

static u32 in32(u16 port)
{
    u32 value;
    asm volatile("inl %w1, %0" : "=a"(value) : "d"(port));
    return value;
}

static void out8(u16 port, u32 value) { asm volatile("outb %b0, %w1" : : "a"(value), "d"(port)); }
static void out32(u16 port, u32 value) { asm volatile("outl %0, %w1" : : "a"(value), "d"(port)); }

static void set_iopl(u32 level, long expected)
{
    struct physdev_set_iopl iopl = {.iopl = level};
    check_equal(hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iopl, PTR(&iopl)), expected, "set_iopl");
}

static void set_bitmap(u32 nr_ports)
{
    struct physdev_set_iobitmap set = {.bitmap = {(void *)bitmap}, .nr_ports = nr_ports};
    check_equal(hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, PTR(&set)), 0, "set_iobitmap");
}

/* Whether a read of so many bytes is let through; a #GP(0) at the instruction says no. */
static bool may_read(u16 port, unsigned nr_bytes)
{
    if (nr_bytes == 1)
        EXPECT_TRAP("mov %w[port], %%dx\n\t inb %%dx, %%al", [port] "r"(port));
    else if (nr_bytes == 2)
        EXPECT_TRAP("mov %w[port], %%dx\n\t inw %%dx, %%ax", [port] "r"(port));
    else
        EXPECT_TRAP("mov %w[port], %%dx\n\t inl %%dx, %%eax", [port] "r"(port));
    if (caught.count == 0)
        return true;
    check_equal(caught.vector, 13, "a port that is not allowed");
    check_equal(caught.error_code, 0, "its error code");
    return false;
}

static void levels(void)
{
    check(!may_read(0x80, 1), "IOPL 0");
    set_iopl(4, -XEN_EINVAL_);
    set_iopl(1, 0);
    check(may_read(0x80, 1), "IOPL 1 is the kernel's");
    u64 flags;
    asm volatile("pushfq\n\t popq %0" : "=r"(flags));
    check_equal(flags >> 12 & 3, 0, "the CPU's own IOPL is 0");
    asm volatile("pushq %0\n\t popfq\n\t pushfq\n\t popq %0" : "+r"(flags) : : "cc");
    check_equal(flags >> 12 & 3, 0, "popf does not change it");
    check_equal(flags >> 9 & 1, 1, "nor IF");
    set_iopl(0, 0);
    /* With the architectural form, 0 is what the kernel needs. */
    check_equal(hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_architectural_iopl), 0, "vm_assist");
    check(may_read(0x80, 1), "IOPL 0 is the kernel's");
    EXPECT_TRAP("cli\n\t sti", [none] "i"(0));
    check_equal(caught.count, 0, "cli and sti too");
    check_equal(hypercall2(__HYPERVISOR_vm_assist, VMASST_CMD_disable, VMASST_TYPE_architectural_iopl), 0, "no more");
    check(!may_read(0x80, 1), "IOPL 0 again");
}

static void bitmaps(void)
{
    for (unsigned i = 0; i < 4; i++)
        bitmap[i] = ~0ul;
    bitmap[2] = ~(1ul << 0 | 1ul << 1 | 1ul << 7 | 1ul << 8 | 1ul << 9 | 1ul << 10); /* ports 0x80 on */
    set_bitmap(256);
    check(may_read(0x80, 1) && may_read(0x81, 1), "ports that are clear");
    check(!may_read(0x82, 1), "a port that is set");
    check(may_read(0x80, 2) && !may_read(0x81, 2), "two ports at once");
    check(may_read(0x87, 4), "four ports across bytes");
    check(!may_read(0x88, 4), "one of them set");
    check(!may_read(0x180, 1), "past the bitmap");
    set_bitmap(0x83);
    check(may_read(0x81, 1), "below the limit");
    set_bitmap(0x82);
    check(may_read(0x81, 1), "the last port");
    check(!may_read(0x81, 2), "across the limit");
    struct physdev_set_iobitmap set = {.bitmap = {(void *)bitmap}, .nr_ports = 65537};
    check_equal(hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, PTR(&set)), -XEN_EINVAL_, "too many ports");
    set.bitmap = (typeof(set.bitmap)){(void *)0xffffffffc0000000};
    set.nr_ports = 65536;
    check_equal(hypercall2(__HYPERVISOR_physdev_op, PHYSDEVOP_set_iobitmap, PTR(&set)), 0, "a bitmap that is not mapped");
    check(!may_read(0x80, 1), "it allows nothing");
    set_bitmap(0);
    check(!may_read(0x80, 1), "no bitmap");
}

static void answers(void)
{
    uint8_t buffer[6] = {0};
    void *to = buffer;
    u64 count = 5;

    set_iopl(1, 0);
    out8(0x70, 0x0d);
    check_equal(in8(0x70), 0x0d, "the CMOS index can be read back");
    out32(0xcf8, 0x80001234);
    check_equal(in32(0xcf8), 0x80001234, "the PCI address too");
    if (is_dom0)
        return;
    check_equal(in16(0x70), 0xff0d, "no CMOS");
    check_equal(in8(0xcf8), 0xff, "it is there for 32 bits only");
    check_equal(in32(0xcfc), 0xffffffff, "no PCI");
    check_equal(in16(0x1f0), 0xffff, "nothing there");
    asm volatile("rep insb" : "+D"(to), "+c"(count) : "d"(0x1f0) : "memory");
    check_equal(buffer[4], 0xff, "ins");
    check_equal(buffer[5], 0, "no more than was asked for");
    asm volatile("rep outsb" : "+S"(to), "+c"(count) : "d"(0x1f0) : "memory");
}

/* As kernels calibrate their clocks: channel 2, one shot, its gate opened by port 0x61. */
static void timer(void)
{
    u32 before, after;

    out8(0x61, (in8(0x61) & ~2u) | 1);
    out8(0x43, 0xb0);
    out8(0x42, 0xff);
    out8(0x42, 0xff);
    check_equal(in8(0x61) & 0x23, 1, "running");
    before = in8(0x42);
    before |= in8(0x42) << 8;
    check(before > 0xc000, "just begun");
    for (unsigned i = 0; i < 10000000 && (in8(0x61) & 0x20) == 0; i++)
        ;
    check_equal(in8(0x61) & 0x20, 0x20, "it ends");
    out8(0x43, 0x80); /* latch */
    after = in8(0x42);
    after |= in8(0x42) << 8;
    check(after > 0x8000, "and goes on from the top");
}

void test(void)
{
    is_dom0 = start_info->flags & SIF_INITDOMAIN;
    load_traps();
    catch_traps();
    levels();
    bitmaps();
    answers();
    timer();
}
