/* Restricts a program to fewer instructions than the processor has.
 *
 *   cc -O2 -shared -fPIC -o hold_cpuid.so hold_cpuid.c -ldl
 *   HOLD_CPUID=x86-64-v3 LD_PRELOAD=$PWD/hold_cpuid.so program …
 *
 * Libraries choose their code when they start, by the CPUID instruction. Each has a different
 * variable to override this, or none. Here CPUID itself answers that there is no AVX-512, no VNNI and
 * so on: Linux lets a process trap it (arch_prctl(ARCH_SET_CPUID, 0)), and the trap's handler removes
 * bits from the answer. Child processes are restricted as well, including compilers that are asked
 * for -march=native. Code that does not execute CPUID runs at full speed.
 *
 * HOLD_CPUID is x86-64-v3 (AVX2, FMA), x86-64-v3-vnni (with AVX-VNNI), x86-64-v4 (with AVX-512 F, CD,
 * DQ, BW, VL), x86-64-v4-vnni or x86-64-v4-bf16 (with VNNI, and both). Ends the program with status 3 if the kernel or the
 * processor cannot trap CPUID, so that an unrestricted program is never measured by mistake.
 *
 * Limits: /proc/cpuinfo still lists all instructions, and code that does not check still uses them.
 * glibc chooses its memcpy before this is loaded.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { ARCH_SET_CPUID = 0x1012 };

/* Bits of leaf 7: EBX, ECX and EDX of subleaf 0, EAX and EDX of subleaf 1. */
typedef struct {
    uint32_t ebx, ecx, edx, eax_1, edx_1;
} Features;

static const Features AVX_VNNI = {.eax_1 = 1u << 4};
static const Features AVX512 = {.ebx = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31};
static const Features AVX512_VNNI = {.ecx = 1u << 11};
static const Features AVX512_BF16 = {.eax_1 = 1u << 5};
/* IFMA, PF, ER; VBMI, VBMI2, BITALG, VPOPCNTDQ; 4VNNIW, 4FMAPS, VP2INTERSECT, FP16 and AMX;
 * AMX-FP16, AVX-IFMA; AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10. */
static const Features OTHERS = {
    .ebx = 1u << 21 | 1u << 26 | 1u << 27,
    .ecx = 1u << 1 | 1u << 6 | 1u << 12 | 1u << 14,
    .edx = 1u << 2 | 1u << 3 | 1u << 8 | 1u << 22 | 1u << 23 | 1u << 24 | 1u << 25,
    .eax_1 = 1u << 21 | 1u << 23,
    .edx_1 = 1u << 4 | 1u << 5 | 1u << 8 | 1u << 10 | 1u << 19,
};

static const struct {
    const char *name;
    const Features *hides[4];
} RUNGS[] = {
    {"x86-64-v3", {&AVX_VNNI, &AVX512, &AVX512_VNNI, &AVX512_BF16}},
    {"x86-64-v3-vnni", {&AVX512, &AVX512_VNNI, &AVX512_BF16}},
    {"x86-64-v4", {&AVX_VNNI, &AVX512_VNNI, &AVX512_BF16}},
    {"x86-64-v4-vnni", {&AVX_VNNI, &AVX512_BF16}},
    {"x86-64-v4-bf16", {&AVX_VNNI}},
};

static Features hidden;
static struct sigaction next; /* the program's own handler of SIGSEGV */
static int (*real_sigaction)(int, const struct sigaction *, struct sigaction *);

static void hide(const Features *more) {
    hidden.ebx |= more->ebx;
    hidden.ecx |= more->ecx;
    hidden.edx |= more->edx;
    hidden.eax_1 |= more->eax_1;
    hidden.edx_1 |= more->edx_1;
}

static void answer_cpuid(greg_t *regs) {
    uint32_t leaf = (uint32_t)regs[REG_RAX], subleaf = (uint32_t)regs[REG_RCX];
    uint32_t a, b, c, d;
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
    __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(subleaf));
    syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
    if (leaf == 7 && subleaf == 0) {
        b &= ~hidden.ebx;
        c &= ~hidden.ecx;
        d &= ~hidden.edx;
    } else if (leaf == 7 && subleaf == 1) {
        a &= ~hidden.eax_1;
        d &= ~hidden.edx_1;
    }
    regs[REG_RAX] = a;
    regs[REG_RBX] = b;
    regs[REG_RCX] = c;
    regs[REG_RDX] = d;
    regs[REG_RIP] += 2;
}

static void on_segv(int number, siginfo_t *info, void *context) {
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    /* A trapped CPUID is a general protection fault, which has no address. A jump to a bad address
     * has one, and the code there must not be read. */
    if (info->si_code == SI_KERNEL) {
        const uint8_t *code = (const uint8_t *)regs[REG_RIP];
        if (code[0] == 0x0f && code[1] == 0xa2) {
            answer_cpuid(regs);
            return;
        }
    }
    if (next.sa_flags & SA_SIGINFO) {
        next.sa_sigaction(number, info, context);
    } else if (next.sa_handler != SIG_DFL && next.sa_handler != SIG_IGN) {
        next.sa_handler(number);
    } else { /* let the fault happen again, without a handler */
        struct sigaction none = {.sa_handler = SIG_DFL};
        real_sigaction(SIGSEGV, &none, NULL);
    }
}

static void find_real_sigaction(void) {
    if (!real_sigaction)
        real_sigaction = (int (*)(int, const struct sigaction *, struct sigaction *))dlsym(
            RTLD_NEXT, "sigaction");
}

/* A program's own handler of SIGSEGV (a crash reporter) is called after ours, not instead. */
int sigaction(int number, const struct sigaction *wanted, struct sigaction *old) {
    find_real_sigaction();
    if (number != SIGSEGV)
        return real_sigaction(number, wanted, old);
    struct sigaction before = next;
    if (wanted)
        next = *wanted;
    if (old)
        *old = before;
    return 0;
}

/* glibc's own signal() does not call the function above. */
void (*signal(int number, void (*handler)(int)))(int) {
    struct sigaction wanted = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
    return sigaction(number, &wanted, &old) ? SIG_ERR : old.sa_handler;
}

__attribute__((constructor)) static void hold(void) {
    const char *rung = getenv("HOLD_CPUID");
    if (!rung || !*rung || strcmp(rung, "native") == 0)
        return;
    size_t i = 0, count = sizeof RUNGS / sizeof *RUNGS;
    while (i < count && strcmp(rung, RUNGS[i].name))
        i++;
    if (i == count) {
        fprintf(stderr, "HOLD_CPUID=%s is not a known rung\n", rung);
        _exit(3);
    }
    hide(&OTHERS);
    for (size_t j = 0; j < 4 && RUNGS[i].hides[j]; j++)
        hide(RUNGS[i].hides[j]);
    find_real_sigaction();
    struct sigaction ours = {.sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK};
    real_sigaction(SIGSEGV, &ours, NULL);
    if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) != 0) {
        perror("HOLD_CPUID: this machine cannot trap CPUID, so nothing can be held to a rung");
        _exit(3);
    }
}
