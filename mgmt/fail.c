#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include "mgmt/fail.h"

int fail_set(struct fail *f, int code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->message, sizeof f->message, fmt, ap);
    va_end(ap);
    f->hint[0] = 0;
    return f->code = code;
}

void fail_hint(struct fail *f, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->hint, sizeof f->hint, fmt, ap);
    va_end(ap);
}

int fail_code(int err)
{
    switch (err) {
    case 0: return EX_DONE;
    case -ENOENT: return EX_NOTFOUND;
    case -EBUSY: case -EEXIST: return EX_STATE;
    case -EPERM: case -EACCES: return EX_PERM;
    case -ENOMEM: case -ENOSPC: return EX_RESOURCE;
    case -ETIMEDOUT: return EX_TIMEOUT;
    case -EIO: case -EILSEQ: return EX_IO;
    case -ENOTSUP: return EX_UNSUPPORTED;
    default: return EX_FAILED;
    }
}
