/*
 * For entry stubs: 32 calls whose return addresses stop speculation, so that no RET is predicted by what a guest left in the return stack buffer.  Clobbers ECX and
 * flags.  AMD "Software Techniques for Managing Speculation on AMD Processors", V1-3; Intel "Retpoline: A Branch Target Injection Mitigation", "Empty RSB".
 */
.macro RSB_FILL
    movl $16, %ecx
91: call 93f
92: pause
    lfence
    jmp 92b
93: call 95f
94: pause
    lfence
    jmp 94b
95: decl %ecx
    jnz 91b
    addq $(32 * 8), %rsp
.endm
