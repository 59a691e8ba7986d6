/* Every command of the shell.  Commands of one noun stand together. */
#include "mgmt/cmd.h"
#include "mgmt/guest.h"

#define NAME_VM { "NAME", ARG_VM, false, false }
#define NAMES_VM { "NAME", ARG_VM, false, true }

static const char *const wait_words[] = { "stopped", "running", "paused", NULL };
static const char *const level_words[] = { "error", "warning", "info", "debug", NULL };
static const char *const port_words[] = { "com1", "com2", "virtio", NULL };

static const struct flag_spec create_flags[] = {
    { "file", 'f', VAL_IMAGE, "FILE",
      "read the definition (TOML or JSON) from this file of the image store; other flags go on top", NULL, false },
    { "disk", 0, VAL_IMAGE, "IMAGE", "a disk, or image=IMAGE,read-only,serial=TEXT; may be repeated", NULL, true },
    { "start", 0, VAL_NONE, NULL, "start it at once", NULL, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};
static const struct flag_spec set_flags[] = {
    { "disk", 0, VAL_IMAGE, "IMAGE", "replaces the disks, or image=IMAGE,read-only,serial=TEXT; may be repeated", NULL, true },
    { "no-disks", 0, VAL_NONE, NULL, "takes all disks away", NULL, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};
static const struct flag_spec show_flags[] = {
    { "toml", 0, VAL_NONE, NULL, "the definition, as vm create -f reads it", NULL, false },
    { "cpu", 0, VAL_NONE, NULL, "registers and last exits too; pauses a running VM for the moment", NULL, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};
static const struct flag_spec start_flags[] = {
    { "console", 'c', VAL_NONE, NULL, "attach to its console at once", NULL, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};
static const struct flag_spec stop_flags[] = {
    { "timeout", 't', VAL_TIME, "TIME", "how long to wait for the guest (60)", NULL, false },
    { "kill", 0, VAL_NONE, NULL, "power off if it has not shut down by then", NULL, false },
    { "no-wait", 'n', VAL_NONE, NULL, "press the power button and return", NULL, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};
static const struct flag_spec reboot_flags[] = {
    { "timeout", 't', VAL_TIME, "TIME", "how long to wait for the guest (60)", NULL, false },
    { "kill", 0, VAL_NONE, NULL, "power off if it has not shut down by then", NULL, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};
static const struct flag_spec wait_flags[] = {
    { "for", 0, VAL_WORD, "STATE", "which state", wait_words, false },
    { "timeout", 't', VAL_TIME, "TIME", "give up after this time (never)", NULL, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};
static const struct flag_spec console_flags[] = {
    { "ro", 'r', VAL_NONE, NULL, "only watch", NULL, false },
    { "port", 'p', VAL_WORD, "PORT", "which port", port_words, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};
static const struct flag_spec log_flags[] = {
    { "level", 'l', VAL_WORD, "LEVEL", "up to this level (info)", level_words, false },
    { "previous", 'p', VAL_NONE, NULL, "of the boot before the last warm reset", NULL, false },
    { "lines", 'n', VAL_UINT, "N", "the last N lines only", NULL, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};
static const struct flag_spec top_flags[] = {
    { "count", 'n', VAL_UINT, "N", "so many turns (until a key is pressed; 1 without a terminal)", NULL, false },
    { "interval", 'i', VAL_TIME, "TIME", "time of a turn (1)", NULL, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};
static const struct flag_spec power_flags[] = {
    { "timeout", 't', VAL_TIME, "TIME", "how long running VMs may take to shut down (10), then they are killed", NULL, false },
    { "now", 0, VAL_NONE, NULL, "do not shut VMs down", NULL, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};
static const struct flag_spec help_flags[] = {
    { "markdown", 0, VAL_NONE, NULL, "the whole reference page", NULL, false },
    { NULL, 0, VAL_NONE, NULL, NULL, NULL, false },
};

const struct cmd cmd_table[] = {
    { "vm", "list", CMD_SHORT | CMD_TABLE, { { 0 } }, NULL, cmd_vm_list, "List the VMs", "vm list -o name,state,mem" },
    { "vm", "create", CMD_VMKEYS, { { "NAME", ARG_NAME, true, false } }, create_flags, cmd_vm_create, "Define a VM",
      "vm create web1 --kernel debian/vmlinuz --initrd debian/initrd --cmdline console=ttyS0 --mem 2G --disk debian/root.img" },
    { "vm", "show", 0, { NAME_VM }, show_flags, cmd_vm_show,
      "Show state, devices and definition of a VM", "vm show web1 --toml" },
    { "vm", "set", CMD_VMKEYS, { NAME_VM }, set_flags, cmd_vm_set,
      "Change the definition; CPU share at once, the rest at next start", "vm set web1 --mem 4G --no-autostart" },
    { "vm", "rename", 0, { NAME_VM, { "NEW-NAME", ARG_NAME, false, false } }, NULL, cmd_vm_rename,
      "Give a stopped VM another name", "vm rename web1 web2" },
    { "vm", "rm", CMD_ASKS, { NAMES_VM }, NULL, cmd_vm_rm, "Remove stopped VMs", "vm rm web1 -y" },
    { "vm", "start", CMD_SHORT, { NAMES_VM }, start_flags, cmd_vm_start, "Start VMs", "start web1 --console" },
    { "vm", "stop", CMD_SHORT, { NAMES_VM }, stop_flags, cmd_vm_stop,
      "Shut VMs down (ACPI power button)", "stop web1 --timeout 2m --kill" },
    { "vm", "kill", CMD_SHORT, { NAMES_VM }, NULL, cmd_vm_kill, "Power VMs off at once", "kill web1" },
    { "vm", "reboot", 0, { NAMES_VM }, reboot_flags, cmd_vm_reboot, "Shut VMs down and start them again", "vm reboot web1" },
    { "vm", "reset", 0, { NAMES_VM }, NULL, cmd_vm_reset, "Press the reset button", "vm reset web1" },
    { "vm", "pause", 0, { NAMES_VM }, NULL, cmd_vm_pause, "Stop VMs in place; their clocks stand still", "vm pause web1" },
    { "vm", "resume", 0, { NAMES_VM }, NULL, cmd_vm_resume, "Let paused VMs go on", "vm resume web1" },
    { "vm", "wait", 0, { NAMES_VM }, wait_flags, cmd_vm_wait,
      "Wait until VMs are stopped, running or paused", "vm wait web1 --for stopped --timeout 5m" },
    { "vm", "console", CMD_SHORT, { NAME_VM }, console_flags, cmd_vm_console,
      "Attach to a console of a VM; Ctrl-] leaves it", "console web1" },
    { "vm", "log", CMD_TABLE, { NAME_VM }, NULL, cmd_vm_log, "What happened to a VM, with times", "vm log web1" },
    { "vm", "stats", 0, { NAME_VM }, NULL, cmd_vm_stats,
      "Exits by reason, time in guest and host, per virtual CPU", "vm stats web1" },
    { "vm", "dump", 0, { NAME_VM }, NULL, cmd_vm_dump,
      "Registers and last exits; pauses a running VM for the moment", "vm dump web1" },
    { "image", "list", CMD_TABLE, { { 0 } }, NULL, cmd_image_list, "List the image store of the boot stick", "image list" },
    { "host", "info", 0, { { 0 } }, NULL, cmd_host_info, "The machine and what it offers", "host info" },
    { "host", "cpu", CMD_TABLE, { { 0 } }, NULL, cmd_host_cpu, "CPU features and mitigations, and why", "host cpu" },
    { "host", "mem", 0, { { 0 } }, NULL, cmd_host_mem, "Memory: promised, used, free", "host mem" },
    { "host", "pci", CMD_TABLE, { { 0 } }, NULL, cmd_host_pci, "PCI devices and their drivers", "host pci" },
    { "host", "log", 0, { { 0 } }, log_flags, cmd_host_log, "Joist's own log", "host log --level debug -n 20" },
    { "host", "top", 0, { { 0 } }, top_flags, cmd_host_top, "CPU time by thread", "host top -n 1" },
    { "host", "time", 0, { { 0 } }, NULL, cmd_host_time, "Time, up time and clock", "host time" },
    { "host", "reboot", 0, { { 0 } }, power_flags, cmd_host_reboot, "Shut VMs down and restart the machine", "host reboot" },
    { "host", "poweroff", 0, { { 0 } }, power_flags, cmd_host_poweroff,
      "Shut VMs down and switch the machine off", "host poweroff" },
    { "help", NULL, 0, { { "COMMAND", ARG_TOPIC, true, true } }, help_flags, cmd_help,
      "Help on a command, or the list of commands", "help vm create" },
    { "version", NULL, 0, { { 0 } }, NULL, cmd_version, "Version of Joist", "version --json" },
    { "history", NULL, 0, { { 0 } }, NULL, cmd_history, "Lines typed in this session", "history" },
    { "exit", NULL, 0, { { 0 } }, NULL, cmd_exit, "Leave the session", "exit" },
};
const unsigned cmd_table_size = ARRAY_SIZE(cmd_table);
