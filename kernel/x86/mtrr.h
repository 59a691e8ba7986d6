/* Memory type range registers: every CPU gets those of the boot CPU, because firmware does not always set them on all. */
#pragma once
void mtrr_save(void);           /* boot CPU */
void mtrr_apply(void);          /* this CPU, interrupts off: writes them if they differ */
