/*
 * instructions: what is no plain computing, at ring 3 in the guest's kernel and in its user mode: privileged, system and undefined
 * instructions, forms with odd prefixes, software interrupts, flags, segments, addresses that are none; and what single step makes of
 * each. Each row was seen on a real Xen 4.17, but for those with LOCK; what else QEMU TCG does its own way is left out.
 */
#include "guest.h"

struct result { u16 vector, error, offset; };
struct form {
    const char *name;
    struct result kernel, user;
    bool is_one_step;
    unsigned length;
    unsigned char bytes[16];
};
#define DONE {255, 0, 0}
#define UD {6, 0, 0}
#define GP {13, 0, 0}
static const struct form forms[] = {
#include "forms.h"
};
static PAGE unsigned char code[PAGE_SIZE];
static PAGE char data[PAGE_SIZE];

/* Executes a form with RAX at some data; ud2 is behind it. */
static void run(const struct form *form, bool is_user, bool is_stepped)
{
    const struct result *expected = is_user ? &form->user : &form->kernel, stepped = {1, 0, form->length};
    struct target target = is_user ? user_target(code) : kernel_target(code);
    memcpy(code, form->bytes, form->length);
    memcpy(code + form->length, "\x0f\x0b", 2);
    memset(data, 0, 64);
    target.rflags |= is_stepped ? 1 << 8 : 0;
    target.rax = is_user ? USER_VA(data) : PTR(data);
    const struct frame *frame = go_to(&target);
    u64 offset = frame->rip - target.rip;
    const struct result undefined = {6, 0, form->length};
    if (expected->vector == 255)
        expected = is_stepped ? &stepped : &undefined;
    if (frame->vector != expected->vector || offset != expected->offset || frame->error_code != expected->error) {
        print("%s, %s%s: vector %lu, error 0x%lx, offset %ld\n", form->name, is_user ? "user" : "kernel",
              is_stepped ? ", stepped" : "", frame->vector, frame->error_code, offset);
        check(false, "as on Xen");
    }
    check_equal(frame->cs & 3, is_user ? 3 : 0, "the mode");
    check_equal(frame->rflags & 0x3000, 0, "no IOPL is shown");
}

void test(void)
{
    load_traps();
    enable_avx();
    set_up_user();
    for (const struct form *form = forms; form < forms + sizeof(forms) / sizeof(forms[0]); form++) {
        /* QEMU TCG takes LOCK before instructions that have none for nothing. */
        if (start_info->flags & SIF_INITDOMAIN && memcmp(form->name, "lock ", 5) == 0)
            continue;
        for (int mode = 0; mode < 2; mode++) {
            run(form, mode, false);
            if (form->is_one_step)
                run(form, mode, true);
        }
    }
}
