/*
 * Entry point, Xen's ELF notes, and trap entry of a small PV guest. Source: xen/include/public/elfnote.h, arch-x86/xen-x86_64.h
 *
 * The style of the kernel can be changed by macros: VIRT_BASE, PADDR_OFFSET, WITH_HYPERCALL_PAGE, WITH_INIT_P2M (its address),
 * WITH_MOD_START_PFN, WITH_BSD_SYMTAB, WITHOUT_ENTRY, and AS_STRING for a section __xen_guest in place of notes.
 */
#ifndef VIRT_BASE
#define VIRT_BASE 0xffffffff80000000
#endif
#ifndef PADDR_OFFSET
#define PADDR_OFFSET 0
#endif
#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

.macro note type, value:vararg
    .pushsection .note.Xen, "a", @note
    .balign 4
    .long 2f - 1f, 4f - 3f, \type
1:  .asciz "Xen"
2:  .balign 4
3:  \value
4:  .balign 4
    .popsection
.endm

#ifdef AS_STRING
    .pushsection __xen_guest, "a"
    .ascii "GUEST_OS=ring3-test,XEN_VER=xen-3.0,LOADER=generic,VIRT_BASE=" TEXT(VIRT_BASE)
    .asciz ",ELF_PADDR_OFFSET=" TEXT(PADDR_OFFSET) ",HYPERCALL_PAGE=0x100,FEATURES=!writable_page_tables"
    .popsection
#else
    note 6, .asciz "ring3-test"             /* GUEST_OS */
    note 5, .asciz "xen-3.0"                /* XEN_VERSION */
    note 8, .asciz "generic"                /* LOADER */
    note 9, .asciz "yes"                    /* PAE_MODE */
    note 10, .asciz "!writable_page_tables" /* FEATURES */
    note 3, .quad VIRT_BASE                 /* VIRT_BASE */
    note 4, .quad PADDR_OFFSET              /* PADDR_OFFSET */
#ifndef WITHOUT_ENTRY
    note 1, .quad start                     /* ENTRY */
#endif
    note 12, .quad 0xffff800000000000       /* HV_START_LOW */
#ifdef WITH_INIT_P2M
    note 15, .quad WITH_INIT_P2M
#endif
#ifdef WITH_MOD_START_PFN
    note 16, .quad 1
#endif
#ifdef WITH_BSD_SYMTAB
    note 11, .asciz "yes"
#endif
#ifdef WITH_HYPERCALL_PAGE
    note 2, .quad stubs
#endif
#endif

#if defined(WITH_HYPERCALL_PAGE) || defined(AS_STRING)
    .section .first, "awx", @progbits       /* at VIRT_BASE + 0x100000 */
    .globl stubs
stubs:
    .skip 4096
#endif

    .text
    .globl start
start:
    cld
    lea boot_stack_end(%rip), %rsp
    xor %ebp, %ebp
    mov %rsi, %rdi
    call guest_start
1:  jmp 1b

/* Bounce frame, low to high: rcx, r11, [error code], rip, cs, rflags, rsp, ss. */
.macro entry vector, has_error
    .balign 16
entry_\vector:
    pop %rcx
    pop %r11
    .if !\has_error
    push $0
    .endif
    push $\vector
    jmp entry_common
    .pushsection .data
    .quad entry_\vector
    .popsection
.endm

    .data
    .balign 8
    .globl trap_entries
trap_entries:                               /* filled by the macro: 32 vectors, event, syscall, failsafe */
    .text
.irp v, 0,1,2,3,4,5,6,7
    entry \v, 0
.endr
    entry 8, 1
    entry 9, 0
.irp v, 10,11,12,13,14
    entry \v, 1
.endr
    entry 15, 0
    entry 16, 0
    entry 17, 1
.irp v, 18,19,20
    entry \v, 0
.endr
    entry 21, 1
.irp v, 22,23,24,25,26,27,28,29,30,31
    entry \v, 0
.endr
    entry 32, 0                             /* TRAP_EVENT */
    entry 33, 0                             /* TRAP_SYSCALL */
    entry 34, 0                             /* TRAP_INT80 */

    .text
    .globl entry_common
entry_common:
    push %rax
    push %rbx
    push %rcx
    push %rdx
    push %rsi
    push %rdi
    push %rbp
    push %r8
    push %r9
    push %r10
    push %r11
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, %rdi
    mov %rsp, %rbp
    and $-16, %rsp
    cld
    call handle_trap
    mov %rbp, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %r11
    pop %r10
    pop %r9
    pop %r8
    pop %rbp
    pop %rdi
    pop %rsi
    pop %rdx
    pop %rcx
    pop %rbx
    pop %rax
    add $16, %rsp
    /* struct iret_context, low to high: rax, r11, rcx, flags, rip, cs, rflags, rsp, ss */
    .globl return_by_iret
return_by_iret:
    push $0
    push %rcx
    push %r11
    push %rax
    mov $23, %eax
    syscall
    ud2

    .bss
    .balign 4096
boot_stack:
    .skip 32768
boot_stack_end:
    .section .note.GNU-stack, "", @progbits
