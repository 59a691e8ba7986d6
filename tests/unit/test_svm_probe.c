/* What Joist says of CPUs and firmware that do not let it use AMD-V. */
#include <errno.h>
#include <string.h>
#include "kernel/hw/svm.h"
#include "kernel/svm/probe.h"
#include "tests/host/test.h"

static const struct svm_facts fit = { "EPYC", 0x8000001f, true, true, 16, SVM_FEAT_NPT, 0 };

static void refused(struct svm_facts f, const char *says)
{
    char err[160] = "";
    assert_int_equal(svm_judge(&f, err, sizeof err), says ? -ENOTSUP : 0);
    if (says && !strstr(err, says))
        fail_msg("\"%s\" does not say \"%s\"", err, says);
}

#define WITH(...) ({ struct svm_facts with_ = fit; struct svm_facts *w = &with_; __VA_ARGS__; with_; })

static void sentences(void **state)
{
    refused(fit, NULL);
    refused(WITH(w->nasids = 2), NULL);
    refused(WITH(w->vm_cr = VM_CR_LOCK), NULL);                         /* locked, but on */
    refused(WITH(w->vm_cr = VM_CR_SVMDIS), "switched off by the firmware; enable \"SVM mode\"");
    refused(WITH(w->vm_cr = VM_CR_SVMDIS | VM_CR_LOCK), "switched off by the firmware and locked; enable \"SVM mode\"");
    refused(WITH(w->vm_cr = VM_CR_SVMDIS, w->svm = false), "enable \"SVM mode\"");      /* some firmware hides the CPUID bit, too */
    refused(WITH(w->svm = false), "this CPU (EPYC) has no AMD-V");
    refused(WITH(w->max_ext_leaf = 0x80000008), "has no AMD-V");
    refused(WITH(w->features = 0), "lacks nested paging");
    refused(WITH(w->nasids = 1), "lacks ASIDs");
    refused(WITH(w->nx = false), "lacks NX");
}

/* A caller's buffer may be short; nothing is written behind it. */
static void short_buffer(void **state)
{
    char err[9] = "xxxxxxxx";
    assert_int_equal(svm_judge(&(struct svm_facts){ .brand = "a brand as long as they come" }, err, 8), -ENOTSUP);
    assert_int_equal(strlen(err), 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(sentences), cmocka_unit_test(short_buffer) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
