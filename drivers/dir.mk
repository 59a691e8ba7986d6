core += drivers/uart16550.c
