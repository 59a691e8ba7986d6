core += kernel/main.c
