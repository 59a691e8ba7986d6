/*
 * Why the CPU refuses an entry, as a sentence with the field that is wrong.  H.
 * The CPU says only that something is: the checks of SDM vol 3 "VM Entries" are repeated here in its order until one fails.
 */
#pragma once
#include <stddef.h>
#include "kernel/hw/vmx.h"

typedef uint64_t vmx_field_fn(void *arg, enum vmcs_field);
struct vmx_check {
    vmx_field_fn *read;
    void *arg;
    unsigned phys_bits;
    char text[160];
};
/* Each returns text, or NULL: nothing wrong was found. */
const char *vmx_check_controls(struct vmx_check *);     /* "Checks on VMX Controls", those that depend on fields which we change */
const char *vmx_check_host(struct vmx_check *);         /* "Checks on Host Control Registers, MSRs, and SSP", "… Host Segment and Descriptor-Table Registers" */
const char *vmx_check_guest(struct vmx_check *);        /* "Checking and Loading Guest State" */
