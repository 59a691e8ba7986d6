/*
 * FPU and vector state.  Core code never touches it, so a vCPU's guest state stays in the registers across exits.  The scheduler saves the state of vCPU and
 * service threads whenever they leave a CPU (after the put hook) and restores it when they come back (before the load hook), unless the CPU still holds it.
 * Both run under the host's full XCR0, which is in force everywhere outside load..put of a vCPU; #NM is never used.
 *
 * Areas are in standard (non-compacted) XSAVE format, or FXSAVE's 512 bytes on a CPU without XSAVE; sched_fpu_size() bytes, 64-aligned.  XSAVEOPT
 * may leave the bytes of a component that is in its initial state stale: XSTATE_BV tells.  Intel SDM vol. 1 "Managing State Using the XSAVE Feature Set".
 */
#pragma once
#include "kernel/sched/sched.h"

enum { FPU_LEGACY_SIZE = 512, FPU_HEADER = 512 /* offset of XSTATE_BV, XCOMP_BV */, FPU_HEADER_SIZE = 64, FPU_MXCSR = 24 };

void fpu_area_init(void *area);         /* the state after FNINIT, MXCSR 1F80h */
/* For an area from outside (snapshot, migration): clears what XRSTOR would fault on. */
void fpu_area_sanitize(void *area);
/*
 * By the thread itself: between the two its state is in its area only, and others may read and change that (pause, reset, snapshot), whether or not the
 * thread runs meanwhile.  fpu_detach() has stored all of it when it returns.
 */
void fpu_detach(void);
void fpu_attach(void);
