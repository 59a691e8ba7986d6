hosted += kernel/console/chan.c kernel/console/logring.c
core += kernel/console/log.c
hosted += kernel/console/vt.c
