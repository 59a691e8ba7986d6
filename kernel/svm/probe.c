/* AMD64 APM vol 2 (24593) "Enabling SVM": VM_CR.SVMDIS is the firmware's switch, whatever CPUID says. */
#include "kernel/svm/probe.h"

#include <errno.h>
#include <stdio.h>

#include "kernel/hw/svm.h"

int svm_judge(const struct svm_facts *f, char *err, size_t errlen)
{
    if (f->max_ext_leaf >= 0x80000001 && f->vm_cr & VM_CR_SVMDIS)
        snprintf(err, errlen, "AMD-V is switched off by the firmware%s; enable \"SVM mode\" in its CPU set-up", f->vm_cr & VM_CR_LOCK ? " and locked" : "");
    else if (!f->svm || f->max_ext_leaf < 0x8000000a)
        snprintf(err, errlen, "this CPU (%s) has no AMD-V", f->brand);
    else if (!(f->features & SVM_FEAT_NPT))
        snprintf(err, errlen, "this CPU's AMD-V lacks nested paging, which Joist needs");
    else if (f->nasids < 2 || !f->nx)
        snprintf(err, errlen, "this CPU's AMD-V lacks %s, which Joist needs", f->nx ? "ASIDs" : "NX");
    else
        return 0;
    return -ENOTSUP;
}
