hosted += kernel/svm/probe.c
core += kernel/svm/svm.c kernel/svm/vmcb.c kernel/svm/exit.c kernel/svm/msr.c kernel/svm/enter.S
hosted += kernel/svm/asid.c kernel/svm/check.c
