/* Whether this CPU and its firmware let Joist use AMD-V.  H: judged on facts, so that machines which are not at hand can be tried. */
#pragma once
#include "kernel/lib/base.h"

struct svm_facts {
    const char *brand;
    uint32_t max_ext_leaf;
    bool svm, nx;               /* CPUID Fn8000_0001 */
    uint32_t nasids, features;  /* CPUID Fn8000_000A EBX, EDX; not looked at where svm is false */
    uint64_t vm_cr;             /* 0 where the MSR cannot be read */
};

/* 0; -ENOTSUP with a sentence that says what is missing and what to change. */
int svm_judge(const struct svm_facts *, char *err, size_t errlen);
