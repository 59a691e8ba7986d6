core += mgmt/start.c
hosted += $(addprefix mgmt/,buf.c fail.c units.c json.c conf.c lineedit.c report.c vmdef.c conmux.c vmlog.c guest.c session.c cmdline.c cmdtab.c \
  complete.c help.c cmd_vm.c cmd_show.c cmd_console.c cmd_host.c option.c)
